"""Countdown: combine numbers, two at a time, until one is left, which must be the target.

The game (moves, a brute-force solver, problems split by construction) and its language: every state is written as
"make TARGET from NUMBERS", every step as one line, so that any state can be restated and looks like a fresh start.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import random
import re
from collections.abc import Iterator

from astro_jax.errors import AstroError
from astro_jax.types import Problem

# A verdict does not end like other lines (search.step_end): it and the end token belong to the last step.
HIT = ", which is the target!\n"
MISS = ", which misses the target!\n"

Numbers = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Game:
    """The rules of one family of problems.

    Attributes:
      count: how many numbers a problem has.
      max_number: they are drawn from 1..max_number.
      max_value: no intermediate result or target exceeds this (a move beyond it is true, but never generated).
      ops: a subset of "+-*/".
      held_out: the share of number multisets whose problems are only for evaluation.
    """

    count: int = 3
    max_number: int = 20
    max_value: int = 60
    ops: str = "+-*"
    held_out: float = 0.2

    def __post_init__(self) -> None:
        if self.count < 2 or not 0 < self.held_out < 1 or not set(self.ops) <= set("+-*/") or not self.ops:
            raise AstroError(f"countdown: impossible rules {self}: count >= 2, ops from +-*/, held_out in (0, 1)")


@dataclasses.dataclass(frozen=True)
class Move:
    """a op b = result."""

    a: int
    op: str
    b: int
    result: int


def apply(a: int, op: str, b: int) -> int | None:
    """The integer result of one operation; None where there is none."""
    if op == "/":
        return a // b if b and a % b == 0 else None
    return {"+": a + b, "-": a - b, "*": a * b}[op]


def remove(numbers: Numbers, *used: int) -> Numbers | None:
    """The numbers without those used, each taken once; None where one is not there."""
    left = list(numbers)
    for n in used:
        if n not in left:
            return None
        left.remove(n)
    return tuple(left)


@functools.lru_cache(maxsize=200_000)
def moves(numbers: Numbers, game: Game) -> tuple[Move, ...]:
    """All distinct moves with results in 1..max_value; the larger operand first."""
    found = set()
    for x, y in itertools.combinations(numbers, 2):
        a, b = max(x, y), min(x, y)
        for op in game.ops:
            result = apply(a, op, b)
            if result is not None and 1 <= result <= game.max_value:
                found.add(Move(a, op, b, result))
    return tuple(sorted(found, key=dataclasses.astuple))


def after(numbers: Numbers, move: Move) -> Numbers:
    """The numbers left after a move, the result last."""
    rest = remove(numbers, move.a, move.b)
    assert rest is not None
    return (*rest, move.result)


@functools.lru_cache(maxsize=200_000)
def reachable(numbers: Numbers, game: Game) -> dict[int, tuple[tuple[Move, ...], ...]]:
    """By brute force: every final result, with all sequences of moves that lead to it."""
    if len(numbers) == 1:
        return {numbers[0]: ((),)}
    found: dict[int, list[tuple[Move, ...]]] = {}
    for move in moves(numbers, game):
        for target, tails in reachable(after(numbers, move), game).items():
            found.setdefault(target, []).extend((move, *tail) for tail in tails)
    return {target: tuple(paths) for target, paths in found.items()}


def is_held_out(numbers: Numbers, game: Game) -> bool:
    """Whether a multiset of numbers is kept for evaluation. A hash of the multiset alone decides, so no problem on
    the other side, whatever its target, order or seed, has the same numbers."""
    digest = hashlib.blake2b(repr(sorted(numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) < game.held_out * 2**64


@functools.lru_cache(maxsize=8)
def multisets(game: Game, held_out: bool) -> tuple[Numbers, ...]:
    """All number multisets of one side of the split, sorted."""
    every = itertools.combinations_with_replacement(range(1, game.max_number + 1), game.count)
    return tuple(numbers for numbers in every if is_held_out(numbers, game) == held_out)


def problems(game: Game, n: int, seed: int, *, held_out: bool) -> list[Problem]:
    """n distinct solvable problems (numbers as a multiset, and target) of one side of the split.

    Raises:
      AstroError: when there are fewer.
    """
    every = [
        (numbers, target)
        for numbers in multisets(game, held_out)
        for target in sorted(reachable(numbers, game))
        if target not in numbers
    ]
    if n > len(every):
        raise AstroError(f"countdown: {n} problems asked for, the rules give {len(every)}: lower problems.*")
    rng = random.Random(f"{seed}/{held_out}")
    return [make_problem(tuple(rng.sample(numbers, len(numbers))), target) for numbers, target in rng.sample(every, n)]


def make_problem(numbers: Numbers, target: int) -> Problem:
    """A Problem from numbers (in the order shown) and target."""
    name = "-".join(map(str, sorted(numbers)))
    meta = {"numbers": list(numbers), "target": target}
    return Problem(f"countdown-{name}-to-{target}", prompt(numbers, target), str(target), meta)


# ---- language


def restate(numbers: Numbers, target: int) -> str:
    """A state in words; the same in a prompt and after a backtrack."""
    return f" make {target} from {' '.join(map(str, numbers))}.\n"


def prompt(numbers: Numbers, target: int) -> str:
    """The prompt of a problem."""
    return "Let us" + restate(numbers, target)


def step_text(numbers: Numbers, move: Move, target: int) -> str:
    """One step from a state: the sum, and what is left, or at the end whether the target is hit."""
    left = after(numbers, move)
    text = f" {move.a} {move.op} {move.b} = {move.result}"
    if len(left) > 1:
        return f"{text}, left {' '.join(map(str, left))}.\n"
    return text + (HIT if left[0] == target else MISS)


def numbers_left(step: str) -> Numbers:
    """The numbers that a step's text says are left, or that it restates; none where it says neither."""
    match = re.search(r"(?:, left| from)((?: \d{1,9})+)\.$", step)
    return tuple(map(int, match[1].split())) if match else ()


def attempt_text(numbers: Numbers, path: tuple[Move, ...], target: int) -> str:
    """The steps of a whole attempt."""
    text = ""
    for move in path:
        text += step_text(numbers, move, target)
        numbers = after(numbers, move)
    return text


# ---- the corpus that a base model learns the rules from


def corpus(game: Game, seed: int, solved: float, drills: float, recall: float) -> Iterator[tuple[str, str]]:
    """Endless (prompt, response) pairs that teach arithmetic and format, and hold no search.

    A share `drills` are single sums; a share `recall` say states again after other lines, which teaches to copy from
    above; of the rest a share `solved` are solutions, the others random valid attempts with their verdict.
    Problems have 2 to game.count numbers; held-out multisets never appear.
    """
    rng = random.Random(f"corpus/{seed}")
    while True:
        kind = rng.random()
        numbers, target = _random_problem(game, rng)
        if kind < drills:
            yield "", _sum(numbers, game, rng)
        elif kind < drills + recall:
            yield "", _recall(numbers, target, game, rng)
        elif rng.random() < solved:
            path = rng.choice(reachable(numbers, game)[target])
            yield prompt(numbers, target), attempt_text(numbers, path, target)
        else:
            yield prompt(numbers, target), attempt_text(numbers, _random_attempt(numbers, game, rng), target)


def _sum(numbers: Numbers, game: Game, rng: random.Random) -> str:
    move = rng.choice(moves(numbers, game))
    return f" {move.a} {move.op} {move.b} = {move.result}.\n"


def _recall(numbers: Numbers, target: int, game: Game, rng: random.Random) -> str:
    """A problem, then up to three times other lines and a state said again, word for word: the problem's or, once one
    attempt has been among the lines, its inner ones. Nothing is tried a second time; and it does not begin like a
    prompt: after a prompt there must always come an attempt."""
    said = restate(numbers, target)
    states: list[Numbers] = []
    for _ in range(rng.randint(1, 3)):
        if not states and rng.random() < 0.6:
            path = _random_attempt(numbers, game, rng)
            said += attempt_text(numbers, path, target)
            states = list(itertools.accumulate(path[:-1], after, initial=numbers))
        else:
            said += "".join(_sum(_random_problem(game, rng)[0], game, rng) for _ in range(rng.randrange(4)))
        said += restate(rng.choice(states or [numbers]), target)
    return said


def _random_problem(game: Game, rng: random.Random) -> tuple[Numbers, int]:
    """A problem of the training side, or a later state of one."""
    numbers: Numbers = ()
    while not reachable(numbers, game):
        numbers = tuple(rng.sample(rng.choice(multisets(game, False)), game.count))
    while len(numbers) > 2 and rng.random() < 0.3:
        numbers = after(numbers, rng.choice(_finishable(numbers, game)))
    return numbers, rng.choice(sorted(reachable(numbers, game)))


def _random_attempt(numbers: Numbers, game: Game, rng: random.Random) -> tuple[Move, ...]:
    path: tuple[Move, ...] = ()
    while len(numbers) > 1:
        move = rng.choice(_finishable(numbers, game))
        path, numbers = (*path, move), after(numbers, move)
    return path


def _finishable(numbers: Numbers, game: Game) -> list[Move]:
    """The moves that do not lead to a dead end, such as two large numbers whose sum exceeds max_value."""
    return [move for move in moves(numbers, game) if reachable(after(numbers, move), game)]
