"""Split problems into training and evaluation by a hash of their text, and draw problems by a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence

from astro_jax.errors import AstroError
from astro_jax.types import Problem


def is_held_out(problem: Problem, share: float) -> bool:
    """Decide whether a problem is only for evaluation. A hash of the text, the end of the id, alone decides."""
    return int(problem.id[-16:], 16) < share * 2**64


def draw(
    groups: Sequence[Sequence[Problem]], counts: Sequence[int], name: str, side: str, dropped: Sequence[int] = ()
) -> list[Problem]:
    """Draw some problems of each group, and return them in a random order.

    Args:
      groups: the problems of each source, or all problems as one group.
      counts: how many problems of each group.
      name: names the random draw.
      side: says in the error message what the problems are for.
      dropped: how many problems of each group decontamination has dropped, for the error message.

    Raises:
      AstroError: if a group has too few problems.
    """
    for i, (group, n) in enumerate(zip(groups, counts, strict=True)):
        if n > len(group):
            where = "the source" if len(groups) == 1 else f"source {i + 1}"
            note, advice = "", "lower problems.* or scale"
            if dropped and dropped[i]:
                note = f" after decontamination, which dropped {dropped[i]}"
                advice = "raise problems.overlap_threshold, lower problems.held_out, " + advice
            raise AstroError(f"problems: {n} asked for, {where} has {len(group)} for {side}{note}: {advice}")
    if len(groups) == 1:
        return random.Random(name).sample(groups[0], counts[0])
    pairs = enumerate(zip(groups, counts, strict=True))
    drawn = [p for i, (group, n) in pairs for p in random.Random(f"{name}/{i}").sample(group, n)]
    random.Random(name).shuffle(drawn)
    return drawn
