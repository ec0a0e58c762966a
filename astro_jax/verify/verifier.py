"""The Verifier: judge many responses in one call, and count the verdicts."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from astro_jax import config as cfg
from astro_jax import distributed
from astro_jax.errors import AstroError
from astro_jax.phrases import count_backtracks
from astro_jax.types import Problem, Response, Verdict
from astro_jax.verify.answer import Rule
from astro_jax.verify.math import Grade
from astro_jax.verify.pool import Call, CallStream, Outcome, Timeout, WorkerPool
from astro_jax.verify.tasks import VERIFIERS, WorkerVerifier, verify
from astro_jax.verify.verdict_counts import VerdictCounts

Judge = Callable[[Sequence[Response]], list[bool]]
MIN_VERDICTS = 200  # a run is not stopped for failed verdicts before this number of verdicts


class Verifier:
    """Judge responses, many in one call, and count the verdicts by status.

    The table of tasks (tasks.VERIFIERS) says which verifier judges a response. Worker processes start when a response
    first needs them.

    Args:
      c: the settings.
      judge: a model that says for each response whether it approves (`astro_jax.judge`). It decides on rewards, for a
        response with an answer that can be read. The rules still decide in evaluation, but for the task "judged".

    Attributes:
      counts: the verdicts so far.
    """

    def __init__(self, c: cfg.Verify | None = None, judge: Judge | None = None):
        self.c, self._judge = c or cfg.Verify(), judge
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
        return self._finish(responses, verdicts, use)

    def grade(self, responses: Sequence[Response], rule: Rule) -> list[Verdict]:
        """Judge responses by a named rule, without counting the verdicts. One verdict for each response, in order."""
        self._prepare([r.problem for r in responses])
        calls = {i: call for i, r in enumerate(responses) if (call := _call(r, rule)) is not None}
        return self._verdicts(responses, dict(zip(calls, self._run(list(calls.values())), strict=True)))

    @contextlib.contextmanager
    def stream(self, problems: Sequence[Problem]) -> Iterator[VerdictStream]:
        """Judge responses by `verify.reward_rule` in worker processes while others are still sampled.

        Inside, nothing else may use this verifier.

        Args:
          problems: of the responses.
        """
        self._prepare(problems)
        with self.pool.stream() as calls:
            yield VerdictStream(self, calls)

    @property
    def has_judge(self) -> bool:
        """Whether a model decides on rewards, after all responses have ended."""
        return self._judge is not None

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

    def _prepare(self, problems: Sequence[Problem]) -> None:
        """Let the workers import what the tasks of these problems need."""
        for task in {p.task for p in problems}:
            if isinstance(verifier := VERIFIERS[task], WorkerVerifier):
                self.pool.add_modules(verifier.modules)

    def _verdicts(self, responses: Sequence[Response], outcomes: Mapping[int, Outcome]) -> list[Verdict]:
        """The verdicts of responses. `outcomes`: of those that a worker has judged, by the index of the response."""
        return [self._verdict(r, outcomes[i]) if i in outcomes else verify(*r) for i, r in enumerate(responses)]

    def _finish(
        self, responses: Sequence[Response], verdicts: list[Verdict], use: Literal["reward", "report"] = "reward"
    ) -> list[Verdict]:
        """Let the judge decide, count the verdicts, and stop if too many have failed."""
        if self._judge is not None:
            verdicts = self._ask(self._judge, responses, verdicts, use)
        self.counts.add(v.status for v in verdicts)
        self._stop_if_failing(responses)
        return verdicts

    def _ask(
        self, judge: Judge, responses: Sequence[Response], verdicts: list[Verdict], use: Literal["reward", "report"]
    ) -> list[Verdict]:
        """Let a judge decide on responses with an answer: on rewards, and where no rule can decide."""
        asked = [
            i for i, (r, v) in enumerate(zip(responses, verdicts, strict=True))
            if v.answer is not None and (use == "reward" or r.problem.task == "judged")
        ]  # fmt: skip
        approvals = dict(zip(asked, judge([responses[i] for i in asked]), strict=True)) if asked else {}
        for i, is_approved in approvals.items():
            if responses[i].problem.task != "judged":
                self.counts.add_judged(verdicts[i].correct, is_approved)
        return [dataclasses.replace(v, correct=approvals.get(i, v.correct)) for i, v in enumerate(verdicts)]

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


class VerdictStream:
    """Judges responses while the sampler still makes others, from `Verifier.stream`.

    The verdicts are those of `Verifier.judge`, and so are the counts.
    """

    def __init__(self, verifier: Verifier, calls: CallStream):
        self._verifier, self._calls = verifier, calls
        self._numbers: dict[int, int] = {}  # of the calls, by the index of the response

    def add(self, index: int, response: Response, part: int | None = None) -> None:
        """Begin to judge a response.

        Args:
          index: the place of the response among all responses.
          part: process i of n judges the responses of the parts i, i + n, ... Default: each response is a part.
        """
        is_own = distributed.is_own(index if part is None else part)
        if is_own and (call := _call(response, self._verifier.c.reward_rule)) is not None:
            self._numbers[index] = self._calls.add(call)

    def peek(self, index: int, response: Response) -> Verdict | None:
        """Return the verdict on a response of this process, without counting it; None while a worker judges it."""
        if index not in self._numbers:
            return verify(*response)
        outcome = self._calls.outcome(self._numbers[index])
        return None if outcome is None else to_verdict(outcome, count_backtracks(response.text))

    def judge(self, responses: Sequence[Response]) -> list[Verdict]:
        """Wait for the verdicts, and count them.

        Args:
          responses: all that were added, in the order of their indices.

        Returns:
          One verdict for each response, in order.

        Raises:
          AstroError: as `Verifier.judge`.
        """
        local = [(i, _pack(outcome)) for i, outcome in zip(self._numbers, self._calls.outcomes(), strict=True)]
        gathered = distributed.all_gather("verdicts", local)
        outcomes = {i: _unpack(packed) for part in gathered for i, packed in part}
        return self._verifier._finish(responses, self._verifier._verdicts(responses, outcomes))


def _call(response: Response, rule: Rule) -> Call | None:
    """The call of a worker that judges a response. None: the response is judged in this process."""
    verifier = VERIFIERS[response.problem.task]
    reads_cut_off = rule == "math500" and response.problem.task == "math"
    if isinstance(verifier, WorkerVerifier) and (response.stopped or reads_cut_off):
        return verifier.call(response, rule)
    return None


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
