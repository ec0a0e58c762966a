"""SIGTERM during a call that takes long."""

import os
import signal
import threading

from astro_jax.train import termination
from astro_jax.train.termination import Termination


def test_step_that_takes_too_long_is_given_up(monkeypatch):
    codes, given_up = [], threading.Event()

    def end(code):
        codes.append(code)
        given_up.set()

    monkeypatch.setattr(termination.os, "_exit", end)
    monkeypatch.setattr(termination, "EXIT_SECONDS", 0.05)
    with Termination("test") as t:
        assert not t.is_due(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert given_up.wait(10) and codes == [143] and t.is_due(2)


def test_step_that_ends_in_time_is_not_given_up(monkeypatch):
    monkeypatch.setattr(termination.os, "_exit", lambda code: None)
    with Termination("test") as t:
        os.kill(os.getpid(), signal.SIGTERM)
        assert t._is_noticed.wait(10) and t.is_due(1)
    assert not t._thread.is_alive()  # it would end the process later
