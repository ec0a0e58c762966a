"""Is this response right? Exact where the task allows it; model output is parsed, never evaluated."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

from astro_jax.problems import Problem

# "unparsed": no answer could be read; "timeout" and "error": the verifier gave up, which says nothing of the answer.
Status = Literal["correct", "wrong", "unparsed", "timeout", "error"]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a verifier says of one response.

    Attributes:
      correct: the response ends with a right answer.
      valid: every step of it, also of branches that were given up, is true and allowed.
      answer: the final answer as text; None where none was given or what leads to it is not valid.
      backtracks: how often it went back.
      expression: for Countdown, the arithmetic expression that the answer stands for.
      failure: why there is no verdict; then the response does not count as correct.
    """

    correct: bool
    valid: bool
    answer: str | None
    backtracks: int
    expression: str | None = None
    failure: Literal["timeout", "error"] | None = None

    @property
    def status(self) -> Status:
        """One word for the report."""
        if self.failure is not None:
            return self.failure
        return "correct" if self.correct else "unparsed" if self.answer is None else "wrong"


class Response(NamedTuple):
    """What is judged: the text after the problem's prompt, without the end token, and whether an end token ended it."""

    problem: Problem
    text: str
    stopped: bool


class Verifier:
    """Judges responses, many in one call, and counts the verdicts by status.

    Attributes:
      counts: verdicts so far, by status.
    """

    def __init__(self) -> None:
        self.counts: Counter[Status] = Counter()

    def judge(self, responses: Sequence[Response]) -> list[Verdict]:
        """A verdict for each, in order."""
        verdicts = [verify(*response) for response in responses]
        self.counts.update(v.status for v in verdicts)
        return verdicts


def verify(problem: Problem, response: str, stopped: bool) -> Verdict:
    """Judge a response.

    Args:
      response: the text after the prompt, without the end token.
      stopped: whether an end token ended it; a response that was cut off is not correct.
    """
    from astro_jax.verify import countdown, number

    judge = {"countdown": countdown, "number": number}[problem.task]
    return judge.verify(problem, response, stopped)
