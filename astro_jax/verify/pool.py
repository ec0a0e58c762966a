"""Worker processes with a deadline an answer: killed at the deadline, and recycled.

They are forked from a server that is spawned, never from this process, where JAX has threads and a model's memory.
"""

from __future__ import annotations

import collections
import dataclasses
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from astro_jax.errors import AstroError
from astro_jax.verify import worker

START_SECONDS = 120.0  # imports of a first start on a slow disk
BATCH = 8  # questions that a worker is sent at once; each has its own deadline all the same
RECYCLED = 2000  # answers after which a worker is replaced: sympy's caches grow

Question = tuple[str, tuple[Any, ...]]  # a name of worker.FUNCTIONS, and its arguments


class Timeout(Exception):
    """No answer within the deadline."""


@dataclasses.dataclass
class Outcome:
    """Of one question: what the function returned, or a Timeout or RuntimeError in its place; and its seconds."""

    result: Any
    seconds: float


@dataclasses.dataclass
class _Worker:
    process: Any
    connection: Connection
    since: float  # when the answer under way was begun, or the worker started
    ready: bool = False
    answered: int = 0
    queue: collections.deque[int] = dataclasses.field(default_factory=collections.deque)


class Pool:
    """Asks questions of worker processes, which start with the first of them.

    Args:
      workers: processes. seconds: the deadline of one answer. memory: bytes that an answer may take.
      modules: what workers import before their first question.
    """

    def __init__(self, workers: int, seconds: float, memory: int, modules: Sequence[str] = ()):
        self.count, self.seconds, self.memory, self.modules = workers, seconds, memory, tuple(modules)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["astro_jax.verify.preload"])
        self._workers: list[_Worker] = []

    def ask(self, questions: Sequence[Question], done: Callable[[int, Outcome], None] | None = None) -> list[Outcome]:
        """The outcomes, in order.

        Args:
          done: called with each number and outcome as they come, in any order.

        Raises:
          AstroError: when a worker cannot be started.
        """
        found: dict[int, Outcome] = {}
        waiting = collections.deque(range(len(questions)))

        def finish(w: _Worker, number: int, result: Any) -> None:
            now = time.monotonic()
            found[number] = Outcome(result, now - w.since)
            w.since, w.answered = now, w.answered + 1
            if done:
                done(number, found[number])

        try:
            while len(found) < len(questions):
                self._feed(questions, waiting)
                for w in self._heard():
                    self._listen(w, waiting, finish)
                for w in [w for w in self._workers if self._late(w)]:
                    self._replace(w, waiting, finish, Timeout())
        except BaseException:
            self.close()  # what they work on is nobody's any more
            raise
        return [found[i] for i in range(len(questions))]

    def close(self) -> None:
        """End the workers; the next question starts new ones."""
        for w in self._workers:
            w.connection.close()
            w.process.kill()
        for w in self._workers:
            w.process.join()
        self._workers.clear()

    def _feed(self, questions: Sequence[Question], waiting: collections.deque[int]) -> None:
        """Give work to those that have none."""
        while len(self._workers) < min(self.count, len(waiting) + sum(bool(w.queue) for w in self._workers)):
            self._workers.append(self._start())
        for w in self._workers:
            if w.ready and not w.queue and waiting:
                # The last questions are shared out evenly.
                n = max(1, min(BATCH, len(waiting) // len(self._workers)))
                w.queue.extend(waiting.popleft() for _ in range(n))
                w.since = time.monotonic()
                w.connection.send([(i, *questions[i]) for i in w.queue])

    def _heard(self) -> Iterator[_Worker]:
        """Those that have something to say, before the next deadline."""
        now = time.monotonic()
        patience = min((w.since + self._allowed(w) - now for w in self._workers if w.queue or not w.ready), default=0)
        heard = wait([w.connection for w in self._workers], max(patience, 0))
        return (w for w in list(self._workers) if w.connection in heard)

    def _listen(self, w: _Worker, waiting: collections.deque[int], finish: Callable[[_Worker, int, Any], None]) -> None:
        try:
            said = w.connection.recv()
        except (EOFError, OSError):
            return self._replace(w, waiting, finish, RuntimeError("the worker died"))
        if not w.ready:
            w.ready = True
            return None
        number, result = said
        w.queue.remove(number)
        finish(w, number, result)
        if w.answered >= RECYCLED and not w.queue:
            self._stop(w)
        return None

    def _replace(
        self,
        w: _Worker,
        waiting: collections.deque[int],
        finish: Callable[[_Worker, int, Any], None],
        why: Exception,
    ) -> None:
        """Stop a worker: what it was at ends so, what it had not begun goes to others."""
        if not w.ready:
            raise AstroError(
                f"verify: a worker did not start ({str(why) or 'no answer'}); try again with verify.num_workers=1"
            )
        if w.queue:
            finish(w, w.queue.popleft(), why)
            waiting.extendleft(reversed(w.queue))
        self._stop(w)

    def _late(self, w: _Worker) -> bool:
        return bool(w.queue or not w.ready) and time.monotonic() - w.since > self._allowed(w)

    def _allowed(self, w: _Worker) -> float:
        return self.seconds if w.ready else START_SECONDS

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=worker.main, args=(theirs, self.seconds, self.memory, self.modules), daemon=True
        )
        process.start()
        theirs.close()
        return _Worker(process, ours, time.monotonic())

    def _stop(self, w: _Worker) -> None:
        self._workers.remove(w)
        w.connection.close()
        w.process.kill()
        w.process.join()
