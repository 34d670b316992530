"""The processes of an evaluation: this one for the whole or a part, or several that share the run and its rounds."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from art_defenses_ext.base.errors import InputError
from art_defenses_ext.cli.evaluate import EvaluateOptions, Prepared, check_run, checked, shard_of
from art_defenses_ext.cli.show import resumable, say, set_noise, show_report
from art_defenses_ext.evaluation.evaluate import evaluate, evaluate_shard, price
from art_defenses_ext.evaluation.merge import join_parts, join_rounds, report_of
from art_defenses_ext.evaluation.report.report import Report
from art_defenses_ext.evaluation.run.folder import MANIFEST, RunDirectory, read_manifest
from art_defenses_ext.evaluation.run.rounds import is_evaluated, rounds_follow
from art_defenses_ext.evaluation.run.shard import WHOLE, Shard


def attack_and_report(options: EvaluateOptions) -> None:
    """Attack a defended classifier, and print whether the defence helps.

    Every attack of the suite runs, and each image counts by its worst case.
    """
    part, out = shard_of(options), options.out
    with resumable(out, options.overwrite):
        if options.processes > 1 and not options.price:
            show_report(_in_processes(options, part), out)
            return
        task = Prepared.of(options, part)
        arguments = task.arguments | _written(options)
        if options.price:
            for line in price(*task.call, **task.arguments).lines():
                say(line)
        elif out is not None and not part.is_whole:
            folder = evaluate_shard(*task.call, shard=part, out=out, **arguments)
            left = "nothing is left to do; its report" if folder == out else f"{folder}; when all are done"
            say(f"Part {part}: {left}: art-defenses merge {out}")
        else:
            show_report(evaluate(*task.call, out=out, **arguments), out)


def _written(options: EvaluateOptions) -> dict[str, Any]:
    """Return the arguments of :func:`.evaluate` for its folder."""
    return {"overwrite": options.overwrite, "save_examples": options.save_examples}


def _in_processes(options: EvaluateOptions, part: Shard) -> Report:
    """Make an evaluation in several processes, which share the processor's cores; return the report of the whole.

    Raises:
        InputError: for options that cannot be used, before a process starts; also whatever fails in a process.
    """
    out, count = options.out, options.processes
    if out is None or not part.is_whole:
        missing = "out is missing" if out is None else f"shard is {part}"
        raise InputError(f"processes is {count}, but {missing}; a folder for the whole was expected")
    shards = [Shard(number, count) for number in range(1, count + 1)]
    _check_parts(options, shards)
    folders = [out / shard.folder for shard in shards]
    if options.overwrite:
        _clear([out, *folders])
    each = replace(options, processes=1, overwrite=False, threads=options.threads or _threads(out, count))
    parts = [replace(each, shard=str(shard)) for shard in shards]
    level = logging.getLogger("art_defenses_ext").level
    spawn = get_context("spawn")  # torch's threads do not outlive a fork
    with ProcessPoolExecutor(count, spawn, initializer=_begin_process, initargs=(level,)) as pool:
        _make_and_join(out, folders, lambda: list(pool.map(_make_part, parts)))
    return report_of(out)


def _begin_process(level: int) -> None:
    """Print as much as the first process does; an interruption, which all processes get, ends this one in silence."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    set_noise(level)


def _clear(folders: list[Path]) -> None:
    """Remove the files of earlier runs."""
    for folder in folders:
        if (folder / MANIFEST).exists():
            with RunDirectory(folder, overwrite=True):
                pass


def _make_and_join(out: Path, folders: list[Path], make: Callable[[], object]) -> None:
    """Make all parts and join them, and then each round.

    Args:
        out: folder of the run.
        folders: folders of the parts.
        make: makes all parts, or of a merged run those of its next round.
    """
    if all(map(is_evaluated, folders)):
        join_parts(folders, out)  # which may have been interrupted before
    make()
    if all((folder / MANIFEST).exists() for folder in folders):
        join_parts(folders, out)
    join_rounds(out, len(folders))
    while rounds_follow(out):
        make()
        join_rounds(out, len(folders))


def _threads(out: Path, count: int) -> int:
    """Return the number of threads of each process: that of the run in the folder, or an equal share of the cores."""
    if (out / MANIFEST).exists():
        return read_manifest(out).run.threads
    return max(1, (os.cpu_count() or 1) // count)


def _check_parts(options: EvaluateOptions, shards: list[Shard]) -> None:
    """Check all options, and what the folders of the parts hold."""
    threat, _, images, samples = checked(options, WHOLE)
    for shard in shards:
        check_run(options, threat, images, samples, shard)


def _make_part(options: EvaluateOptions) -> None:
    """Evaluate one part, or its share of the next round; the first part shows a progress bar."""
    part, out = shard_of(options), options.out
    assert out is not None
    task = _prepared(replace(options, shard=None, overwrite=True))  # what is in the folder was checked before
    arguments = task.arguments | _written(options)
    evaluate_shard(*task.call, shard=part, out=out, progress=part.number == 1, **arguments)


@lru_cache(maxsize=1)
def _prepared(options: EvaluateOptions) -> Prepared:
    """Return the arguments for all parts and rounds of a process, which loads and trains the network once."""
    return Prepared.of(options, WHOLE)
