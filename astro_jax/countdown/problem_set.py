"""Draw Countdown problems from one side of the split."""

from __future__ import annotations

import random

from astro_jax.countdown.game import Game, Numbers, multisets, reachable
from astro_jax.countdown.language import prompt
from astro_jax.errors import AstroError
from astro_jax.types import Problem


def problems(game: Game, n: int, seed: int, *, held_out: bool) -> list[Problem]:
    """Draw n distinct solvable problems from one side of the split.

    Two problems are the same if they have the same target and the same numbers in any order.

    Raises:
      AstroError: if the rules give fewer than n problems.
    """
    solvable = [
        (numbers, target)
        for numbers in multisets(game, held_out)
        for target in sorted(reachable(numbers, game))
        if target not in numbers
    ]
    if n > len(solvable):
        raise AstroError(f"countdown: {n} problems asked for, the rules give {len(solvable)}: lower problems.*")
    rng = random.Random(f"{seed}/{held_out}")
    drawn = rng.sample(solvable, n)
    return [make_problem(tuple(rng.sample(numbers, len(numbers))), target) for numbers, target in drawn]


def make_problem(numbers: Numbers, target: int) -> Problem:
    """Make a Problem from a target and numbers, in the order in which the prompt shows them."""
    name = "-".join(map(str, sorted(numbers)))
    meta = {"numbers": list(numbers), "target": target}
    return Problem(f"countdown-{name}-to-{target}", prompt(numbers, target), str(target), meta)
