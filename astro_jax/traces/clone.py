"""Procedure cloning: a sequence of nodes becomes text, from templates (traces.rewrite has it
written again by a model).

After a backtrack of Countdown the state is restated in the words of a prompt (its numbers and the target), so that a
retry looks like a fresh start; in a text, the line is quoted to which it goes back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from astro_jax import countdown, phrases
from astro_jax.search.tree import Tree


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of a chain of thought.

    Attributes:
      node: the node that it is about; of a backtrack, the one returned to.
    """

    node: int
    kind: Literal["step", "reflect", "backtrack"]
    text: str


def clone(tree: Tree, sequence: Sequence[int], min_value: float | None, reflect: bool) -> list[Piece]:
    """Write out a linearization.

    Args:
      sequence: node ids, from traces.linearize.
      min_value: intermediate nodes with at least this Q get the positive reflection; None: none does.
      reflect: whether wrong ends, such nodes and the right end are reflected on; without, only the ways back are said.
        The Direct control has none of both.
    """
    pieces: list[Piece] = []
    at = 0
    for n in sequence:
        node = tree.nodes[n]
        if node.parent != at:
            if reflect:
                pieces.append(Piece(at, "reflect", phrases.DOUBT + phrases.UNSURE))
            back = _restate if tree.problem.task == "countdown" else _quote
            pieces.append(Piece(node.parent, "backtrack", back(tree, node.parent)))
        pieces.append(Piece(n, "step", node.text if node.text.endswith("\n") else node.text + "\n"))
        high = min_value is not None and not node.terminal and node.value >= min_value
        if reflect and (high or n == sequence[-1]):
            pieces.append(Piece(n, "reflect", phrases.DOUBT + phrases.CORRECT))
        at = n
    return pieces


def _restate(tree: Tree, node: int) -> str:
    """Back to an inner node, or to the root; the state is restated. It is what the last line up to there said: a policy
    that reflects already has lines that say nothing of it."""
    target = tree.problem.meta["target"]
    for step in reversed(tree.path(node)):
        if numbers := countdown.numbers_left(step.text):
            return phrases.GO_BACK + countdown.restate(numbers, target)
    return phrases.RESTART + countdown.restate(tuple(tree.problem.meta["numbers"]), target)


def _quote(tree: Tree, node: int) -> str:
    """Back to a line of a text, or to its beginning."""
    for step in reversed(tree.path(node)):
        if line := " ".join(step.text.split()):
            return f"{phrases.GO_BACK} wrote: {line}\n"
    return f"{phrases.RESTART} read the problem once more.\n"
