"""Hostile arguments over the whole public API and the command: refused in words, or accepted for a reason.

    python tests/fuzz.py --seed 0 --cases 10000

A case is a valid call (``fuzz_targets.py``) of which one or two arguments are replaced by values of a pool
(``fuzz_pool.py``). Each argument declares which values are legitimate, independently of the product's own checks. A
case ends

- ``refused``: in an ``InputError`` on one printable line; of the command in a usage error (exit status 2);
- ``traceback``: in any other exception, in a message that a terminal would act on, or after too long a time;
- ``silent``: in an answer although a replaced value is not legitimate;
- otherwise the values were legitimate, and so is the answer.

Silent ones that are meant are in ``ARGUED``, each with its reason. The script ends with status 1 where there is a
traceback, or a silent case that nobody has argued for.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from fuzz_pool import POOL
from fuzz_targets import Target, World

from art_defenses_ext.base.errors import InputError

SECONDS = 20
"""Of the processor, after which a case has taken too long."""

ARGUED: tuple[tuple[str, str, str, str], ...] = (
    ("*", "batch_size", "a large number", "more than there are images: all of them at once"),
    ("L*", "eps", "'1'", "a number as text, as the command takes it"),
    ("FeatureAutoencoder.__call__", "x", "images of *", "a convolutional restorer takes images of any size"),
    ("*", "mean", "* of *", "one a channel: how many channels images have is seen when they come"),
    ("*", "std", "* of *", "one a channel: how many channels images have is seen when they come"),
)
"""Silent cases that are meant: patterns of target, argument and value, and why it is accepted."""


class TooLongError(BaseException):
    """Not an Exception, which a target might catch."""


@dataclass
class Tally:
    """What became of the cases."""

    refused: int = 0
    answered: int = 0
    tracebacks: list[tuple[str, str]] = field(default_factory=list)
    """(place and error, target and values)."""
    silent: list[tuple[str, str, str]] = field(default_factory=list)
    """(target, argument, value)."""

    @property
    def cases(self) -> int:
        return self.refused + self.answered + len(self.tracebacks) + len(self.silent)

    @property
    def unargued(self) -> list[tuple[str, str, str]]:
        return [call for call in self.silent if reason(*call) is None]

    def __str__(self) -> str:
        return (
            f"cases {self.cases}, refused {self.refused}, tracebacks {len(self.tracebacks)}, silent {len(self.silent)}"
            f" ({len(self.unargued)} of them unargued)"
        )


def reason(target: str, argument: str, value: str) -> str | None:
    """Why a silent case is meant."""
    for target_pattern, argument_pattern, value_pattern, why in ARGUED:
        patterns = ((target, target_pattern), (argument, argument_pattern), (value, value_pattern))
        if all(fnmatchcase(name, pattern) for name, pattern in patterns):
            return why
    return None


def run(seed: int, cases: int, *, only: str = "*", world: World | None = None) -> Tally:
    """Draw so many cases, in a world of their own or in a given one, and see what becomes of each."""
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")
        world = World(Path(folder)) if world is None else world
        # Whatever is written to a relative path stays in the folder.
        with contextlib.chdir(world.working):
            _draw(seed, cases, only, world, tally)
    return tally


def _draw(seed: int, cases: int, only: str, world: World, tally: Tally) -> None:
    targets = [target for target in world.targets() if fnmatchcase(target.name, only)]
    weights = [target.weight * len(target.arguments) for target in targets]
    for number in range(cases):
        draw = random.Random(f"{seed} {number}")
        (target,) = draw.choices(targets, weights)
        _case(target, draw, world, tally)
        world.forget()


def _case(target: Target, draw: random.Random, world: World, tally: Tally) -> None:
    values = target.valid()
    count = 1 if len(target.arguments) == 1 or draw.random() < 0.7 else 2
    replaced: dict[str, str] = {}
    for argument in draw.sample(sorted(target.arguments), count):
        kind = target.arguments[argument]
        name = draw.choice([entry for entry in POOL if entry not in kind.leaves_out])
        values[argument] = POOL[name](world)
        replaced[argument] = name
    senseless = [
        argument for argument in replaced if not _legitimate(target.arguments[argument].holds, values[argument])
    ]
    label = f"{target.name}({', '.join(f'{argument}={name}' for argument, name in replaced.items())})"
    try:
        with within(SECONDS):
            target.call(values)
    except InputError as error:
        texts = [str(error), *getattr(error, "__notes__", [])]
        if all(text.isprintable() for text in texts):
            tally.refused += 1
        else:
            tally.tracebacks.append(("a message that is not printable", f"{label}: {texts!r}"))
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:
        tally.tracebacks.append((_place(error), label))
    else:
        if senseless:
            tally.silent += [(target.name, argument, replaced[argument]) for argument in senseless[:1]]
        else:
            tally.answered += 1


def _legitimate(holds: Callable[[Any], bool], value: Any) -> bool:
    try:
        return bool(holds(value))
    except Exception:  # a declaration need not be ready for every value
        return False


def _place(error: BaseException) -> str:
    """The last line of the package that the error came through, and the error."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "art_defenses_ext" in frame.filename]
    place = "outside the package"
    if frames:
        last = frames[-1]
        place = f"{last.filename.rpartition('art_defenses_ext/')[2]}:{last.lineno} {last.name}"
    try:
        text = " ".join(str(error).split())[:100]
    except Exception:
        text = "?"
    return f"{place}  {type(error).__name__}: {text}"


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """Break off after so many seconds of the processor; where alarms are not to be had, never."""

    def ring(_number: int, _frame: FrameType | None) -> None:
        raise TooLongError(f"more than {seconds} s")

    try:
        former = signal.signal(signal.SIGPROF, ring)
    except (AttributeError, ValueError):
        yield
        return
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, former)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What targets print goes nowhere."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def report(tally: Tally) -> str:
    """The tally, tracebacks by place, silent cases by argument."""
    lines = [str(tally)]
    places: dict[str, list[str]] = {}
    for place, label in tally.tracebacks:
        places.setdefault(place.partition(": ")[0] if "  " in place else place, []).append(f"{label}  {place[-60:]}")
    for place, labels in sorted(places.items(), key=lambda pair: -len(pair[1])):
        lines += [f"traceback {len(labels)} x {place}", *(f"    {label}" for label in sorted(set(labels))[:3])]
    for (target, argument, value), count in sorted(Counter(tally.silent).items()):
        why = reason(target, argument, value)
        lines.append(f"silent {count} x {target} {argument} = {value}: {why or 'NOT ARGUED FOR'}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--only", default="*", help="pattern of targets' names")
    options = parser.parse_args()
    tally = run(options.seed, options.cases, only=options.only)
    print(report(tally))
    return 1 if tally.tracebacks or tally.unargued else 0


if __name__ == "__main__":
    sys.exit(main())
