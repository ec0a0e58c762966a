"""The rules of Countdown, its moves, a brute-force solver, and the split into training and evaluation."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools

from astro_jax.errors import AstroError

Numbers = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Game:
    """The rules of one family of problems.

    Attributes:
      count: how many numbers a problem has.
      max_number: the largest number of a problem; the smallest is 1.
      max_value: the largest intermediate result or target that is generated. A larger result is still true arithmetic.
      ops: the operations, a subset of "+-*/".
      held_out: the share of number multisets whose problems are only for evaluation.
      last_two: whether a step must take the last two numbers. A problem then depends on the order of its numbers.
    """

    count: int = 3
    max_number: int = 20
    max_value: int = 60
    ops: str = "+-*"
    held_out: float = 0.2
    last_two: bool = False

    def __post_init__(self) -> None:
        if self.count < 2 or not 0 <= self.held_out < 1 or not set(self.ops) <= set("+-*/") or not self.ops:
            raise AstroError(f"countdown: impossible rules {self}: count >= 2, ops from +-*/, held_out in [0, 1)")


@dataclasses.dataclass(frozen=True)
class Move:
    """One operation on two numbers: a op b = result."""

    a: int
    op: str
    b: int
    result: int


def apply(a: int, op: str, b: int) -> int | None:
    """Compute a op b. None if the result is not an integer, or if b is 0 in a division."""
    if op == "/":
        return a // b if b and a % b == 0 else None
    return {"+": a + b, "-": a - b, "*": a * b}[op]


def remove(numbers: Numbers, *used: int) -> Numbers | None:
    """Remove each used number once. None if a used number is not among the numbers."""
    left = list(numbers)
    for n in used:
        if n not in left:
            return None
        left.remove(n)
    return tuple(left)


@functools.lru_cache(maxsize=100_000)
def moves(numbers: Numbers, game: Game) -> tuple[Move, ...]:
    """List all distinct moves with results in 1..max_value. The larger operand stands first."""
    distinct = set()
    for x, y in itertools.combinations(numbers[-2:] if game.last_two else numbers, 2):
        a, b = max(x, y), min(x, y)
        for op in game.ops:
            result = apply(a, op, b)
            if result is not None and 1 <= result <= game.max_value:
                distinct.add(Move(a, op, b, result))
    return tuple(sorted(distinct, key=lambda move: (move.a, move.op, move.b, move.result)))


def after(numbers: Numbers, move: Move, last_two: bool = False) -> Numbers:
    """Make a move: remove its operands and append its result.

    Of equal numbers the first one is removed; with `Game.last_two` the last two numbers are.
    """
    rest = numbers[:-2] if last_two else remove(numbers, move.a, move.b)
    assert rest is not None
    return (*rest, move.result)


@functools.lru_cache(maxsize=100_000)
def targets(numbers: Numbers, game: Game) -> frozenset[int]:
    """List the final numbers that moves can lead to, by brute force."""
    if len(numbers) == 1:
        return frozenset(numbers)
    return frozenset().union(*(targets(after(numbers, move, game.last_two), game) for move in moves(numbers, game)))


@functools.lru_cache(maxsize=20_000)
def reachable(numbers: Numbers, game: Game) -> dict[int, tuple[tuple[Move, ...], ...]]:
    """Map each reachable final number to all sequences of moves that lead to it, by brute force."""
    if len(numbers) == 1:
        return {numbers[0]: ((),)}
    paths: dict[int, list[tuple[Move, ...]]] = {}
    for move in moves(numbers, game):
        for target, tails in reachable(after(numbers, move, game.last_two), game).items():
            paths.setdefault(target, []).extend((move, *tail) for tail in tails)
    return {target: tuple(sequences) for target, sequences in paths.items()}


def is_held_out(numbers: Numbers, game: Game) -> bool:
    """Decide whether the problems of a multiset of numbers are only for evaluation.

    A hash of the multiset alone decides. A problem of the other side never has the same numbers, whatever its target,
    its order of numbers or the seed.
    """
    digest = hashlib.blake2b(repr(sorted(numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) < game.held_out * 2**64


@functools.lru_cache(maxsize=8)
def multisets(game: Game, held_out: bool) -> tuple[Numbers, ...]:
    """List all multisets of numbers of one side of the split, sorted."""
    both_sides = itertools.combinations_with_replacement(range(1, game.max_number + 1), game.count)
    return tuple(numbers for numbers in both_sides if is_held_out(numbers, game) == held_out)
