"""The manifest of a run, a file in its folder, and the differences of two runs or of their attackers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier
from pydantic import ValidationError

from art_defenses_ext.base.errors import RunError
from art_defenses_ext.evaluation.checks.gradient_health import GradientHealth
from art_defenses_ext.evaluation.config import most_rounds
from art_defenses_ext.evaluation.records.description import RunDescription, Settings
from art_defenses_ext.evaluation.records.lines import adapter, digest_of_plain, parse_json
from art_defenses_ext.evaluation.run.code_hash import code_hash
from art_defenses_ext.evaluation.run.describe import command_of_whole
from art_defenses_ext.evaluation.run.identity import UNDEFENDED_PART, Identity
from art_defenses_ext.evaluation.run.shard import WHOLE, Shard
from art_defenses_ext.evaluation.suite.plan import AttackRun
from art_defenses_ext.evaluation.suite.spec import AttackSpec, Build
from art_defenses_ext.evaluation.threat import Threat, named_threat

FORMAT = 5
"""The format of ``manifest.json`` and of the records beside it."""

FREE = ("command", "options", "tunings", "trainings", "environments")
"""Fields that may differ between two runs with equal records. The hash of a network matters, not its training."""

MODEL = (
    *("model", "pipeline_sha256", "defences", "foreign", "clip_values", "labels", "input_shape"),
    *("rejects", "outputs", "dtype"),
)
"""Fields of the description of a defended model. The hash covers its tensors alone."""

ENVIRONMENT = ("device", "threads", "versions")
"""Fields on which results depend only by rounding."""


@dataclass(frozen=True)
class Manifest:
    """The manifest of a run.

    Attributes:
        run: settings, hashes of data and networks, environment.
        plan: the attacks.
        health: gradient health, on which some attacks depend.
        shard: the shard of the run in this folder.
        identity: code, attributes and first outputs of the classifiers.
    """

    run: RunDescription
    plan: list[AttackRun]
    health: list[GradientHealth]
    shard: Shard = WHOLE
    identity: Identity = field(default_factory=Identity)

    def continued_by(self, other: Manifest) -> Manifest:
        """Return the manifest of this run once ``other``, a later call, has continued it.

        A later call may ask for more rounds of more effort, which change nothing that the folder holds. Any other
        difference is left for :meth:`difference` to find.
        """
        settings, later = self.run.settings, other.run.settings
        if settings.effort == later.effort or most_rounds(settings.effort) > most_rounds(later.effort):
            return self
        settings = replace(settings, effort=later.effort)
        return replace(
            self, run=replace(self.run, settings=settings, command=other.run.command, options=other.run.options)
        )

    def difference(self, other: Manifest, ignored: tuple[str, ...] = ()) -> str | None:
        """Return the first difference of two runs on which their records depend, in words; None if there is none.

        Args:
            other: manifest of the other run; gradient health and shards are not compared.
            ignored: attributes of the run's description that may differ.
        """
        return next(self._all_differences(other, ignored), None)

    def differences(self, other: Manifest) -> list[str]:
        """Return all differences of two runs on which their records depend, in words."""
        return list(self._all_differences(other))

    def _all_differences(self, other: Manifest, ignored: tuple[str, ...] = ()) -> Iterator[str]:
        yield from _differences(self._declared(ignored), other._declared(ignored))
        difference = self.identity.difference(
            other.identity,
            same_place=self.environment == other.environment,
            same_code=self.run.versions == other.run.versions,
            random=self.run.random,
        )
        if difference is not None:
            yield difference

    def attacks_the_model_of(self, other: Manifest) -> bool:
        """Return whether another run attacks the same defended model on the same images, in any ball.

        Equal weights are not enough: an attribute, such as the slope of an activation, may differ. The code and the
        first logits are compared too.
        """
        run, others = self.run, other.run
        if any(getattr(run, name) != getattr(others, name) for name in ("data_sha256", *MODEL)):
            return False
        difference = _of_model(self.identity).difference(
            _of_model(other.identity),
            same_place=self.environment == other.environment and run.settings.seed == others.settings.seed,
            same_code=run.versions == others.versions,
            random=run.random,
        )
        return difference is None

    def obstacle(self, later: Manifest) -> str | None:
        """Return the difference, in words, because of which a later call cannot continue this run; None if it can.

        A run that was merged from several environments goes on in any of them.
        """
        among = later.environment in self.run.environments
        return self.continued_by(later).difference(later, ignored=ENVIRONMENT if among else ())

    def belongs_to(self, run: Manifest) -> bool:
        """Return whether this is a part of a merged run, which a later call may have asked for more rounds."""
        return run.obstacle(self.continued_by(run)) is None

    @property
    def is_round(self) -> bool:
        """Whether it is that of a round of more effort."""
        return any(run.role == "round" for run in self.plan)

    def key(self) -> str:
        """Return a hash of all that the records depend on.

        It includes coarsely rounded outputs for the first images. If noise changes one of these, the key changes
        although the run is the same. :meth:`difference` compares them with a tolerance instead.
        """
        whole = self._declared() | {"identity": self.identity.key()}
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()

    def _declared(self, ignored: tuple[str, ...] = ()) -> dict[str, Any]:
        plain = {name: value for name, value in self._plain_run().items() if name not in {*FREE, *ignored}}
        return plain | {"attack": [_plain(run) for run in self.plan]}

    def other_settings(self, settings: Settings) -> str | None:
        """Return the first setting in which a later call differs from this run, in words; None if it continues it."""
        continued = self.continued_by(replace(self, run=replace(self.run, settings=settings))).run.settings
        own, other = (json.loads(json.dumps(asdict(value))) for value in (continued, settings))
        return next(_differences(own, other, "settings"), None)

    def whole(self, environments: list[dict[str, Any]]) -> Manifest:
        """Return the manifest of the whole run of which this is a shard; its shards ran in the given environments."""
        command = command_of_whole(self.run)
        return replace(self, run=replace(self.run, environments=environments, command=command), shard=WHOLE)

    @property
    def environment(self) -> dict[str, Any]:
        """The environment of the run: device, threads and versions."""
        return {name: value for name, value in self._plain_run().items() if name in ENVIRONMENT}

    def _plain_run(self) -> dict[str, Any]:
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self.run)))  # as in a file, where tuples are lists
        return plain

    @cached_property
    def binding(self) -> str:
        """The digest of all that :meth:`continued_by` keeps; the digests of records, costs and pictures include it."""
        plain = self._plain()
        plain["run"] = {name: value for name, value in plain["run"].items() if name not in ("command", "options")}
        del plain["run"]["settings"]["effort"]
        return digest_of_plain(plain)

    def as_json(self) -> str:
        """Return the text of the manifest's file."""
        plain = self._plain()
        return json.dumps(plain | {"digest": digest_of_plain(plain)}, indent=1, allow_nan=False) + "\n"

    def _plain(self) -> dict[str, Any]:
        plain: dict[str, Any] = {
            "format": FORMAT,
            "shard": asdict(self.shard),
            "run": self._plain_run(),
            "plan": [_plain(run) for run in self.plan],
            "health": [asdict(health) for health in self.health],
            "identity": asdict(self.identity),
        }
        plain = json.loads(json.dumps(plain, allow_nan=False))
        return plain

    @staticmethod
    def read(path: Path) -> Manifest:
        """Read a manifest.

        Raises:
            InputError: for a manifest that is missing, broken, or of another version.
        """
        try:
            return _parsed(path, path.read_bytes())
        except OSError as error:
            raise RunError(f"{path} cannot be read ({error.strerror}); the manifest of a run was expected") from None


def _of_model(identity: Identity) -> Identity:
    """Return the identity of a defended model, without the undefended one and the gradients that attackers follow."""
    code = {name: part for name, part in identity.code.items() if name != UNDEFENDED_PART}
    behaviour = identity.behaviour and replace(identity.behaviour, undefended=None, gradients={})
    return Identity(code, behaviour)


@lru_cache(maxsize=16)  # each function that reads a run reads its manifest again
def _parsed(path: Path, content: bytes) -> Manifest:
    """Return the manifest with the given content; ``path`` is for errors."""
    try:
        plain = parse_json(content)
        version = plain["format"]
    except (ValueError, KeyError, TypeError):
        raise RunError(f"{path} is not the manifest of a run; a manifest was expected") from None
    if version != FORMAT:
        raise RunError(f"{path} has format {version!r}; {FORMAT} was expected: evaluate again")
    if plain.get("digest") != digest_of_plain(plain):
        raise RunError(f"{path} differs from its digest; an unchanged manifest was expected")
    try:
        return Manifest(
            adapter(RunDescription).validate_python(plain["run"]),
            [_run_of(attack) for attack in plain["plan"]],
            adapter(list[GradientHealth]).validate_python(plain["health"]),
            Shard(**plain["shard"]),
            adapter(Identity).validate_python(plain["identity"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = f"{error.error_count()} fields" if isinstance(error, ValidationError) else str(error)
        raise RunError(f"{path} cannot be understood ({reason}); the manifest of a run was expected") from None


def _plain(run: AttackRun) -> dict[str, Any]:
    """Return a run of an attack as plain data, with a hash of its build function."""
    spec = vars(run.spec) | {"build": _build_hash(run.spec.build)}
    return {"spec": spec, "mode": run.mode, "role": run.role, "norm": run.threat.norm_name, "eps": run.threat.eps}


def _run_of(plain: dict[str, Any]) -> AttackRun:
    build = ReadOnlyBuild(plain["spec"].get("build"))
    spec = adapter(AttackSpec).validate_python(plain["spec"] | {"build": build})
    return AttackRun(spec, plain["mode"], named_threat(plain["norm"], plain["eps"]), plain["role"])


def _build_hash(build: Build) -> str | None:
    """Return a hash of an attack's build function; None for this package's, whose version is in the manifest."""
    if isinstance(build, ReadOnlyBuild):
        return build.sha256
    package = getattr(build, "__module__", "").partition(".")[0]
    return None if package == __package__.partition(".")[0] else code_hash(build)


@dataclass(frozen=True)
class ReadOnlyBuild:
    """The build function of an attack that was read from a run's folder; it cannot be called."""

    sha256: str | None

    def __call__(self, classifier: PyTorchClassifier, threat: Threat, seed: int) -> EvasionAttack:
        raise RunError("the attack was read from a run's folder, which holds its results but not its code")


def _differences(value: Any, other: Any, path: str = "") -> Iterator[str]:
    """Yield the differences of two plain values, in words."""
    if isinstance(value, dict) and isinstance(other, dict):
        for name in [*value, *(name for name in other if name not in value)]:
            yield from _differences(value.get(name), other.get(name), f"{path} {name}".strip())
    elif isinstance(value, list) and isinstance(other, list) and len(value) == len(other):
        for place, (part, other_part) in enumerate(zip(value, other, strict=True), 1):
            yield from _differences(part, other_part, f"{path} {place}")
    elif value != other:
        yield f"{path} {_short(value)}, not {_short(other)}"


def _short(value: Any) -> str:
    if isinstance(value, str) and len(value) == 64:  # a hash
        return f"{value[:8]}..."
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return repr(value)


PACKAGE = "art-defenses-ext"


def attacker_differences(first: Manifest, second: Manifest) -> list[str]:
    """Return the differences between the attackers of two runs in words; an empty list for the same attacker.

    An attacker consists of ball, attack suite, gradient modes, checks, seed and code. A named suite is one attacker
    for every network: it adapts to the defence, tries its gradient modes, and adds its paper's attacks. The paper's
    attacks alone (``"papers"``) are another attacker for each method.

    **Convention**: runs on different images may differ in the numbers of images for checks and curves, since each run
    takes its own first images. They may not differ in whether these are made.

    Examples from elsewhere (``evaluation/run/added.py``) belong to no attacker: comparisons leave them out.

    Args:
        first, second: manifests of the runs.
    """
    settings, others = first.run.settings, second.run.settings
    same_images = first.run.data_sha256 == second.run.data_sha256
    pairs = [
        (name, getattr(settings, name), getattr(others, name))
        for name in ("threat", "eps", "seed", "block_size", "adaptive", "effort")
    ]
    differences = [f"{name} {value}, not {other}" for name, value, other in pairs if value != other]
    for name in ("check_samples", "curve_samples"):
        left, right = getattr(settings, name), getattr(others, name)
        if (left != right) if same_images else (bool(left) != bool(right)):
            differences.append(f"{name} {left}, not {right}")
    versions = [manifest.run.versions.get(PACKAGE) for manifest in (first, second)]
    if versions[0] != versions[1]:
        differences.append(f"version {versions[0]} of {PACKAGE}, not {versions[1]}")
    return differences + _suite_differences(first, second)


def _suite_differences(first: Manifest, second: Manifest) -> list[str]:
    """Return the differences between the attacks of two runs in words."""
    attacks, others = first.run.settings.attacks, second.run.settings.attacks
    if isinstance(attacks, str) and attacks == others and attacks != "papers":
        return []
    if isinstance(attacks, str) != isinstance(others, str) or (isinstance(attacks, str) and attacks != others):
        return [f"attacks {_named(attacks)}, not {_named(others)}"]
    specs = [_specs(manifest) for manifest in (first, second)]
    # Some attacks of a list may not apply to a network, such as annealing without a mode that has a width.
    by_name = isinstance(attacks, list) and isinstance(others, list)
    names = [list(attacks), list(others)] if by_name else [list(spec) for spec in specs]
    if set(names[0]) != set(names[1]):
        return [f"attacks {_named(names[0])}, not {_named(names[1])}"]
    return [
        f"attack {name!r} has another {part}"
        for name, spec in specs[0].items()
        if name in specs[1]
        for part, value in spec.items()
        if part != "purpose" and value != specs[1][name][part]
    ]


def _specs(manifest: Manifest) -> dict[str, dict[str, Any]]:
    """Return the attacks of a run by their names, each with a hash of its code."""
    plan = json.loads(manifest.as_json())["plan"]
    return {run["spec"]["name"]: run["spec"] for run in plan if run["role"] == "suite"}


def _named(attacks: str | list[str]) -> str:
    return attacks if isinstance(attacks, str) else ", ".join(attacks)
