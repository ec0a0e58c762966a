"""Is this response right? Exact where the task allows it; model output is parsed, never evaluated."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal

from astro_jax import config as cfg
from astro_jax import distributed
from astro_jax.errors import AstroError
from astro_jax.phrases import count_backtracks
from astro_jax.types import Problem, Response, Verdict
from astro_jax.verify.answer import Rule
from astro_jax.verify.math import Graded
from astro_jax.verify.pool import Outcome, Pool, Question, Timeout
from astro_jax.verify.tally import Tally

IN_WORKERS = ("math", "gym")  # tasks whose answers are parsed by libraries
ENOUGH = 200  # verdicts before a run is stopped for those that failed


class Verifier:
    """Judges responses, many in one call, and counts the verdicts by status.

    Countdown and numbers are exact and judged here, other tasks in worker processes, which start when first needed.

    Attributes:
      tally: of the verdicts so far.
    """

    def __init__(self, c: cfg.Verify | None = None):
        self.c = c or cfg.Verify()
        self.tally = Tally()
        self._pool: Pool | None = None

    def judge(self, responses: Sequence[Response], use: Literal["reward", "report"] = "reward") -> list[Verdict]:
        """A verdict for each, in order.

        Args:
          use: which rule of the config answers of mathematics are judged by.

        Raises:
          AstroError: when too large a share of what was judged so far has no verdict (verify.max_failed_share).
        """
        remote = [i for i, r in enumerate(responses) if r.problem.task in IN_WORKERS and r.stopped]
        if any(responses[i].problem.task == "gym" for i in remote):
            self._load("reasoning_gym")
        asked = self._ask([_question(responses[i], getattr(self.c, f"{use}_rule")) for i in remote])
        found = dict(zip(remote, asked, strict=True))
        verdicts = [self._verdict(r, found[i]) if i in found else verify(*r) for i, r in enumerate(responses)]
        self.tally.add(v.status for v in verdicts)
        self._stop_if_failing(responses)
        return verdicts

    def readable(self, golds: Sequence[str]) -> list[bool]:
        """Which gold answers of mathematics can be read."""
        return [o.result is True for o in self.pool.ask([("readable", (gold,)) for gold in golds])]

    @property
    def pool(self) -> Pool:
        """The workers."""
        if self._pool is None:
            self._pool = Pool(
                self.c.num_workers or os.cpu_count() or 1, self.c.timeout_seconds, int(self.c.memory_gib * 2**30)
            )
        return self._pool

    def _ask(self, questions: Sequence[Question]) -> list[Outcome]:
        """The outcomes, in order; of several processes each asks its own workers a part, and all have all of them."""
        n = distributed.process_count()
        if n == 1:
            return self.pool.ask(questions)
        mine = self.pool.ask(questions[distributed.process_index() :: n])
        found: list[Outcome] = [Outcome(None, 0.0)] * len(questions)
        for i, theirs in enumerate(distributed.all_gather("verdicts", [_packed(outcome) for outcome in mine])):
            found[i::n] = map(_unpacked, theirs)
        return found

    def _load(self, module: str) -> None:
        """Workers that have imported a module."""
        if module not in self.pool.modules:
            self.pool.close()
            self.pool.modules += (module,)

    def close(self) -> None:
        """End the workers; the next answer that needs them starts new ones."""
        if self._pool is not None:
            self._pool.close()

    def _verdict(self, response: Response, outcome: Outcome) -> Verdict:
        graded = outcome.result
        if isinstance(graded, Graded) and graded.second not in (None, graded.correct):
            self.tally.disagree(response.problem.answer, graded.written, graded.correct)
        return judged(outcome, count_backtracks(response.text))

    def _stop_if_failing(self, responses: Sequence[Response]) -> None:
        if all(r.problem.task == "countdown" for r in responses):
            return  # a toy that learns the format gives no valid answer for a while
        counts = self.tally.counts
        total, failed = sum(counts.values()), sum(counts[s] for s in ("unparsed", "timeout", "error"))
        if total >= ENOUGH and failed > self.c.max_failed_share * total:
            told = ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))
            raise AstroError(
                f"verify: {failed} of {total} responses have no verdict ({told}), over verify.max_failed_share: are they "
                "cut off (max_tokens), without an end token (chat.template), or without the \\boxed that is asked for?"
            )


def judged(outcome: Outcome, backtracks: int = 0) -> Verdict:
    """The verdict that a worker's outcome stands for."""
    graded = outcome.result
    if isinstance(graded, Exception):
        failure: Literal["timeout", "error"] = "timeout" if isinstance(graded, Timeout) else "error"
        return Verdict(False, False, None, backtracks, failure=failure)
    return Verdict(graded.correct, graded.answer is not None, graded.answer, backtracks)


def _packed(outcome: Outcome) -> list[Any]:
    """As JSON, for other processes."""
    result = outcome.result
    if isinstance(result, Exception):
        return [outcome.seconds, type(result).__name__, str(result)]
    return [outcome.seconds, "Graded", list(result)]


def _unpacked(packed: Sequence[Any]) -> Outcome:
    seconds, kind, value = packed
    if kind == "Graded":
        return Outcome(Graded(*value), seconds)
    return Outcome(Timeout(value) if kind == "Timeout" else RuntimeError(value), seconds)


def _question(response: Response, rule: Rule) -> Question:
    problem, text, _ = response
    if problem.task == "gym":
        return "gym", (problem.meta["task"], problem.meta["entry"], text, rule)
    return "math", (problem.answer, text, rule)


def verify(problem: Problem, response: str, stopped: bool) -> Verdict:
    """Judge a response.

    Args:
      response: the text after the prompt, without the end token.
      stopped: whether an end token ended it; a response that was cut off is not correct.
    """
    from astro_jax.verify import countdown, number

    if problem.task in IN_WORKERS:  # cut off: the others go to workers
        return Verdict(False, False, None, count_backtracks(response))
    judge = {"countdown": countdown, "number": number}[problem.task]
    return judge.verify(problem, response, stopped)
