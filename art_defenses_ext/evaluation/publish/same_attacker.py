"""Whether two runs were made by one attacker: only then is a difference in accuracy one between their networks."""

from __future__ import annotations

import json
from typing import Any

from art_defenses_ext.evaluation.run.manifest import Manifest

PACKAGE = "art-defenses-ext"


def attacker_differences(first: Manifest, second: Manifest) -> list[str]:
    """Return the differences between the attackers of two runs in words; none if they are one.

    An attacker is their ball, attack suite, gradient modes, checks, seed and code. A named suite is one attacker,
    whatever the network: it adapts to the defence, whose gradient modes it tries, and whose paper's attacks it adds.
    The paper's attacks alone (``"papers"``) are another attacker for each method.

    **Convention**: of runs on different images, the numbers of images for checks and curves are not compared, but for
    none against some, since each run takes its own first images.

    Args:
        first, second: what the runs are.
    """
    settings, others = first.run.settings, second.run.settings
    same_images = first.run.data_sha256 == second.run.data_sha256
    pairs = [
        (name, getattr(settings, name), getattr(others, name))
        for name in ("threat", "eps", "seed", "block_size", "adaptive")
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
    """Return the attacks in which two runs differ, and their properties."""
    attacks, others = first.run.settings.attacks, second.run.settings.attacks
    if isinstance(attacks, str) and attacks == others and attacks != "papers":
        return []
    if isinstance(attacks, str) != isinstance(others, str) or (isinstance(attacks, str) and attacks != others):
        return [f"attacks {_named(attacks)}, not {_named(others)}"]
    specs = [_specs(each) for each in (first, second)]
    # Of a list of attacks some may have nothing to do on a network, such as annealing where no mode has a width.
    by_name = isinstance(attacks, list) and isinstance(others, list)
    names = [list(attacks), list(others)] if by_name else [list(each) for each in specs]
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
