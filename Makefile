# make evaluate and make test do everything on a fresh machine; the rest is for developers.
PYTHON ?= python3
BIN := .venv/bin
PIP = $(BIN)/python -m pip --quiet --disable-pip-version-check
INSTALLED := .venv/.installed
OUT ?= out/digits
# What examples may do: hand on dictionaries of options, and what ART, which has no types, returns.
RELAXED := --allow-subclassing-any $(addprefix --disable-error-code=,arg-type no-any-return unused-ignore)

.PHONY: evaluate test fuzz test-data coverage docs lint dist check-dist constraints clean

evaluate: $(INSTALLED)  ## the main job: JumpReLU on digits, attacked; the report goes to $(OUT)
	$(BIN)/art-defenses evaluate --dataset digits --defence jump_relu --norm linf --eps 0.1 --samples 240 --block-size 120 --curve-samples 80 --processes 2 --out $(OUT) --overwrite

# Many tests start a process, which else would compile the whole package again.
test: export PYTHONDONTWRITEBYTECODE =
test: $(INSTALLED)  ## the test suite: everything that needs no real data
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not data"

fuzz: $(INSTALLED)  ## hostile arguments, ten thousand, over the whole public API and the command; minutes
	$(BIN)/python tests/fuzz.py --seed $(or $(SEED),0) --cases $(or $(CASES),10000)

coverage: $(INSTALLED)  ## the test suite once more, and which lines of the package it does not reach
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not data" --cov=art_defenses_ext --cov-report=term-missing:skip-covered

test-data: $(INSTALLED)  ## the tests of real data, in the folder that ART_DEFENSES_DATA names
	$(BIN)/python -m pytest -m data

docs: $(INSTALLED)  ## the documentation site, into out/docs; a warning is an error
	$(PIP) install --constraint constraints.txt --group docs
	$(BIN)/python docs/generated.py
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs out/docs

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	MYPYPATH=examples $(BIN)/mypy $(RELAXED) examples/*.py examples/custom_*/*.py

dist: $(INSTALLED)  ## the sdist and the wheel, into dist/, checked as a package index does
	test -x .venv/release/bin/python || $(BIN)/python -m venv .venv/release
	$(PIP) --python .venv/release install --group release
	rm -rf dist
	.venv/release/bin/python -m build --outdir dist . > /dev/null
	.venv/release/bin/python -m twine check --strict dist/*

check-dist: dist  ## the wheel in new environments, from an empty folder: see .ci/installed
	.ci/installed

constraints: $(INSTALLED)  ## write constraints.txt anew from the environment
	{ head -n 1 constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | grep -viE '^(nvidia|cuda|triton)'; } > constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf .venv out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install "pip>=25.1"  # the first that knows dependency groups
	$(PIP) install --constraint constraints.txt --editable . --group dev
	touch $@
