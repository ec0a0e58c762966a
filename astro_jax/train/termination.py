"""SIGTERM: cluster schedulers send this signal some time before they stop a machine."""

from __future__ import annotations

import os
import signal
import socket
import threading
from types import TracebackType

from astro_jax import distributed
from astro_jax.progress import log

EXIT_CODE = 128 + signal.SIGTERM
# Kubernetes and spot machines give 30 s. A step and a checkpoint that take longer are given up: the run then goes on
# from the checkpoint before.
EXIT_SECONDS = 25.0


class Termination:
    """Notices SIGTERM inside a `with` block, and ends the process at the latest EXIT_SECONDS after it.

    A handler in Python would wait for the end of a call of XLA, such as a compilation. So a thread waits for SIGTERM.

    With several processes JAX tells all of them of the signal, and finds a step that none of them has begun.

    Args:
      stage: label of the messages.
    """

    def __init__(self, stage: str):
        self._stage = stage
        self._is_noticed, self._is_left = threading.Event(), threading.Event()

    def __enter__(self) -> Termination:
        self._handles = distributed.process_count() == 1 and threading.current_thread() is threading.main_thread()
        if self._handles:
            self._reader, self._writer = socket.socketpair()
            self._writer.setblocking(False)
            self._handler = signal.signal(signal.SIGTERM, lambda *_: None)
            self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def _watch(self) -> None:
        while signals := self._reader.recv(64):
            if signal.SIGTERM in signals:
                self._is_noticed.set()
                log(f"{self._stage}: SIGTERM: saves after this step, and ends within {EXIT_SECONDS:g} s")
                if not self._is_left.wait(EXIT_SECONDS):
                    os._exit(EXIT_CODE)
                return

    def is_due(self, step: int) -> bool:
        """Return whether the run shall save after this step, and end. Call after every step, in all processes."""
        if distributed.process_count() == 1:
            return self._is_noticed.is_set()
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._handles:
            return
        self._is_left.set()
        signal.set_wakeup_fd(self._wakeup)
        signal.signal(signal.SIGTERM, self._handler)
        self._writer.close()
        self._thread.join()
        self._reader.close()
