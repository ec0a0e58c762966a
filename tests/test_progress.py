"""The progress bar where there is no terminal, and where there is one."""

import io
import time

import pytest
from rich.console import Console

from astro_jax import progress
from astro_jax.progress import ProgressBar


@pytest.fixture
def clock(monkeypatch):
    """Time that stands still until it is moved."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_line_is_printed_now_and_then_and_at_the_end(clock, capsys):
    with ProgressBar("search", 40, "trees", done=10) as bar:
        clock[0] += 4
        bar.advance(5)
        assert capsys.readouterr().err == ""  # too soon
        clock[0] += 16
        bar.advance(15, solve_rate=0.25)
        # 20 of the 30 that were left, in 20 s: one a second, 10 more.
        assert capsys.readouterr().err.split() == ("search 30/40 1.0 trees/s solve rate 0.25 20 s, 10 s left".split())
        clock[0] += 1
        bar.advance(10)
        assert capsys.readouterr().err == ""
    assert "40/40" in (last := capsys.readouterr().err) and "0 s left" in last


def test_work_under_way_counts_for_the_time_left_and_not_as_done(clock, capsys):
    with ProgressBar("search", 10, "trees") as bar:
        clock[0] += 20
        bar.advance(1, part=3.0)  # four trees' worth of work in 20 s: six are left
        assert capsys.readouterr().err.split() == "search 1/10 0.2 trees/s 20 s, 30 s left".split()


def test_nothing_is_claimed_after_an_error(clock, capsys):
    with pytest.raises(ValueError), ProgressBar("search", 4, "trees") as bar:
        bar.advance(1)
        raise ValueError
    assert capsys.readouterr().err == ""


def test_a_stage_that_was_finished_before_prints_one_line(clock, capsys):
    with ProgressBar("astro-sft", 7, "steps", done=7):
        pass
    assert "7/7" in capsys.readouterr().err


def test_a_terminal_gets_a_live_bar(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda file: Console(file=screen, force_terminal=True, width=120))
    with ProgressBar("eval", 8, "problems") as bar:
        bar.advance(8, solved=0.5)
    assert "eval" in screen.getvalue() and "8/8" in screen.getvalue() and "solved 0.5" in screen.getvalue()
