"""The Verifier: judge many responses in one call, and count the verdicts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal

from astro_jax import config as cfg
from astro_jax import distributed
from astro_jax.errors import AstroError
from astro_jax.phrases import count_backtracks
from astro_jax.types import Response, Verdict
from astro_jax.verify.answer import Rule
from astro_jax.verify.math import Grade
from astro_jax.verify.pool import Call, Outcome, Timeout, WorkerPool
from astro_jax.verify.tasks import VERIFIERS, WorkerVerifier, verify
from astro_jax.verify.verdict_counts import VerdictCounts

MIN_VERDICTS = 200  # a run is not stopped for failed verdicts before this number of verdicts


class Verifier:
    """Judge responses, many in one call, and count the verdicts by status.

    The table of tasks (tasks.VERIFIERS) says which verifier judges a response. Worker processes start when a response
    first needs them.

    Attributes:
      counts: the verdicts so far.
    """

    def __init__(self, c: cfg.Verify | None = None):
        self.c = c or cfg.Verify()
        self.counts = VerdictCounts()
        self._pool: WorkerPool | None = None

    def judge(self, responses: Sequence[Response], use: Literal["reward", "report"] = "reward") -> list[Verdict]:
        """Judge responses, and count the verdicts.

        Args:
          use: the rule for the answers of mathematics: verify.reward_rule or verify.report_rule of the config.

        Returns:
          One verdict for each response, in order.

        Raises:
          AstroError: if too large a share of all responses so far has no verdict (verify.max_failed_share).
        """
        verdicts = self.grade(responses, self.c.reward_rule if use == "reward" else self.c.report_rule)
        self.counts.add(v.status for v in verdicts)
        self._stop_if_failing(responses)
        return verdicts

    def grade(self, responses: Sequence[Response], rule: Rule) -> list[Verdict]:
        """Judge responses by a named rule, without counting the verdicts. One verdict for each response, in order."""
        calls: dict[int, Call] = {}  # by the index of the response
        for i, response in enumerate(responses):
            verifier = VERIFIERS[response.problem.task]
            reads_cut_off = rule == "math500" and response.problem.task == "math"
            if isinstance(verifier, WorkerVerifier) and (response.stopped or reads_cut_off):
                self.pool.add_modules(verifier.modules)
                calls[i] = verifier.call(response, rule)
        outcomes = dict(zip(calls, self._run(list(calls.values())), strict=True))
        return [
            self._verdict(response, outcomes[i]) if i in outcomes else verify(*response)
            for i, response in enumerate(responses)
        ]

    def readable(self, gold_answers: Sequence[str]) -> list[bool]:
        """Say for each gold answer of mathematics whether the parser can read it."""
        return [o.result is True for o in self.pool.run([Call("readable", (gold,)) for gold in gold_answers])]

    @property
    def pool(self) -> WorkerPool:
        """The worker processes."""
        if self._pool is None:
            self._pool = WorkerPool(
                self.c.num_workers or os.cpu_count() or 1, self.c.timeout_seconds, int(self.c.memory_gib * 2**30)
            )
        return self._pool

    def close(self) -> None:
        """End the workers. The next response that needs a worker starts new workers."""
        if self._pool is not None:
            self._pool.close()

    def _run(self, calls: Sequence[Call]) -> list[Outcome]:
        """Run calls and return their outcomes in order.

        Process i of n runs the calls i, i + n, i + 2n, ... and all processes gather all outcomes. The verdicts are thus
        the same in all processes, timeouts too.
        """
        n = distributed.process_count()
        if n == 1:
            return self.pool.run(calls)
        local = self.pool.run(calls[distributed.process_index() :: n])
        outcomes: list[Outcome] = [Outcome(None, 0.0)] * len(calls)
        for i, packed in enumerate(distributed.all_gather("verdicts", [_pack(outcome) for outcome in local])):
            outcomes[i::n] = map(_unpack, packed)
        return outcomes

    def _verdict(self, response: Response, outcome: Outcome) -> Verdict:
        grade = outcome.result
        if isinstance(grade, Grade) and grade.second not in (None, grade.correct):
            self.counts.add_disagreement(response.problem.answer, grade.written, grade.correct)
        return to_verdict(outcome, count_backtracks(response.text))

    def _stop_if_failing(self, responses: Sequence[Response]) -> None:
        if all(r.problem.task == "countdown" for r in responses):
            return  # a base model that still learns Countdown's format gives no valid answer for a while
        counts = self.counts.by_status
        total, failed = sum(counts.values()), sum(counts[s] for s in ("unparsed", "timeout", "error"))
        if total >= MIN_VERDICTS and failed > self.c.max_failed_share * total:
            statuses = ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))
            raise AstroError(
                f"verify: {failed} of {total} responses have no verdict ({statuses}), over verify.max_failed_share: "
                "are they cut off (max_tokens), without an end token (chat.template), or without the \\boxed that is "
                "asked for?"
            )


def to_verdict(outcome: Outcome, backtracks: int = 0) -> Verdict:
    """Turn the outcome of a worker's call into a verdict."""
    grade = outcome.result
    if isinstance(grade, Exception):
        failure: Literal["timeout", "error"] = "timeout" if isinstance(grade, Timeout) else "error"
        return Verdict(False, False, None, backtracks, failure=failure)
    return Verdict(grade.correct, grade.answer is not None, grade.answer, backtracks)


def _pack(outcome: Outcome) -> list[Any]:
    """Turn an outcome into JSON values for the other processes: [seconds, type, fields of a grade or a message]."""
    result = outcome.result
    if isinstance(result, Exception):
        return [outcome.seconds, type(result).__name__, str(result)]
    return [outcome.seconds, "Grade", list(result)]


def _unpack(packed: Sequence[Any]) -> Outcome:
    seconds, kind, value = packed
    if kind == "Grade":
        return Outcome(Grade(*value), seconds)
    return Outcome(Timeout(value) if kind == "Timeout" else RuntimeError(value), seconds)
