"""Published results: an entry for each run, and a page of all entries in a folder.

An entry has the fields of RobustBench's model cards with the same meaning (``clean_acc``, ``reported``, ``external``,
``unreliable``), in per cent. There is no ``autoattack_acc``: the suite is not that ensemble (docs/evaluation.md).
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from art_defenses_ext.base.declared import Kind, Text, declared_of, number
from art_defenses_ext.base.errors import InputError, RunError
from art_defenses_ext.base.files import reading, replace_file, writing
from art_defenses_ext.base.text import code_block, for_markdown, is_web_address, markdown_link
from art_defenses_ext.base.validation import check_path
from art_defenses_ext.evaluation.records.lines import parse_json
from art_defenses_ext.evaluation.records.proportion import Proportion
from art_defenses_ext.evaluation.report.described import describe_defences
from art_defenses_ext.evaluation.report.headlines import own_worst_case
from art_defenses_ext.evaluation.report.report import Report
from art_defenses_ext.evaluation.results.summary import Summary
from art_defenses_ext.evaluation.run.describe import command_of_whole

FORMAT = "art-defenses-ext entry 1"

AS_IN_RUN = ("defences", "device", "threads", "versions", "data_sha256", "model_sha256", "pipeline_sha256")
"""The fields of an entry that are copied from the run's description."""


def _web_address(value: Any) -> str:
    if not isinstance(value, str) or not is_web_address(value):  # readers of a page of results click on it
        raise ValueError
    return value


Link = Annotated[str, Kind("an address that begins with http:// or https://", _web_address)]
Percent = Annotated[float, number("a share from 0 to 100 per cent", lambda value: 0 <= value <= 100)]


@dataclass(frozen=True)
class Entry:
    """A published run; shares are in per cent.

    Attributes:
        format: ``FORMAT``.
        name: the name of the defended network.
        link: a link to the paper.
        dataset: name of the data set.
        architecture: class of the network.
        defences: name and options of each defence.
        threat: ``"linf"`` or ``"l2"``.
        eps: radius in pixel values.
        clean_acc: accuracy on clean images.
        reported: the robust accuracy that the paper prints for its own setting; None if it prints none.
        paper_acc: accuracy under the paper's own attacks in this run.
        robust_acc: robust accuracy: the worst case of each image over all attacks of the run.
        robust_interval: its 95 % interval.
        undefended_acc: robust accuracy of the undefended model under the same suite, on the same images; None if it was
            not evaluated.
        external: a lower robust accuracy that others have shown; None if none is known.
        unreliable: whether the attacks failed a check, so that ``robust_acc`` is only an upper bound.
        failed_checks: the failed checks.
        attacks: name of the attack suite.
        samples: number of images.
        seed: seed of the attacks.
        forward: images passed forwards per image, over all attacks.
        backward: images passed backwards per image, over all attacks.
        seconds: seconds per image.
        device: processor or GPU.
        threads: number of threads on the CPU.
        command: the command that made the run.
        versions: versions of Python and the packages.
        data_sha256: hash of images and labels.
        model_sha256: hash of the network.
        pipeline_sha256: hash of the defended classifier.
        evidence: the source of the added examples that show ``external``, with its link.
        rounds: number of rounds of more effort after the suite.
    """

    format: str
    name: Text
    link: Link | None
    dataset: Text
    architecture: str
    defences: list[dict[str, Any]]
    threat: str
    eps: float
    clean_acc: float
    reported: Percent | None
    paper_acc: float | None
    robust_acc: float
    robust_interval: tuple[float, float]
    undefended_acc: float | None
    external: Percent | None
    unreliable: bool
    failed_checks: list[str]
    attacks: str | list[str]
    samples: int
    seed: int
    forward: float
    backward: float
    seconds: float
    device: str
    threads: int
    command: Text
    versions: dict[str, str]
    data_sha256: str
    model_sha256: str
    pipeline_sha256: str
    evidence: list[str] = field(default_factory=list)
    rounds: int = 0

    def __post_init__(self) -> None:
        for name, kind in declared_of(Entry).items():
            kind.checked(name, getattr(self, name))

    @classmethod
    def of(
        cls,
        report: Report,
        dataset: str,
        *,
        name: str | None = None,
        link: str | None = None,
        reported: float | None = None,
        external: float | None = None,
        command: str | None = None,
    ) -> Entry:
        """Return the entry of a run.

        Args:
            report: the report of the run.
            dataset: name of its data set.
            name: name of the entry; by default the defences' names and options.
            link: a link to the paper.
            reported: robust accuracy in the paper, in per cent.
            external: robust accuracy that others have shown, in per cent; by default that of the examples that were
                added to the run.
            command: the command that made the run; by default the recorded one, without ``--shard``.

        Raises:
            InputError: for a run without a robust accuracy, since no adaptive attack ran or no checks were made, and
                for shares outside 0 to 100.
        """
        summary, run = report.summary, report.summary.run
        if summary.robust_accuracy is None:
            expected = "an adaptive attack suite, such as 'standard', and check_samples > 0"
            raise RunError(f"report has no robust accuracy ({summary.unknown}); a run of {expected} was expected")
        settings, total, beside = run.settings, summary.total, summary.against_undefended
        own = own_worst_case(summary)
        low, high = own.interval
        if external is None and own.count > summary.worst_case.count:
            external = _percent(summary.worst_case)
        return cls(
            format=FORMAT,
            name=describe_defences(run) if name is None else name,
            link=link,
            dataset=dataset,
            architecture=run.model,
            threat=settings.threat,
            eps=settings.eps,
            clean_acc=_percent(summary.clean),
            reported=reported,
            paper_acc=None if summary.paper is None else _percent(summary.paper),
            robust_acc=_percent(own),
            robust_interval=(round(100 * low, 2), round(100 * high, 2)),
            undefended_acc=None if beside is None else _percent(beside.worst_case),
            external=external,
            evidence=_evidence(summary),
            rounds=len(summary.rounds),
            unreliable=not summary.established,
            failed_checks=summary.failed_checks,
            attacks=settings.attacks,
            samples=settings.samples,
            seed=settings.seed,
            forward=round(total.forward / settings.samples, 1),
            backward=round(total.backward / settings.samples, 1),
            seconds=round(total.seconds / settings.samples, 4),
            command=command_of_whole(run) if command is None else command,
            **{field: getattr(run, field) for field in AS_IN_RUN},
        )

    def save(self, path: str | Path) -> None:
        """Write a JSON file.

        Raises:
            InputError: if it cannot be written.
        """
        path = check_path("path", path, "a file")
        with writing("path", path):
            replace_file(path, (json.dumps(asdict(self), indent=1, allow_nan=False) + "\n").encode())

    @classmethod
    def read(cls, path: str | Path) -> Entry:
        """Read an entry from a JSON file.

        Raises:
            InputError: for another file.
        """
        try:
            plain = parse_json(check_path("path", path, "a file").read_bytes())
            version = plain.get("format") if isinstance(plain, dict) else None
            if version != FORMAT:
                raise ValueError(f"format {version!r}")
            return TypeAdapter(cls).validate_python(plain)
        except InputError:
            raise
        except (OSError, ValueError, RecursionError) as error:
            reason = _cause(error) if isinstance(error, ValidationError) else str(error).splitlines()[0]
            raise RunError(f"{path} cannot be read ({reason}); an entry of format {FORMAT!r} was expected") from None

    @property
    def best_known(self) -> float:
        """The lowest known robust accuracy, in per cent."""
        return self.robust_acc if self.external is None else min(self.robust_acc, self.external)


def _cause(error: ValidationError) -> str:
    """Return the invalid field and the reason."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}".removeprefix(": ").removeprefix("Value error, ")


PICTURE = "accuracy.png"
"""The file of the picture, beside the page."""


def leaderboard(folder: str | Path) -> str:
    """Return a page in Markdown of all entries below a folder: a table for each data set and threat, most robust first.

    Radii that are equal to four digits, such as 8/255 and 0.03137, share a table. The page links to the entries as one
    in this folder does, and shows the picture that :func:`save_leaderboard` writes beside it.

    Raises:
        InputError: for a folder without entries, or a JSON file in it that is not an entry.
    """
    return _page(_entries_below(folder))


def save_leaderboard(folder: str | Path, page: str | Path) -> None:
    """Write the page of all entries below a folder, with links to them, and beside it the picture ``accuracy.png``.

    Raises:
        InputError: for a folder without entries, a JSON file in it that is not an entry, or a page that cannot be
            written.
    """
    from art_defenses_ext.evaluation.publish.picture import Point, accuracy_picture  # matplotlib takes long to import
    from art_defenses_ext.evaluation.report.figures.drawing import png

    def point(entry: Entry) -> Point:
        names = tuple(str(defence.get("name")) for defence in entry.defences)
        return Point(names, entry.clean_acc, entry.robust_acc, entry.robust_interval, entry.unreliable)

    page = check_path("page", page, "a file")
    groups = _entries_below(folder)
    picture = png(accuracy_picture({title: [point(entry) for _, entry in group] for title, group in groups.items()}))
    with writing("page", page):
        replace_file(page, _page(groups, _way(page.parent, Path(folder))).encode())
        replace_file(page.with_name(PICTURE), picture)


def _entries_below(folder: str | Path) -> dict[str, list[tuple[Path, Entry]]]:
    """Return the entries below a folder with their files, most robust first, by data set and threat in words."""
    root = check_path("folder", folder, "a folder")
    with reading(root, "a folder was expected"):
        files = sorted(root.rglob("*.json"))
    entries = [(path.relative_to(root), Entry.read(path)) for path in files]
    if not entries:
        raise RunError(f"folder is {folder}, which holds no entries; JSON files that `entry` wrote were expected")
    groups: dict[str, list[tuple[Path, Entry]]] = defaultdict(list)
    for path, entry in sorted(entries, key=lambda pair: (-pair[1].best_known, pair[1].name)):
        groups[f"{entry.dataset}, {entry.threat}, eps {entry.eps:.4g}"].append((path, entry))

    def place(title: str) -> tuple[str, str, float]:
        return min((entry.dataset, entry.threat, entry.eps) for _, entry in groups[title])

    return {title: groups[title] for title in sorted(groups, key=place)}


def _way(start: Path, end: Path) -> str:
    """Return the relative path from one folder to another."""
    return Path(os.path.relpath(end.resolve(), start.resolve())).as_posix()


LEGEND = f"""`art-defenses leaderboard` writes this page from the entries {{place}}, one JSON file for each run. All
figures are in per cent.

- **Robust**: robust accuracy under the adaptive attack suite, the mean over images of the minimum over all attacks,
  with its 95 % interval. *At most*: the attacks failed one of their checks, so the figure is an upper bound.
- **Paper's attacks**: accuracy under the attacks of the method's own paper alone. **Gap**: that minus the robust
  accuracy.
- The row *undefended model* is the model without a defence under the same suite. The column **undefended** is its
  robust accuracy on the same images, in tables of runs that evaluated both.
- With a detector, a rejected image counts as correct under an attack and as misclassified when clean. *Pair*: several
  defences at once.

Below each table, in the same order, are the settings of each run, its checks, its cost on the named machine, and
its command.

![Clean against robust accuracy of each run, a panel for each data set and threat]({PICTURE})"""

HEADS = ("defence", "robust", "paper's attacks", "gap", "clean", "images")
OPTIONAL = {"undefended": "undefended_acc", "reported by the paper": "reported"}
"""Optional columns of the tables, and the field of each."""


def _page(groups: Mapping[str, Sequence[tuple[Path, Entry]]], way: str = ".") -> str:
    """Return the page; ``way`` is the path from its folder to that of the entries."""
    parts = ["# Results", LEGEND.format(place="beside it" if way == "." else "that it links to")]
    for title, group in groups.items():
        parts += [f"## {for_markdown(title)}", _table([entry for _, entry in group])]
        for path, entry in group:
            parts += [_details(way / path, entry), code_block(entry.command.split("; "))]
    return "\n\n".join(parts) + "\n"


def _table(entries: Sequence[Entry]) -> str:
    optional = {head: [getattr(entry, name) for entry in entries] for head, name in OPTIONAL.items()}
    optional = {head: figures for head, figures in optional.items() if set(figures) != {None}}
    heads = [*HEADS, *optional]
    rows = [_row(entry) for entry in entries]
    rows = [[*row, *map(_or_none, extra)] for row, *extra in zip(rows, *optional.values(), strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *rows))


def _row(entry: Entry) -> list[str]:
    low, high = entry.robust_interval
    robust = f"{'at most ' * entry.unreliable}**{entry.robust_acc:.1f}** [{low:.1f}, {high:.1f}]"
    if entry.external is not None:
        robust += f", elsewhere {entry.external:.1f}"
    name = for_markdown(entry.name) if entry.link is None else markdown_link(entry.name, entry.link)
    return [
        f"{'pair: ' * (len(entry.defences) > 1)}{name}",
        robust,
        _or_none(entry.paper_acc),
        _or_none(None if entry.paper_acc is None else entry.paper_acc - entry.best_known),
        f"{entry.clean_acc:.1f}",
        str(entry.samples),
    ]


def _details(path: Path, entry: Entry) -> str:
    """Return the details of an entry that the table leaves out, in a paragraph."""
    suite = f"suite {entry.attacks}" if isinstance(entry.attacks, str) else f"{len(entry.attacks)} attacks of its own"
    if entry.rounds:
        suite += f" and {entry.rounds} round{'s' * (entry.rounds > 1)} of more effort"
    checks = f"failed {', '.join(entry.failed_checks)}" if entry.unreliable else "passed"
    cost = f"{entry.forward:.0f} forward and {entry.backward:.0f} backward passes and {entry.seconds:.2g} s per image"
    machine = f"{entry.device}, {entry.threads} {'thread' if entry.threads == 1 else 'threads'}"
    words = f"{entry.architecture}; {suite}, seed {entry.seed}; checks {checks}; {cost} ({machine})."
    return f"{markdown_link(path.stem, path.as_posix())}: {for_markdown(words)}"


def _or_none(share: float | None) -> str:
    return "" if share is None else f"{share:.1f}"


def _evidence(summary: Summary) -> list[str]:
    """Return the sources of the examples that were added to a run."""
    added = [row for row in summary.rows if row.source == "elsewhere"]
    return [f"{row.key}, {row.purpose}" for row in added]


def _percent(share: Proportion) -> float:
    return round(100 * share.rate, 2)
