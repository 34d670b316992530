"""The description of a run in words: defences, training, threat, attacker, provenance."""

from __future__ import annotations

from typing import Any

from art_defenses_ext.attack.ball import ball_type
from art_defenses_ext.base.provenance import Training
from art_defenses_ext.evaluation.records.description import RunDescription, Settings
from art_defenses_ext.evaluation.report.sections import Column, Row, Table
from art_defenses_ext.evaluation.results.summary import Summary
from art_defenses_ext.zoo.catalogue import CLASSES

FACTS = (Column("", holds="words"), Column("", holds="prose"))


def defence_names(run: RunDescription) -> list[str]:
    """Return each defence with its settings but None, as in ``"jump_relu (jump 1, rectifiers 4)"``."""
    return [_defence_name(defence) for defence in run.defences]


def _defence_name(defence: dict[str, Any]) -> str:
    options = [
        f"{key.replace('_', ' ')} {_setting(value)}"
        for key, value in defence.items()
        if key != "name" and value is not None
    ]
    return f"{defence['name']} ({', '.join(options)})" if options else str(defence["name"])


def _setting(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_setting, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def describe_defences(run: RunDescription) -> str:
    """Return all defences of a run on one line."""
    return " + ".join(defence_names(run)) or "no defence"


def recorded_texts(summary: Summary) -> list[str]:
    """Return the texts of a run that a report quotes: its command, and the names of its parts and attacks."""
    run = summary.run
    names = [*defence_names(run), *run.foreign, *run.training_alone, run.model]
    return [run.command, *names, *(row.key for row in summary.rows)]


def describe_training(training: Training) -> str:
    """Return the data and settings of a defence's training on one line."""
    settings = training.settings
    if "loss" not in settings:  # a detector's
        images = f"{settings['images']} benign images"
        trained = f"{len(training.losses)} epoch(s) on {images} in batches of {settings.get('batch_size')}"
        how = trained if training.losses else f"fitted to {images}"
        share = f"thresholds set on a share of {settings['validation_split']:g} held out"
        return f"{how}, seed {settings['seed']}; {share}"
    loss = settings["loss"]
    names = {"pixel_weight": f"pixels ({loss['pixel']})", "feature_weight": f"features ({loss['network']})"}
    names["class_weight"] = "class"
    terms = ", ".join(f"{loss[key]:g} {name}" for key, name in names.items() if loss[key])
    return (
        f"{len(training.losses)} epoch(s) on {settings['images']} images: {'; '.join(settings['inputs'])}; eps "
        f"{settings['eps']:g}, attacks made in mode {settings['attack_mode']}, seed {settings['seed']}; loss {terms}"
    )


def class_name(run: RunDescription, label: int) -> str:
    """Return the name of a class if the data set has names, else its number."""
    names = CLASSES.get(str(run.options.get("dataset")), ())
    return names[label] if label < len(names) else str(label)


def describe_threat(settings: Settings) -> str:
    """Return the perturbations that are allowed, in words."""
    return f"{settings.threat}: {ball_type(settings.threat).rule} {settings.eps:g}"


def describe_attacker(run: RunDescription) -> str:
    """Return the gradients that the attacker uses."""
    gradients = f"gradient mode{'' if len(run.modes) == 1 else 's'} {', '.join(run.modes)}"
    if run.draws > 1:
        gradients += f", averaged over {run.draws} passes (EOT)"
    return gradients if run.settings.adaptive else f"not adaptive: {gradients} alone"


def facts(run: RunDescription) -> Table:
    """Return the facts at the head of a report."""
    settings = run.settings
    lines = [
        *(("defence", name) for name in defence_names(run) or ["none"]),
        *(("preprocessor", name) for name in run.foreign),
        *(("left out", f"{name}, which acts in training alone") for name in run.training_alone),
        *(("trained", describe_training(training)) for training in run.trainings),
        ("network", run.model),
        *([("outputs", run.outputs)] if run.outputs else []),
        *([("precision", f"{run.dtype}; losses at least in float32")] if run.dtype != "float32" else []),
        ("clip values", "none" if run.clip_values is None else "{:g} to {:g}".format(*run.clip_values)),
        ("threat", describe_threat(settings)),
        ("attacker", describe_attacker(run)),
        ("samples", f"{settings.samples}, seed {settings.seed}"),
    ]
    return _table(lines)


def provenance(run: RunDescription) -> Table:
    """Return the settings, hashes and versions from which a run can be repeated."""
    settings = run.settings
    firsts = {"the curves": settings.curve_samples, "the checks' own attacks": settings.check_samples}
    parts = [f"the first {count} for {purpose}" for purpose, count in firsts.items() if count]
    attacks = settings.attacks if isinstance(settings.attacks, str) else ", ".join(settings.attacks)
    lines = [
        ("attacks", attacks),
        ("blocks", "; ".join([f"{settings.block_size} samples each", *parts])),
        ("command", run.command),
        ("device", f"{run.device}, {run.threads} threads"),
        ("weights, SHA-256", run.model_sha256),
        ("data, SHA-256", run.data_sha256),
        *run.versions.items(),
        ("files", "records.jsonl: a record per sample; costs.jsonl: passes and seconds; report.json: every figure"),
    ]
    return _table(lines)


def _table(lines: list[tuple[str, str]]) -> Table:
    return Table(FACTS, [Row(name, (text,)) for name, text in lines], look="facts")
