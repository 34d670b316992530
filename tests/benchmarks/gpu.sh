#!/usr/bin/env bash
# Everything that is to be measured on a GPU, in at most 12 minutes; results are written to OUT as they come.
#
#     tests/benchmarks/gpu.sh OUT [1|2] [STEPS' OPTIONS ...]
#
# 1 is the half that needs no data, 2 the one that trains; without a number both run, for 6 minutes each.
#
# A machine with Python 3.12, torch 2.11, torchvision, numpy, scipy, scikit-learn, pytest, hypothesis, matplotlib, jinja2,
# rich, click, safetensors and filelock lacks the packages named below. Where it has no network, bring them along: 4 MiB of
# wheels, and the modules of the authors' AutoAttack without the weights (40 MiB) that its wheel carries.
#
#     python -m pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_17_x86_64 \
#         -d .wheels adversarial-robustness-toolbox pydantic pydantic-core annotated-types typing-inspection \
#         multiprocess dill zennit sybil
#     python -m pip download --no-deps -d .autoattack pyautoattack
#     python -m zipfile -e .autoattack/pyautoattack-*.whl .autoattack && mkdir -p .wheels/modules
#     rm -r .autoattack/pyautoattack/examples && mv .autoattack/pyautoattack .wheels/modules/ && rm -r .autoattack
#     python tests/benchmarks/gpu.py pack --data DATA --out .wheels/cifar10.npz
#
# MNIST (12 MiB unpacked) and weights/erichson_mnist_lenet_baseline.pkl may be brought as .wheels/data. With 12,000 images
# of CIFAR-10 (35 MiB) the checkout and all this stay under 64 MiB.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:?"usage: $0 OUT [1|2] [options of gpu.py steps]"}
shift
halves=(1 2)
limit=360
if [[ ${1:-} == [12] ]]; then
    halves=("$1")
    limit=720
    shift
fi
mkdir -p "$out"
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if compgen -G ".wheels/*.whl" > /dev/null; then
    python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$site" .wheels/*.whl
fi
export PYTHONPATH="$PWD:$site:$PWD/.wheels/modules${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
options=()
[ -f .wheels/cifar10.npz ] && options+=(--images .wheels/cifar10.npz)
[ -d .wheels/data ] && options+=(--data .wheels/data)
status=0
for half in "${halves[@]}"; do
    python3 tests/benchmarks/gpu.py steps --out "$out" --half "$half" --limit "$limit" "${options[@]}" "$@" || status=1
done
python3 tests/benchmarks/gpu.py table "$out" | tee "$out/table.md"
exit $status
