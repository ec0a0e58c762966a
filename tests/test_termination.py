"""SIGTERM: what a watch notices, and that a long call is given up."""

import os
import signal
import threading

import pytest

from astro_jax import termination


@pytest.fixture
def ends(monkeypatch):
    """The exit codes with which the process would have ended, and an event that is set then."""
    codes, ended = [], threading.Event()

    def end(code, message):
        codes.append((code, message))
        ended.set()

    monkeypatch.setattr(termination.distributed, "exit_all", end)
    return codes, ended


def test_call_that_takes_too_long_is_given_up(ends, monkeypatch):
    codes, ended = ends
    monkeypatch.setattr(termination, "EXIT_SECONDS", 0.05)
    with termination.watch():
        assert not termination.is_due()
        os.kill(os.getpid(), signal.SIGTERM)
        assert ended.wait(10) and termination.is_due()
    assert codes == [(143, "SIGTERM: ends without a save, which would take longer than 0.05 s")]


def test_call_that_ends_in_time_is_not_given_up(ends, monkeypatch):
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(termination.Terminated) as error, termination.watch():
        with termination.watch():  # of a part of the run: the outer one counts
            termination.check()
        os.kill(os.getpid(), signal.SIGTERM)
        assert termination._watch.is_noticed.wait(10)
        termination.check()
    assert error.value.code == 143 and not ends[0] and signal.getsignal(signal.SIGTERM) == handler


def test_without_a_watch_nothing_is_due():
    termination.check()
    assert not termination.is_due()


def test_processes_end_at_the_first_point_that_none_has_passed(ends, monkeypatch):
    """This process has passed two points, and another one four. What Orbax tells JAX does not count."""
    noticed = threading.Event()
    monkeypatch.setattr(termination, "_NOTICE_SECONDS", 0.01)
    monkeypatch.setattr(termination.distributed, "process_count", lambda: 2)
    monkeypatch.setattr(termination.distributed, "has_preemption_notice", noticed.is_set)
    monkeypatch.setattr(termination.distributed, "largest_over_processes", lambda name, number, timeout: max(number, 4))
    with termination.watch():
        assert [termination.is_due() for _ in range(2)] == [False, False]
        noticed.set()
        assert termination._watch.is_noticed.wait(10)
        assert [termination.is_due() for _ in range(4)] == [False, False, True, True]


def test_notice_of_another_process_ends_a_long_call(ends, monkeypatch):
    codes, ended = ends
    monkeypatch.setattr(termination, "EXIT_SECONDS", 0.01)
    monkeypatch.setattr(termination, "_NOTICE_SECONDS", 0.01)
    monkeypatch.setattr(termination.distributed, "process_count", lambda: 2)
    monkeypatch.setattr(termination.distributed, "has_preemption_notice", lambda: True)
    with termination.watch():
        assert ended.wait(10)
    assert [code for code, _ in codes] == [143]
