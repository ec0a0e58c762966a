"""The verifier of Countdown (task "countdown"): exact and strict.

The verifier replays the response line by line:

- A step is valid if both operands are among the current numbers, its equation is true, and the numbers left, or the hit
  or miss, are stated correctly. With the rule `last_two` the operands must be the last two numbers, and the numbers
  left stand in their order, with the result at the end. Without the rule any order is right.
- A backtrack is valid if it restates the target and a state that valid steps have reached.
- A response is correct if it ends at the target, says so, and valid steps lead from the problem's numbers to its end.
  Errors in an abandoned branch do not matter for this, because the chain of steps to each state is known.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Literal

from astro_jax import phrases
from astro_jax.countdown import HIT, MISS, Numbers, apply, remove
from astro_jax.types import Problem, Verdict

# A number has one way of writing and at most 9 digits, so that no response can make the arithmetic slow.
_NUMBER = r"(?:0|-?[1-9][0-9]{0,8})"
_NUMBERS = rf"({_NUMBER}(?: {_NUMBER})*)"  # matches in linear time: nothing between two numbers is optional
_STEP = re.compile(
    rf" ({_NUMBER}) ([-+*/]) ({_NUMBER}) = ({_NUMBER})"
    rf"(?:, left {_NUMBERS}\.\n|({re.escape(HIT)})|({re.escape(MISS)}))"
)
_BACKTRACK = re.compile(
    rf"({re.escape(phrases.GO_BACK)}|{re.escape(phrases.RESTART)}) make ({_NUMBER}) from {_NUMBERS}\.\n"
)
_REFLECTIONS = (phrases.DOUBT, phrases.UNSURE, phrases.CORRECT)


Fault = Literal["format", "arithmetic", "rule broken", "copying"]


@dataclasses.dataclass
class _Replay:
    """The state of a replay.

    Attributes:
      root: the numbers of the problem, in their order with the rule `last_two`, else sorted.
      target: the target of the problem.
      expressions: for each reached state, the expressions that make its numbers.
      numbers: the current numbers. None after an invalid line, and after the end of a branch.
      last_two: whether a step must take the last two numbers.
      valid: whether all lines so far are valid.
      hit: whether the last branch has ended at the target.
      answer: the last number of the last branch.
      expression: the expression that makes the answer.
      backtracks: the number of backtracks so far.
      fault: the first fault of the last branch.
    """

    root: Numbers
    target: int
    expressions: dict[Numbers, tuple[str, ...]]
    numbers: Numbers | None
    last_two: bool
    valid: bool = True
    hit: bool = False
    answer: str | None = None
    expression: str | None = None
    backtracks: int = 0
    fault: Fault | None = None

    def state(self, numbers: Iterable[int]) -> Numbers:
        """Write numbers as a state: in their order with the rule `last_two`, else sorted."""
        return tuple(numbers) if self.last_two else tuple(sorted(numbers))

    def fail(self, fault: Fault) -> None:
        """Note an invalid line. Only a backtrack can follow."""
        self.valid, self.numbers, self.hit, self.answer = False, None, False, None
        self.fault = self.fault or fault


def verify(problem: Problem, response: str, stopped: bool) -> Verdict:
    """Judge a response (tasks.verify)."""
    replay = _replay(problem, response)
    return Verdict(
        correct=stopped and replay.hit,
        valid=replay.valid and stopped,
        answer=replay.answer if stopped else None,
        backtracks=replay.backtracks,
        expression=replay.expression if stopped and replay.hit else None,
    )


def find_fault(problem: Problem, response: str) -> Fault | None:
    """Find the first fault of the last branch of a response; None if all its lines are valid.

    "format": a line of no known form. "arithmetic": a false equation. "rule broken": an operand that is not among the
    current numbers, or an end with numbers left. "copying": numbers, a target or a state that are stated wrongly.
    """
    return _replay(problem, response).fault


def _replay(problem: Problem, response: str) -> _Replay:
    """Replay all lines of a response."""
    last_two = problem.meta.get("last_two", False)
    root: Numbers = tuple(problem.meta["numbers"] if last_two else sorted(problem.meta["numbers"]))
    replay = _Replay(root, problem.meta["target"], {root: tuple(map(str, root))}, root, last_two)
    for line in response.splitlines(keepends=True):
        if line in _REFLECTIONS:
            continue
        if match := _STEP.fullmatch(line):
            _step(replay, match)
        elif match := _BACKTRACK.fullmatch(line):
            _backtrack(replay, match)
        else:
            replay.fail("format")
    return replay


def _numbers(text: str) -> list[int]:
    return list(map(int, text.split()))


def _step(r: _Replay, match: re.Match[str]) -> None:
    """Replay a step."""
    a, op, b, result = int(match[1]), match[2], int(match[3]), int(match[4])
    rest = _rest(r, a, b)
    if rest is None or apply(a, op, b) != result:
        return r.fail("arithmetic" if rest is not None else "rule broken")
    assert r.numbers is not None
    numbers = r.state((*rest, result))
    expressions = _combine(r, a, op, b, result)
    if match[5] is not None:
        if len(numbers) < 2 or r.state(_numbers(match[5])) != numbers:
            return r.fail("copying")
        r.expressions.setdefault(numbers, expressions)
        r.numbers, r.hit, r.answer = numbers, False, None
        return None
    states_hit = match[6] is not None
    if len(numbers) != 1 or states_hit != (result == r.target):
        return r.fail("copying" if len(numbers) == 1 else "rule broken")
    r.numbers, r.hit, r.answer, r.expression = None, states_hit, str(result), expressions[0]
    return None


def _rest(r: _Replay, a: int, b: int) -> Numbers | None:
    """Return the current numbers without two operands. None if the rules do not allow the operands."""
    if r.numbers is None or not r.last_two:
        return remove(r.numbers, a, b) if r.numbers is not None else None
    return r.numbers[:-2] if sorted(r.numbers[-2:]) == sorted((a, b)) else None


def _combine(r: _Replay, a: int, op: str, b: int, result: int) -> tuple[str, ...]:
    """Return the expressions of the state after the step a op b = result, in the order of its numbers."""
    assert r.numbers is not None
    pairs = list(zip(r.numbers, r.expressions[r.numbers], strict=True))
    before, operands = (pairs[:-2], pairs[-2:]) if r.last_two else ([], pairs)
    left = next(pair for pair in operands if pair[0] == a)
    operands.remove(left)
    right = next(pair for pair in operands if pair[0] == b)
    operands.remove(right)
    after = [*before, *operands, (result, f"({left[1]} {op} {right[1]})")]
    return tuple(expression for _, expression in (after if r.last_two else sorted(after)))


def _backtrack(r: _Replay, match: re.Match[str]) -> None:
    """Replay a backtrack. RESTART goes back to the root, GO_BACK to any reached state."""
    numbers = r.state(_numbers(match[3]))
    allowed = numbers == r.root if match[1] == phrases.RESTART else numbers in r.expressions
    r.backtracks, r.fault = r.backtracks + 1, None
    if int(match[2]) != r.target or not allowed:
        return r.fail("copying")
    r.numbers, r.hit, r.answer = numbers, False, None
    return None
