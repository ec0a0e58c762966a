"""Countdown's verifier: exact and strict.

It replays the response line by line. A step is valid when both operands are among the current numbers, the sum is
true, and what it says is left, or that the target is hit or missed, is so. Going back is valid to any state that
valid steps have reached, restated with its numbers and the target. A response is correct when it ends at the target,
says so, and a chain of valid steps leads there from the problem's numbers: errors in a branch that it has left do
not matter, since each state's chain is known.
"""

from __future__ import annotations

import dataclasses
import re

from astro_jax import phrases
from astro_jax.countdown import HIT, MISS, Numbers, apply, remove
from astro_jax.types import Problem, Verdict

# A number is written in one way, and has at most 9 digits, so that no response can make the arithmetic slow.
_N = r"(?:0|-?[1-9][0-9]{0,8})"
_LIST = rf"({_N}(?: {_N})*)"  # nothing optional between two numbers: one way to match, so linear time
_STEP = re.compile(rf" ({_N}) ([-+*/]) ({_N}) = ({_N})(?:, left {_LIST}\.\n|({re.escape(HIT)})|({re.escape(MISS)}))")
_BACK = re.compile(rf"({re.escape(phrases.GO_BACK)}|{re.escape(phrases.RESTART)}) make ({_N}) from {_LIST}\.\n")
_REFLECTIONS = (phrases.DOUBT, phrases.UNSURE, phrases.CORRECT)


@dataclasses.dataclass
class _Replay:
    """The state of a replay. `known` maps each reached multiset of numbers to the expressions that make them up."""

    root: Numbers
    target: int
    known: dict[Numbers, tuple[str, ...]]
    numbers: Numbers | None  # where we are; None after an invalid line, and at the end of a branch
    valid: bool = True
    hit: bool = False  # the last branch ended at the target
    answer: str | None = None
    expression: str | None = None
    backtracks: int = 0

    def fail(self) -> None:
        self.valid, self.numbers, self.hit, self.answer = False, None, False, None


def verify(problem: Problem, response: str, stopped: bool) -> Verdict:
    """See verify.verify."""
    root: Numbers = tuple(sorted(problem.meta["numbers"]))
    replay = _Replay(root, problem.meta["target"], {root: tuple(map(str, root))}, root)
    for line in response.splitlines(keepends=True):
        if line in _REFLECTIONS:
            continue
        if match := _STEP.fullmatch(line):
            _step(replay, match)
        elif match := _BACK.fullmatch(line):
            _back(replay, match)
        else:
            replay.fail()
    return Verdict(
        correct=stopped and replay.hit,
        valid=replay.valid and stopped,
        answer=replay.answer if stopped else None,
        backtracks=replay.backtracks,
        expression=replay.expression if stopped and replay.hit else None,
    )


def _ints(text: str) -> Numbers:
    return tuple(sorted(map(int, text.split())))


def _step(r: _Replay, match: re.Match[str]) -> None:
    a, op, b, result = int(match[1]), match[2], int(match[3]), int(match[4])
    rest = remove(r.numbers, a, b) if r.numbers is not None else None
    if rest is None or apply(a, op, b) != result:
        return r.fail()
    assert r.numbers is not None
    numbers = tuple(sorted((*rest, result)))
    made = _expressions(r.known[r.numbers], r.numbers, a, op, b)
    if match[5] is not None:
        if len(numbers) < 2 or _ints(match[5]) != numbers:
            return r.fail()
        r.known.setdefault(numbers, made[numbers])
        r.numbers, r.hit, r.answer = numbers, False, None
        return None
    said_hit = match[6] is not None
    if len(numbers) != 1 or said_hit != (result == r.target):
        return r.fail()
    r.numbers, r.hit, r.answer, r.expression = None, said_hit, str(result), made[numbers][0]
    return None


def _expressions(known: tuple[str, ...], numbers: Numbers, a: int, op: str, b: int) -> dict[Numbers, tuple[str, ...]]:
    """The expressions of the state after a step, in the order of its sorted numbers."""
    parts = list(zip(numbers, known, strict=True))
    left = next(p for p in parts if p[0] == a)
    parts.remove(left)
    right = next(p for p in parts if p[0] == b)
    parts.remove(right)
    result = apply(a, op, b)
    assert result is not None
    parts = sorted([*parts, (result, f"({left[1]} {op} {right[1]})")])
    return {tuple(p[0] for p in parts): tuple(p[1] for p in parts)}


def _back(r: _Replay, match: re.Match[str]) -> None:
    numbers = _ints(match[3])
    allowed = numbers == r.root if match[1] == phrases.RESTART else numbers in r.known
    r.backtracks += 1
    if int(match[2]) != r.target or not allowed:
        return r.fail()
    r.numbers, r.hit, r.answer = numbers, False, None
    return None
