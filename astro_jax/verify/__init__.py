"""Is this response right? Exact where the task allows it; model output is parsed, never evaluated."""

from __future__ import annotations

import dataclasses

from astro_jax.problems import Problem


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a verifier says of one response.

    Attributes:
      correct: the response ends with a right answer.
      valid: every step of it, also of branches that were given up, is true and allowed.
      answer: the final answer as text; None where none was given or what leads to it is not valid.
      backtracks: how often it went back.
      expression: for Countdown, the arithmetic expression that the answer stands for.
    """

    correct: bool
    valid: bool
    answer: str | None
    backtracks: int
    expression: str | None = None


def verify(problem: Problem, response: str, stopped: bool) -> Verdict:
    """Judge a response.

    Args:
      response: the text after the prompt, without the end token.
      stopped: whether an end token ended it; a response that was cut off is not correct.
    """
    from astro_jax.verify import countdown, number

    judge = {"countdown": countdown, "number": number}[problem.task]
    return judge.verify(problem, response, stopped)
