"""A pool of worker processes with a deadline for each call. A worker is killed at the deadline, and replaced.

Workers are forked from a fork server, never from this process, because this process has JAX's threads and the memory of
a model.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from astro_jax.errors import AstroError
from astro_jax.verify import worker

START_SECONDS = 120.0  # the deadline for a worker's start, with imports from a slow disk
MAX_BATCH = 8  # calls that a worker is sent at once; each call has its own deadline
MAX_CALLS = 2000  # calls after which a worker is replaced, because sympy's caches grow


class Call(NamedTuple):
    """One call of a function in a worker process.

    Attributes:
      function: a name of worker.FUNCTIONS.
      arguments: the arguments of the function.
    """

    function: str
    arguments: tuple[Any, ...]


class Timeout(Exception):
    """The call had no result at its deadline."""


class WorkerStartError(AstroError):
    """A worker process died or did not end its imports in time."""


@dataclasses.dataclass
class Outcome:
    """The outcome of one call.

    Attributes:
      result: the return value of the function, or a Timeout or RuntimeError.
      seconds: the duration of the call.
    """

    result: Any
    seconds: float


@dataclasses.dataclass
class _Worker:
    """A worker process.

    Attributes:
      since: when the current call began, or when the worker was started.
      ready: whether the worker has finished its imports.
      completed: the number of calls that the worker has completed.
      queue: the indices of the calls that the worker has been sent. The first is the current call.
    """

    process: Any
    connection: Connection
    since: float
    ready: bool = False
    completed: int = 0
    queue: collections.deque[int] = dataclasses.field(default_factory=collections.deque)


class WorkerPool:
    """A pool of worker processes. The first call starts the workers.

    Args:
      num_workers: the number of processes.
      seconds: the deadline of one call.
      memory: bytes that one worker may take in addition to the memory of its imports. None: workers without a fence,
        for code of the user.
      modules: modules that a worker imports before its first call.
      initializer: a call that each worker runs before its first call, without a deadline of its own. Its result is
        dropped.
      retries: how often a call runs again after a missed deadline or a dead worker.
    """

    def __init__(
        self,
        num_workers: int,
        seconds: float,
        memory: int | None,
        modules: Sequence[str] = (),
        initializer: Call | None = None,
        retries: int = 0,
    ):
        self.num_workers, self.seconds, self.memory, self.modules = num_workers, seconds, memory, tuple(modules)
        self.initializer, self.retries = initializer, retries
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["astro_jax.verify.preload"])
        self._workers: list[_Worker] = []

    def add_modules(self, modules: Sequence[str]) -> None:
        """Have workers import further modules before their first call. Workers without these modules are ended."""
        if new := tuple(module for module in modules if module not in self.modules):
            self.close()
            self.modules += new

    def run(self, calls: Sequence[Call], on_outcome: Callable[[int, Outcome], None] | None = None) -> list[Outcome]:
        """Run calls.

        Args:
          on_outcome: called with the index and the outcome of each call when the call ends, in any order.

        Returns:
          The outcomes of the calls, in order.

        Raises:
          WorkerStartError: if a worker cannot be started.
        """
        batch = _Batch(calls, on_outcome)
        try:
            while len(batch.outcomes) < len(calls):
                self._send_calls(batch)
                for w in self._wait():
                    self._receive(w, batch)
                for w in [w for w in self._workers if w.queue or not w.ready]:
                    if time.monotonic() - w.since > self._deadline(w):
                        self._fail(w, batch, Timeout())
        except BaseException:
            self.close()  # the results of the current calls have no reader any more
            raise
        return [batch.outcomes[i] for i in range(len(calls))]

    def close(self) -> None:
        """End the workers. The next call starts new workers."""
        for w in self._workers:
            self._kill(w)
        for w in self._workers:
            w.process.join()
        self._workers.clear()

    def _send_calls(self, batch: _Batch) -> None:
        """Start the workers that are needed, and send calls to the workers that have none."""
        busy = sum(bool(w.queue) for w in self._workers)
        while len(self._workers) < min(self.num_workers, len(batch.waiting) + busy):
            self._workers.append(self._start())
        for w in self._workers:
            if w.ready and not w.queue and batch.waiting:
                # The last calls are spread evenly over the workers.
                n = max(1, min(MAX_BATCH, len(batch.waiting) // len(self._workers)))
                w.queue.extend(batch.waiting.popleft() for _ in range(n))
                w.since = time.monotonic()
                w.connection.send([(i, *batch.calls[i]) for i in w.queue])

    def _wait(self) -> list[_Worker]:
        """Wait for messages until the next deadline, and return the workers that have sent a message."""
        now = time.monotonic()
        seconds = min((w.since + self._deadline(w) - now for w in self._workers if w.queue or not w.ready), default=0)
        connections = wait([w.connection for w in self._workers], max(seconds, 0))
        return [w for w in self._workers if w.connection in connections]

    def _receive(self, w: _Worker, batch: _Batch) -> None:
        """Receive one message of a worker: the first says that the worker is ready, the others are results."""
        try:
            message = w.connection.recv()
        except (EOFError, OSError):
            return self._fail(w, batch, RuntimeError("the worker died"))
        if not w.ready:
            w.ready = True
            return None
        index, result = message
        w.queue.remove(index)
        batch.finish(w, index, result)
        if w.completed >= MAX_CALLS and not w.queue:
            self._stop(w)
        return None

    def _fail(self, w: _Worker, batch: _Batch, error: Exception) -> None:
        """Stop a worker. Its current call runs again or ends with the error; its other calls go to other workers."""
        if not w.ready:
            raise WorkerStartError(
                f"verify: a worker did not start ({str(error) or 'timeout'}); try again with verify.num_workers=1"
            )
        if w.queue:
            batch.failures[w.queue[0]] += 1
            if batch.failures[w.queue[0]] > self.retries:
                batch.finish(w, w.queue.popleft(), error)
            batch.waiting.extendleft(reversed(w.queue))
        self._stop(w)

    def _deadline(self, w: _Worker) -> float:
        return self.seconds if w.ready else START_SECONDS

    def _start(self) -> _Worker:
        parent_end, worker_end = self._context.Pipe()
        process = self._context.Process(
            target=worker.main,
            args=(worker_end, self.seconds, self.memory, self.modules, self.initializer),
            daemon=self.memory is not None,  # a daemon may start no processes by multiprocessing
        )
        process.start()
        worker_end.close()
        return _Worker(process, parent_end, time.monotonic())

    def _stop(self, w: _Worker) -> None:
        self._workers.remove(w)
        self._kill(w)
        w.process.join()

    def _kill(self, w: _Worker) -> None:
        w.connection.close()
        if self.memory is None:  # code of the user may have started processes of its own
            with contextlib.suppress(ProcessLookupError):
                os.killpg(w.process.pid, signal.SIGKILL)
        w.process.kill()


class _Batch:
    """The calls of one WorkerPool.run: the indices that wait for a worker, the outcomes and the failures so far."""

    def __init__(self, calls: Sequence[Call], on_outcome: Callable[[int, Outcome], None] | None):
        self.calls, self.on_outcome = calls, on_outcome
        self.waiting = collections.deque(range(len(calls)))
        self.outcomes: dict[int, Outcome] = {}
        self.failures = collections.Counter[int]()

    def finish(self, w: _Worker, index: int, result: Any) -> None:
        """Keep the outcome of a worker's current call."""
        now = time.monotonic()
        self.outcomes[index] = Outcome(result, now - w.since)
        w.since, w.completed = now, w.completed + 1
        if self.on_outcome:
            self.on_outcome(index, self.outcomes[index])
