"""Split problems into training and evaluation by a hash of their text, and draw problems by a seed."""

from __future__ import annotations

import random

from astro_jax.errors import AstroError
from astro_jax.types import Problem


def is_held_out(problem: Problem, share: float) -> bool:
    """Decide whether a problem is only for evaluation. A hash of the text, the end of the id, alone decides."""
    return int(problem.id[-16:], 16) < share * 2**64


def draw(problems: list[Problem], n: int, seed: int, *, evaluation: bool) -> list[Problem]:
    """Draw n problems of one side of the split in a random order.

    Raises:
      AstroError: if the side has fewer than n problems.
    """
    if n > len(problems):
        side = "held out for evaluation" if evaluation else "for search and RL"
        raise AstroError(f"problems: {n} asked for, the source has {len(problems)} {side}: lower problems.* or scale")
    return random.Random(f"{seed}/{evaluation}").sample(problems, n)
