"""Progress where there is no terminal: a line now and then."""

from __future__ import annotations

import pytest

from art_defenses_ext.base import progress


def test_without_a_terminal_a_line_is_printed_each_half_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress.progress_bar() as bar:
        task = bar.add_task("attacks", total=40, note="")
        for step in range(31):
            bar.update(task, advance=1, note=f"attack {step}")
            now += 1.0
        bar.advance(task)
    assert capsys.readouterr().err.splitlines() == ["attacks 31 of 40 attack 30"]


def test_silence_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress.progress_bar(show=False) as bar:
        task = bar.add_task("attacks", total=2, note="")
        now += 100.0
        bar.advance(task)
    assert capsys.readouterr().err == ""
