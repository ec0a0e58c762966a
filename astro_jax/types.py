"""Problem, Response and Verdict: the types that all stages share.

The module imports no other part of the package, so that every part can import it.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

Task = Literal["countdown", "number", "math", "gym", "judged"]
# "unparsed": the response has no answer that can be read. "timeout", "error": the verifier failed, and the answer may
# be right or wrong.
Status = Literal["correct", "wrong", "unparsed", "timeout", "error"]


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
      id: a unique and stable name. It also names the random draws for this problem.
      prompt: the text of the problem.
      answer: the correct answer, as text.
      meta: further values that the verifier of the task needs, such as the numbers and the target of Countdown.
      task: the kind of problem. The task selects the verifier (verify.tasks) and how traces are written.
    """

    id: str
    prompt: str
    answer: str
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)
    task: Task = "countdown"


class Response(NamedTuple):
    """A model's response to a problem.

    Attributes:
      problem: the problem.
      text: the text after the prompt, without the end token.
      stopped: whether an end token ended the text. A response that was cut off is not correct.
    """

    problem: Problem
    text: str
    stopped: bool


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The verdict on one response.

    Attributes:
      correct: whether the response ends with a correct answer.
      valid: whether all steps are true and allowed, also the steps of abandoned branches.
      answer: the final answer as text. None if the response has no answer, or if a step that leads to it is not valid.
      backtracks: the number of backtracks.
      expression: for Countdown, the arithmetic expression that makes the answer.
      failure: why the verifier has no verdict. A response without a verdict does not count as correct.
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
