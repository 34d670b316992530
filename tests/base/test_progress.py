"""Progress where there is no terminal: a line now and then."""

from __future__ import annotations

import logging

import pytest

from art_defenses_ext.base import progress


def test_without_a_terminal_a_line_is_printed_each_half_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds)
    with progress.progress_bar() as bar:
        task = bar.add_task("attacks", total=40, note="")
        for step in range(31):
            bar.update(task, advance=1, note=f"attack {step}")
            seconds += 1.0
        bar.advance(task)
    assert capsys.readouterr().err.splitlines() == ["attacks 31 of 40 attack 30"]


def test_silence_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seconds = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds)
    with progress.progress_bar(show=False) as bar:
        task = bar.add_task("attacks", total=2, note="")
        seconds += 100.0
        bar.advance(task)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("level", "is_bar", "is_shown"),
    [(logging.NOTSET, True, True), (logging.INFO, False, True), (logging.ERROR, True, False)],
)
def test_a_log_replaces_the_bar_and_errors_alone_silence_it(
    level: int, is_bar: bool, is_shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in a terminal
    progress.LOGGER.setLevel(level)
    try:
        bar = progress.progress_bar()
    finally:
        progress.LOGGER.setLevel(logging.NOTSET)
    assert isinstance(bar, progress._Lines) is not is_bar
    assert (is_bar and bar.disable) is not is_shown
