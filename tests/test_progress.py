"""The progress bar on a terminal and without one."""

import io
import time

import pytest
from rich.console import Console

from astro_jax import progress
from astro_jax.progress import ProgressBar


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test moves."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_prints_a_line_every_15_s_and_at_the_end(clock, capsys):
    with ProgressBar("search", 40, "trees", done=10) as bar:
        clock[0] += 4
        bar.advance(5)
        assert capsys.readouterr().err == ""  # too soon
        clock[0] += 16
        bar.advance(15, solve_rate=0.25)
        # 20 of the remaining 30 in 20 s: 1 a second, 10 s for the other 10.
        assert capsys.readouterr().err.split() == ("search 30/40 1.0 trees/s solve rate 0.25 20 s, 10 s left".split())
        clock[0] += 1
        bar.advance(10)
        assert capsys.readouterr().err == ""
    assert "40/40" in (last := capsys.readouterr().err) and "0 s left" in last


def test_work_in_progress_counts_for_the_time_left_but_not_as_done(clock, capsys):
    with ProgressBar("search", 10, "trees") as bar:
        clock[0] += 20
        bar.advance(1, in_progress=3.0)  # the work of 4 trees in 20 s: 6 trees remain
        assert capsys.readouterr().err.split() == "search 1/10 0.2 trees/s 20 s, 30 s left".split()


def test_prints_nothing_after_an_error(clock, capsys):
    with pytest.raises(ValueError), ProgressBar("search", 4, "trees") as bar:
        bar.advance(1)
        raise ValueError
    assert capsys.readouterr().err == ""


def test_finished_work_prints_one_line(clock, capsys):
    with ProgressBar("astro-sft", 7, "steps", done=7):
        pass
    assert "7/7" in capsys.readouterr().err


def test_terminal_shows_a_live_bar(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda file: Console(file=screen, force_terminal=True, width=120))
    with ProgressBar("eval", 8, "problems") as bar:
        bar.advance(8, solved=0.5)
    assert "eval" in screen.getvalue() and "8/8" in screen.getvalue() and "solved 0.5" in screen.getvalue()
