"""Draw Countdown problems from one side of the split."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable

from astro_jax.countdown.game import Game, Numbers, multisets, targets
from astro_jax.countdown.language import prompt
from astro_jax.errors import AstroError
from astro_jax.types import Problem


def problems(game: Game, n: int, seed: int, *, held_out: bool) -> list[Problem]:
    """Draw n distinct solvable problems from one side of the split.

    Two problems are the same if they have the same target and the same numbers in any order.

    Raises:
      AstroError: if the rules give fewer than n problems.
    """
    solvable = _solvable(game, held_out)
    if n > len(solvable):
        raise AstroError(f"countdown: {n} problems asked for, the rules give {len(solvable)}: lower problems.*")
    return _draw(solvable, n, f"{seed}/{held_out}", game)


def other_problems(game: Game, name: str, exclude: Collection[str]) -> list[Problem]:
    """Return all problems of the training side but the excluded ones, in a random order.

    Args:
      name: names the random order.
      exclude: ids of problems.
    """
    rest = [(numbers, target) for numbers, target in _solvable(game, False) if _id(numbers, target) not in exclude]
    return _draw(rest, len(rest), name, game)


def _solvable(game: Game, held_out: bool) -> list[tuple[Numbers, int]]:
    """List all solvable problems of one side of the split, as (numbers, target)."""
    return [
        (numbers, target)
        for numbers in _orders(game, held_out)
        for target in sorted(targets(numbers, game))
        if target not in numbers
    ]


def _orders(game: Game, held_out: bool) -> Iterable[Numbers]:
    """Yield each multiset of one side of the split in one order.

    With `game.last_two` the order decides what can be reached. It is random, and the same for all seeds.
    """
    for numbers in multisets(game, held_out):
        yield tuple(random.Random(str(numbers)).sample(numbers, len(numbers))) if game.last_two else numbers


def _draw(solvable: list[tuple[Numbers, int]], n: int, name: str, game: Game) -> list[Problem]:
    rng = random.Random(name)
    drawn = rng.sample(solvable, n)
    if game.last_two:
        return [make_problem(numbers, target, last_two=True) for numbers, target in drawn]
    return [make_problem(tuple(rng.sample(numbers, len(numbers))), target) for numbers, target in drawn]


def make_problem(numbers: Numbers, target: int, *, last_two: bool = False) -> Problem:
    """Make a Problem from a target and numbers, in the order in which the prompt shows them.

    Args:
      last_two: whether a step must take the last two numbers (`Game.last_two`).
    """
    meta = {"numbers": list(numbers), "target": target} | ({"last_two": True} if last_two else {})
    return Problem(_id(numbers, target), prompt(numbers, target), str(target), meta)


def _id(numbers: Numbers, target: int) -> str:
    """The id of a problem, the same for all orders of its numbers."""
    return f"countdown-{'-'.join(map(str, sorted(numbers)))}-to-{target}"
