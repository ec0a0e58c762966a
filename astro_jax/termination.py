"""SIGTERM: cluster schedulers and spot machines send this signal some time before they stop a machine.

A run asks at fixed points whether SIGTERM has come: after each training step, after each step of the search, and before
each call of the decode program. Then it saves, and ends with exit code 143. Several processes end at the same point:
JAX tells all of them of the signal that one of them got, and they agree on the first point that none has passed. (JAX's
own function for this, `reached_preemption_sync_point`, keeps the number of the last call alone, and Orbax calls it too,
with the numbers of training steps.)
"""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

from astro_jax import distributed
from astro_jax.progress import log

EXIT_CODE = 128 + signal.SIGTERM
# Kubernetes and spot machines give 30 s. What takes longer is given up: the run goes on from what was saved before.
EXIT_SECONDS = 25.0
_NOTICE_SECONDS = 1.0  # between two questions whether another process got SIGTERM
_NAME = "SIGTERM"


class Terminated(SystemExit):
    """Ends the run after SIGTERM, with exit code 143.

    Args:
      where: what was saved, for the message; empty where nothing had to be.
    """

    def __init__(self, where: str = ""):
        super().__init__(EXIT_CODE)
        self.where = where


class _Watch:
    """The watch of this process.

    Attributes:
      polls: calls of `is_due` so far. The processes of a run have equal numbers at equal points.
      end_at: the number of the first call of `is_due` that returns True; None before SIGTERM.
      lock: guards these two. While the processes agree on `end_at`, none of them passes a point.
      is_noticed: set when this process knows where to end, after SIGTERM to it or to another process of the run.
      is_left: set at the end of the watch.
    """

    def __init__(self) -> None:
        self.polls: int = 0
        self.end_at: int | None = None
        self.lock = threading.Lock()
        self.is_noticed, self.is_left = threading.Event(), threading.Event()

    def notice(self) -> None:
        """Agree on the point to end at, and end the process EXIT_SECONDS from now, unless the watch ends first."""
        log(f"{_NAME}: saves at the next chance, and ends within {EXIT_SECONDS:g} s")
        deadline = time.monotonic() + EXIT_SECONDS
        with self.lock, contextlib.suppress(RuntimeError):  # without an answer of a process there is no such point
            self.end_at = 1 + distributed.largest_over_processes(_NAME, self.polls, EXIT_SECONDS)
        self.is_noticed.set()
        if not self.is_left.wait(max(0.0, deadline - time.monotonic())):
            message = f"{_NAME}: ends without a save, which would take longer than {EXIT_SECONDS:g} s"
            log(message)
            distributed.exit_all(EXIT_CODE, message)


_watch: _Watch | None = None


@contextlib.contextmanager
def watch() -> Iterator[None]:
    """Notice SIGTERM inside the block, and end the process at the latest EXIT_SECONDS after the signal.

    Python runs handlers of signals in the main thread alone: in another thread the block has no effect.
    """
    global _watch
    if _watch is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    _watch = _Watch()
    try:
        with _signal(_watch) if distributed.process_count() == 1 else _notice_of_jax(_watch):
            yield
    except Terminated as e:
        log(f"{e.where}{': ' * bool(e.where)}stopped by {_NAME}; the same command goes on from here")
        raise
    finally:
        _watch = None


@contextlib.contextmanager
def _signal(state: _Watch) -> Iterator[None]:
    """Wait for the signal. A handler in Python would wait for the end of a call of XLA, so a thread waits."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def wait() -> None:
        while signals := reader.recv(64):
            if signal.SIGTERM in signals:
                return state.notice()

    handler = signal.signal(signal.SIGTERM, lambda *_: None)
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    try:
        yield
    finally:
        state.is_left.set()
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGTERM, handler)
        writer.close()
        thread.join()
        reader.close()


@contextlib.contextmanager
def _notice_of_jax(state: _Watch) -> Iterator[None]:
    """Wait for JAX's notice that a process got the signal. With several processes JAX has a handler of its own."""

    def wait() -> None:
        while not state.is_left.wait(_NOTICE_SECONDS):
            if distributed.has_preemption_notice():
                return state.notice()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    try:
        yield
    finally:
        state.is_left.set()
        thread.join()


def is_due() -> bool:
    """Return whether the run shall save and end now. All processes call this function at the same points."""
    if _watch is None:
        return False
    with _watch.lock:
        _watch.polls += 1
        return _watch.end_at is not None and _watch.polls >= _watch.end_at


def check() -> None:
    """Raise `Terminated` where the run shall end, with nothing to save here."""
    if is_due():
        raise Terminated


def end(where: str) -> NoReturn:
    """End the run after a save, once all processes have saved.

    Args:
      where: what was saved, for the message.

    Raises:
      Terminated: always.
    """
    distributed.assert_equal_across_processes(f"{_NAME}: saved")
    raise Terminated(where)
