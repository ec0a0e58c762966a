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
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from astro_jax.errors import TransientError
from astro_jax.verify import worker

START_SECONDS = 120.0  # the deadline for a worker's start, with imports from a slow disk
MAX_DEAD_STARTS = 3  # workers in a row that may die before they are ready: memory can be short for a moment
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


class WorkerStartError(TransientError):
    """Workers died, one after another, before they were ready, or one did not end its imports in time."""


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
        self._dead_starts = 0  # in a row

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
        batch = _Batch(on_outcome)
        for call in calls:
            batch.add(call)
        batch.is_whole = True
        self._run(batch)
        return batch.in_order()

    @contextlib.contextmanager
    def stream(self) -> Iterator[CallStream]:
        """Run calls while the thread that adds them does other work. Inside, nothing else may use the pool.

        Raises:
          WorkerStartError: from `CallStream.outcomes`.
        """
        stream = CallStream(self._run)
        try:
            yield stream
        finally:
            stream.cancel()

    def _run(self, batch: _Batch) -> None:
        """Run the calls of a batch until it is whole and all its calls have ended."""
        try:
            while not batch.has_ended:
                self._send_calls(batch)
                for w in self._wait(batch.wake):
                    self._receive(w, batch)
                for w in [w for w in self._workers if w.queue or not w.ready]:
                    if time.monotonic() - w.since > self._deadline(w):
                        self._fail(w, batch, Timeout())
        except BaseException:
            self.close()  # the results of the current calls have no reader any more
            raise

    def close(self) -> None:
        """End the workers. The next call starts new workers."""
        for w in self._workers:
            self._kill(w)
        for w in self._workers:
            w.process.join()
        self._workers.clear()
        self._dead_starts = 0

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
                try:
                    w.connection.send([(i, *batch.calls[i]) for i in w.queue])
                except OSError:  # it died before it took a call: no call is to blame, so it counts as a dead start
                    batch.waiting.extendleft(reversed(w.queue))
                    w.queue.clear()
                    w.ready = False

    def _wait(self, wake: Connection | None) -> list[_Worker]:
        """Wait for messages until the next deadline, and return the workers that have sent a message.

        Args:
          wake: a message on it ends the wait too.
        """
        now = time.monotonic()
        deadlines = [w.since + self._deadline(w) for w in self._workers if w.queue or not w.ready]
        seconds = max(min(deadlines) - now, 0) if deadlines else None if wake else 0
        ready = wait([*(w.connection for w in self._workers), *([wake] if wake else [])], seconds)
        while wake is not None and wake.poll():
            wake.recv_bytes()
        return [w for w in self._workers if w.connection in ready]

    def _receive(self, w: _Worker, batch: _Batch) -> None:
        """Receive one message of a worker: the first says that the worker is ready, the others are results."""
        try:
            message = w.connection.recv()
        except (EOFError, OSError):
            return self._fail(w, batch, RuntimeError("the worker died"))
        if not w.ready:
            w.ready = True
            return None
        self._dead_starts = 0
        index, result = message
        w.queue.remove(index)
        batch.finish(w, index, result)
        if w.completed >= MAX_CALLS and not w.queue:
            self._stop(w)
        return None

    def _fail(self, w: _Worker, batch: _Batch, error: Exception) -> None:
        """Stop a worker. Its current call runs again or ends with the error; its other calls go to other workers."""
        if not w.ready:
            self._dead_starts += 1
            if isinstance(error, Timeout) or self._dead_starts >= MAX_DEAD_STARTS:
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


class CallStream:
    """Calls that run in a thread of their own, from `WorkerPool.stream`. The first call starts the thread.

    Args:
      run: `WorkerPool._run`.
    """

    def __init__(self, run: Callable[[_Batch], None]):
        self._wake, self._waker = multiprocessing.Pipe(duplex=False)
        self._batch = _Batch(wake=self._wake)
        self._run, self._thread = run, threading.Thread(target=self._work, daemon=True)
        self._error: BaseException | None = None

    def add(self, call: Call) -> int:
        """Add a call. Return its number, from 0."""
        number = self._batch.add(call)
        if number == 0:
            self._thread.start()
        elif self._thread.is_alive():  # it ends early with an error, and then reads no message
            self._waker.send_bytes(b".")
        return number

    def outcome(self, number: int) -> Outcome | None:
        """Return the outcome of a call; None while the call has not ended."""
        return self._batch.outcomes.get(number)

    def outcomes(self) -> list[Outcome]:
        """Wait for the outcomes of all calls, in the order in which they were added. No call may follow."""
        self._end()
        if self._error is not None:
            raise self._error
        return self._batch.in_order()

    def cancel(self) -> None:
        """End the thread, and the calls that still run."""
        self._batch.is_cancelled = True
        self._end()
        self._waker.close()
        self._wake.close()

    def _end(self) -> None:
        self._batch.is_whole = True
        if self._thread.is_alive():
            self._waker.send_bytes(b".")
            self._thread.join()

    def _work(self) -> None:
        try:
            self._run(self._batch)
        except BaseException as e:  # the thread that waits for the outcomes raises it
            self._error = e


class _Cancelled(Exception):
    """Nobody waits for the outcomes any more."""


class _Batch:
    """The calls of one WorkerPool.run or CallStream.

    Attributes:
      calls: all calls so far.
      waiting: the indices that wait for a worker.
      outcomes, failures: so far, by index.
      is_whole: whether no further call will be added.
      is_cancelled: whether nobody waits for the outcomes any more.
      wake: a message on it tells of a new call, or of a change of these two. None: neither can happen.
    """

    def __init__(self, on_outcome: Callable[[int, Outcome], None] | None = None, wake: Connection | None = None):
        self.on_outcome, self.wake = on_outcome, wake
        self.calls: list[Call] = []
        self.waiting = collections.deque[int]()
        self.outcomes: dict[int, Outcome] = {}
        self.failures = collections.Counter[int]()
        self.is_whole = self.is_cancelled = False

    @property
    def has_ended(self) -> bool:
        """Whether all calls have ended and no other will come."""
        if self.is_cancelled and len(self.outcomes) < len(self.calls):
            raise _Cancelled
        return self.is_whole and len(self.outcomes) == len(self.calls)

    def add(self, call: Call) -> int:
        """Add a call. Return its index."""
        self.calls.append(call)
        self.waiting.append(len(self.calls) - 1)
        return len(self.calls) - 1

    def in_order(self) -> list[Outcome]:
        """The outcomes of all calls, in order."""
        return [self.outcomes[i] for i in range(len(self.calls))]

    def finish(self, w: _Worker, index: int, result: Any) -> None:
        """Keep the outcome of a worker's current call."""
        now = time.monotonic()
        self.outcomes[index] = Outcome(result, now - w.since)
        w.since, w.completed = now, w.completed + 1
        if self.on_outcome:
            self.on_outcome(index, self.outcomes[index])
