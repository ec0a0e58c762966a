"""A problem, a response to a problem, and the verdict on a response: the types that all stages share.

The module imports no other part of the package, so that every part can import it.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

Task = Literal["countdown", "number", "math", "gym"]
# "unparsed": no answer could be read. "timeout" and "error": the verifier failed, which says nothing about the answer.
Status = Literal["correct", "wrong", "unparsed", "timeout", "error"]


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
      id: unique and stable. The random draws for this problem are named after it.
      prompt: the text of the problem.
      answer: the correct answer, as text.
      meta: further values that the verifier of this problem needs.
      task: the kind of problem. It decides how answers are judged and how traces are written.
    """

    id: str
    prompt: str
    answer: str
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)
    task: Task = "countdown"


class Response(NamedTuple):
    """What a verifier judges.

    Attributes:
      problem: the problem that was asked.
      text: the text after the prompt, without the end token.
      stopped: whether an end token ended the text. A response that was cut off is not correct.
    """

    problem: Problem
    text: str
    stopped: bool


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The judgement of one response.

    Attributes:
      correct: whether the response ends with a correct answer.
      valid: whether every step is true and allowed, also in the branches that the response left.
      answer: the final answer as text. None if there is none, or if the steps to it are not valid.
      backtracks: how often the response went back.
      expression: for Countdown, the arithmetic expression that the answer stands for.
      failure: why there is no verdict. Such a response does not count as correct.
    """

    correct: bool
    valid: bool
    answer: str | None
    backtracks: int
    expression: str | None = None
    failure: Literal["timeout", "error"] | None = None

    @property
    def status(self) -> Status:
        """The verdict in one word."""
        if self.failure is not None:
            return self.failure
        return "correct" if self.correct else "unparsed" if self.answer is None else "wrong"
