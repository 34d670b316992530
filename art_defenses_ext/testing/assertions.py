"""Assertions about robustness, on which the pytest plugin's fixtures are built.

Each runs an evaluation, or reuses the finished one of the same networks, images and settings. A failure lists the
attacks with the images that they broke, and the paths of the report and of the pictures.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from art.defences.detector.evasion import BinaryInputDetector
from art.estimators.classification import PyTorchClassifier
from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch
from filelock import FileLock
from torch import nn

from art_defenses_ext.base.arrays import StoredImages
from art_defenses_ext.base.data import images_and_labels
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.text import for_terminal, shown
from art_defenses_ext.base.validation import check_choice, check_flag, check_share
from art_defenses_ext.estimator.rebuild import rebuild, record_undefended, undefended
from art_defenses_ext.estimator.rejecting import rejecting
from art_defenses_ext.estimator.wrap import as_classifier
from art_defenses_ext.evaluation.config import EvaluationConfig
from art_defenses_ext.evaluation.evaluate import evaluate, run_key
from art_defenses_ext.evaluation.records.paired import Paired
from art_defenses_ext.evaluation.report.headlines import NOT_ESTABLISHED, figure_name, own_worst_case
from art_defenses_ext.evaluation.report.report import Report
from art_defenses_ext.evaluation.run.folder import read_manifest
from art_defenses_ext.evaluation.run.manifest import attacker_differences
from art_defenses_ext.evaluation.suite.spec import AttackSpec
from art_defenses_ext.evaluation.task import DECLARED, AttackArguments, EvaluationArguments, classifier_of
from art_defenses_ext.evaluation.threat import Threat, named_threat

SHOWN = 10
"""Maximum number of indices in a failure's message, for each attack."""

LONGEST_NAME = 200
"""Maximum number of bytes of a report's folder; file systems allow 255, which a test's name may exceed."""

SURE = 0.05
"""The p value below which a run is significantly worse than its baseline."""


@dataclass
class Suite:
    """The settings of a test session's assertions, and the assertions.

    Attributes:
        cache: folder of finished evaluations, one for each key.
        attacks: attack suite that replaces those of the assertions; None for their own.
        samples: number of images, from the first on; None for all.
        device: ``"cpu"`` or ``"cuda"``; None for the classifier's.
        reports: folder to which reports are copied; None for no copies.
        notes: a line for each assertion that was checked.
    """

    cache: Path
    attacks: str | None = None
    samples: int | None = None
    device: str | None = None
    reports: Path | None = None
    notes: list[str] = field(default_factory=list)

    def evaluated(
        self,
        name: str,
        model: PyTorchClassifier | nn.Module,
        data: Any,
        threat: Threat,
        attacks: str | Sequence[AttackSpec] = "standard",
        **arguments: Unpack[EvaluationArguments],
    ) -> tuple[Report, Path]:
        """Return the report of an evaluation and its folder; a finished evaluation with a named suite is reused.

        Args:
            name: the name of the folder among ``reports``; one that is too long for a file system is cut, and ends in
                its hash.
            model, data, threat, attacks, arguments: as in :func:`.evaluate`; by default without a curve, and without an
                evaluation of the undefended model.
        """
        x, y = images_and_labels(data)
        if self.device is not None:
            declared = {name: arguments.pop(name) for name in DECLARED if name in arguments}  # type: ignore[misc]
            model = classifier_of(model, (x, y), declared)
            detector = arguments.pop("detector", None)
            model = on_device(model if detector is None else rejecting(model, detector), self.device)
            if (plain := arguments.get("undefended")) is not None:
                plain = as_classifier(plain, (x, y), **declared) if isinstance(plain, nn.Module) else plain
                arguments["undefended"] = on_device(plain, self.device)
        attacks = attacks if self.attacks is None else self.attacks
        data = _first("x", x, self.samples), _first("y", y, self.samples)
        if arguments.get("config") is None:
            arguments.setdefault("curve_samples", 0)
            arguments.setdefault("undefended_suite", "papers")
        key = run_key(model, data, threat, attacks, **arguments)
        cache, kept = self._writable_cache(name), self._folder_among_reports(name)
        folder = cache / key[:16]
        with FileLock(cache / f"{key[:16]}.lock"):  # another worker may be evaluating the same
            again = not isinstance(attacks, str)
            if not again and (folder / "report.json").exists():
                report = Report.load(folder)
            else:
                report = evaluate(
                    model, data, threat, attacks, out=folder, overwrite=again, progress=False, **arguments
                )
            if kept is not None:
                with _keeping(self.reports):
                    folder = Path(shutil.copytree(folder, kept, dirs_exist_ok=True))
        return report, folder

    def is_robust(
        self,
        name: str,
        model: PyTorchClassifier | nn.Module,
        data: Any,
        threat: Threat,
        at_least: float,
        attacks: str | Sequence[AttackSpec] = "standard",
        *,
        established: bool = True,
        **arguments: Unpack[EvaluationArguments],
    ) -> Report:
        """Assert that the robust accuracy is established and at least ``at_least``.

        Args:
            name, model, data, threat, attacks, arguments: as in :meth:`evaluated`.
            at_least: the bound, from 0 to 1.
            established: require that an adaptive attack suite ran and passed its checks
                (``evaluation/checks/standing.py``). False asserts the accuracy under the attacks that ran, and the note
                names it so.

        Raises:
            AssertionError: if the assertion does not hold.
        """
        __tracebackhide__ = True  # the failure is the test's, not ours
        check_share("at_least", at_least)
        check_flag("established", established)
        report, folder = self.evaluated(name, model, data, threat, attacks, **arguments)
        worst, figure = report.summary.worst_case, figure_name(report.summary)
        self._note(name, f"{figure} {worst}, at least {100 * at_least:g} % wanted", report)
        failure = f"{figure} is {worst} under {threat}; at least {100 * at_least:g} % was wanted"
        _check(report, folder, worst.rate >= at_least, failure)
        if established:
            _check_standing(report, f"{100 * at_least:g} %", threat, folder)
        return report

    def masks_nothing(
        self,
        name: str,
        model: PyTorchClassifier | nn.Module,
        data: Any,
        threat: Threat,
        attacks: str | Sequence[AttackSpec] = "standard",
        **arguments: Unpack[EvaluationArguments],
    ) -> Report:
        """Assert that an adaptive attack suite ran and passes its checks: no gradient masking was found.

        Args:
            name, model, data, threat, attacks, arguments: as in :meth:`evaluated`.

        Raises:
            AssertionError: if a check fails, no checks were made, or no such suite ran.
        """
        __tracebackhide__ = True  # the failure is the test's, not ours
        report, folder = self.evaluated(name, model, data, threat, attacks, **arguments)
        failed = report.summary.failed_checks
        self._note(name, f"checks failed: {', '.join(failed) or 'none'}", report)
        if failed:
            raise AssertionError(f"the attacks fail checks of their own\n{_failed(report)}\n{_where(folder)}")
        _check_standing(report, "that no gradient is masked", threat, folder)
        return report

    def detects(
        self,
        name: str,
        model: PyTorchClassifier | nn.Module,
        detector: BinaryInputDetector,
        data: Any,
        threat: Threat,
        at_least: float,
        attacks: str | Sequence[AttackSpec] = "standard",
        *,
        false_positives: float | None = None,
        established: bool = True,
        **arguments: Unpack[AttackArguments],
    ) -> Report:
        """Assert that the attacks fail on at least this share of the correctly classified images.

        An attack fails if its image is classified correctly or rejected at the detector's own threshold, at which the
        attacks aim. For another threshold set the detector to it.

        Args:
            name, model, detector, data, threat, attacks, arguments: as in :meth:`evaluated`.
            at_least: the bound, from 0 to 1.
            false_positives: bound on the share of clean images that the detector flags, from 0 to 1; None for none.
            established: as in :meth:`is_robust`.

        Raises:
            AssertionError: if the assertion does not hold, or the detector significantly exceeds ``false_positives``.
        """
        __tracebackhide__ = True  # the failure is the test's, not ours
        check_share("at_least", at_least)
        check_flag("established", established)
        if false_positives is not None:
            check_share("false_positives", false_positives)
        report, folder = self.evaluated(name, model, data, threat, attacks, detector=detector, **arguments)
        assert report.summary.detection is not None
        past = report.summary.detection.pools[-1].past  # of the attacker with the most knowledge
        if past is None:
            raise InputError("classifier misclassifies all images; at least one correct image was expected")
        flagged = report.summary.detection.false_positives
        self._note(name, f"attack success rate {past}, at most {100 * (1 - at_least):g} % wanted", report)
        failure = f"attack success rate against classifier and detector is {past} under {threat}, at a false positive "
        failure += f"rate of {flagged}; at most {100 * (1 - at_least):g} % was wanted"
        # Counted, since 1 - 7/100 is less than .93 in floating point.
        _check(report, folder, (past.total - past.count) / past.total >= at_least, failure)
        if false_positives is not None:
            failure = (
                f"the detector flags {flagged} of the clean images; at most {100 * false_positives:g} % was wanted"
            )
            _check(report, folder, flagged.interval[0] <= false_positives, failure)
        if established:
            _check_standing(report, f"that attacks fail on {100 * at_least:g} %", threat, folder)
        return report

    def is_not_worse_than(
        self,
        name: str,
        baseline: str | Path,
        model: PyTorchClassifier | nn.Module,
        data: Any,
        attacks: str | Sequence[AttackSpec] | None = None,
        *,
        established: bool = True,
        **arguments: Unpack[EvaluationArguments],
    ) -> Report:
        """Assert that not significantly fewer images are robust than in an earlier run.

        The same images are attacked in the same ball by the same attacker, and compared with the baseline's records by
        McNemar's exact test. Examples that were added to the baseline from elsewhere do not count, since the new run
        was not attacked with them.

        Args:
            name, model, data, attacks, arguments: as in :meth:`evaluated`; by default those of the earlier run.
            baseline: folder of the earlier run.
            established: as in :meth:`is_robust`, for the new run.

        Raises:
            AssertionError: if the new run is worse with p < .05.
            InputError: if the baseline has other images or another attacker.
        """
        __tracebackhide__ = True  # the failure is the test's, not ours
        check_flag("established", established)
        earlier, before = Report.load(baseline), read_manifest(Path(baseline))
        settings = before.run.settings
        if attacks is None:
            if not isinstance(settings.attacks, str):
                raise InputError(f"baseline is {baseline}, which ran a list of attacks; attacks= was expected")
            attacks = settings.attacks
        threat = named_threat(settings.threat, settings.eps)
        arguments.setdefault("config", EvaluationConfig.part_of(settings))
        report, folder = self.evaluated(name, model, data, threat, attacks, **arguments)
        if report.summary.run.data_sha256 != before.run.data_sha256:
            raise InputError(f"baseline is {baseline}, which has other images; a run on the same images was expected")
        differences = attacker_differences(before, read_manifest(folder))
        if differences:
            raise InputError(
                f"baseline is {baseline}, which has another attacker ({'; '.join(differences)}); a run with the same "
                "attacker was expected"
            )
        pair = Paired.of(earlier.own_verdicts, report.own_verdicts)
        self._note(name, f"against the baseline {pair} points, p {pair.p_value:.2g}", report)
        failure = f"{figure_name(report.summary)} is {own_worst_case(report.summary)} under {threat}, that of "
        failure += (
            f"{baseline} {own_worst_case(earlier.summary)}: {pair.lost} images were lost and {pair.gained} gained, "
        )
        failure += f"{pair} points, p {pair.p_value:.2g}"
        _check(report, folder, pair.lost <= pair.gained or pair.p_value >= SURE, failure)
        if established:
            _check_standing(report, "that it is not worse", threat, folder)
        return report

    def _folder_among_reports(self, name: str) -> Path | None:
        """Return the folder of a report, which is created before the evaluation; None if no reports are kept."""
        if self.reports is None:
            return None
        with _keeping(self.reports):
            folder = self.reports / _short(name)
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _writable_cache(self, name: str) -> Path:
        """Return the cache; if it cannot be written, note this and return a temporary folder."""
        try:
            self.cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.cache):
                return self.cache
        except OSError as error:
            reason = f"the cache {self.cache} cannot be written ({error.strerror}): evaluated without it"
            self.notes.append(for_terminal(f"{name}: {reason}"))
            self.cache = Path(tempfile.mkdtemp(prefix="robustness-"))
            return self.cache

    def _note(self, name: str, text: str, report: Report) -> None:
        summary = report.summary
        reservation = summary.unknown or (NOT_ESTABLISHED if summary.standing != "established" else "")
        self.notes.append(for_terminal(f"{name}: {text}{f' ({reservation})' if reservation else ''}"))


@contextmanager
def _keeping(reports: Path | None) -> Iterator[None]:
    """Turn the system's errors inside the block into one that names the folder of the reports."""
    try:
        yield
    except OSError as error:  # that of a copied tree has no reason of its own
        reason = error.strerror or "its files cannot be copied"
        raise InputError(
            f"reports (--robustness-report) is {reports}, which cannot be written ({reason}); a folder was expected"
        ) from None


def _short(name: str) -> str:
    """Return a name that fits a file system; of a longer one its beginning and a hash."""
    encoded = name.encode(errors="surrogatepass")
    if len(encoded) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:16]
    return f"{encoded[: LONGEST_NAME - 17].decode(errors='ignore')}-{digest}"


def _check(report: Report, folder: Path, holds: bool, failure: str) -> None:
    """Raise an assertion's failure with the attacks that caused it and the path of their pictures."""
    __tracebackhide__ = True
    if not holds:
        raise AssertionError(f"{failure}\n{_who_broke(report)}\n{_where(folder)}")


def _check_standing(report: Report, statement: str, threat: Threat, folder: Path) -> None:
    """Raise if no adaptive attack suite ran, or its attacks fail their checks."""
    __tracebackhide__ = True
    summary = report.summary
    if summary.standing == "established":
        return
    if summary.robust_accuracy is None:
        raise AssertionError(
            f"{summary.unknown}, so {statement} is not established: {summary.worst_case} under {threat} is the "
            f"{figure_name(summary)}, not a robust accuracy; established=False asserts that instead\n"
            f"{_where(folder)}"
        )
    raise AssertionError(
        f"robust accuracy is at most {summary.worst_case} under {threat}: the attacks fail their own checks, so "
        f"{statement} is not established\n{_failed(report)}\n{_where(folder)}"
    )


def _first(argument: str, values: Any, count: int | None) -> Any:
    """Return the first ``count`` images or labels; all for None."""
    if isinstance(values, StoredImages) or (isinstance(values, np.ndarray) and values.ndim > 0):
        return values[:count]
    raise InputError(f"{argument} is {shown(values)}; a numpy array was expected")


def on_device(classifier: PyTorchClassifier, device: str) -> PyTorchClassifier:
    """Return the classifier and its undefended classifier on another device.

    The network is moved, not copied: ``classifier`` itself still sends images to its own device and must not be used
    afterwards.

    Raises:
        InputError: for another word than cpu or cuda, or if there is no GPU.
    """
    import torch

    check_choice("device", device, ("cpu", "cuda"))
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device is 'cuda', and torch finds none; 'cpu' was expected")
    if classifier.device.type == device:
        return classifier
    parts: dict[str, Any] = {"device_type": "gpu" if device == "cuda" else "cpu"}
    if isinstance(classifier.preprocessing, StandardisationMeanStdPyTorch):  # it keeps tensors on its own device
        parts["preprocessing"] = classifier.preprocessing.mean, classifier.preprocessing.std
    moved, plain = rebuild(classifier, **parts), undefended(classifier)
    return moved if plain is None else record_undefended(moved, on_device(plain, device))


def _who_broke(report: Report) -> str:
    """Return the attacks in their order, with the images that each was the first to break."""
    broken: dict[str, list[int]] = {}
    for record in report.records:
        if record.correct:
            first = next((key for key, outcome in record.attacks.items() if outcome.success), None)
            if first is not None:
                broken.setdefault(first, []).append(record.index)
    wrong = [record.index for record in report.records if not record.correct]
    lines = [f"  misclassified without an attack: {_listed(wrong)}"] if wrong else []
    return "\n".join(lines + [for_terminal(f"  broken by {key}: {_listed(first)}") for key, first in broken.items()])


def _listed(indices: list[int]) -> str:
    first = ", ".join(map(str, indices[:SHOWN]))
    return f"{len(indices)} (images {first}{', ...' * (len(indices) > SHOWN)})"


def _failed(report: Report) -> str:
    failed = (check for check in report.summary.checks if check.verdict == "failed")
    return "\n".join(for_terminal(f"  {check.name}: {check.finding} ({check.link})") for check in failed)


def _where(folder: Path) -> str:
    return for_terminal(f"  report: {folder / 'report.html'}, attacked images: {folder / 'examples.npz'}")
