"""Algorithm 1: a tree becomes a sequence of nodes that visits wrong answers first and ends at a right one."""

from __future__ import annotations

import random
from collections.abc import Sequence

from astro_jax.search.tree import Node, Tree


def wrong_answers(tree: Tree) -> dict[str, list[Node]]:
    """The incorrect terminals by their answer. A terminal without a valid answer teaches nothing and is left out."""
    found: dict[str, list[Node]] = {}
    for node in tree.terminals(correct=False):
        if node.answer is not None:
            found.setdefault(node.answer, []).append(node)
    return found


def sample(tree: Tree, k: int, rng: random.Random) -> list[int] | None:
    """Draw one correct terminal and k incorrect ones with pairwise different answers, and linearize them.

    The correct one comes from all of Psi: Countdown's verifier is exact, so no answer is right by luck and there is
    nothing for the paper's self-evaluation to reject.

    Returns:
      node ids; None when the tree has no correct terminal or fewer than k different wrong answers.
    """
    correct = tree.terminals(correct=True)
    wrong = wrong_answers(tree)
    if not correct or len(wrong) < k:
        return None
    last = rng.choice(correct)
    first = {rng.choice(wrong[answer]).id for answer in rng.sample(sorted(wrong), k)}
    # In depth-first order, so that a branch is searched out before the next one (ours: the paper gives no order).
    return merge(tree, [*(n for n in tree.terminals(correct=False) if n.id in first), last])


def merge(tree: Tree, terminals: Sequence[Node]) -> list[int]:
    """The paths from the root to each terminal, in order, each node once.

    Where the next node is not a child of the one before, the sequence goes back to the next node's parent: the
    deepest node that its branch shares with any branch before. Both of the paper's invariants hold by construction
    of the arguments: the sequence ends at the last terminal, and no wrong answer occurs twice.
    """
    sequence: dict[int, None] = {}
    for terminal in terminals:
        for node in tree.path(terminal.id):
            sequence.setdefault(node.id)
    return list(sequence)
