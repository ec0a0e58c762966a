"""Algorithm 1: a tree becomes a sequence of nodes that visits wrong answers first and ends at a right one."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from typing import Literal

from astro_jax.search.tree import Node, Tree


def wrong_answers(tree: Tree) -> dict[str, list[Node]]:
    """The incorrect terminals by their answer. A terminal without a valid answer teaches nothing and is left out."""
    found: dict[str, list[Node]] = {}
    for node in tree.terminals(correct=False):
        if node.answer is not None:
            found.setdefault(node.answer, []).append(node)
    return found


def sample(
    tree: Tree, k: int, rng: random.Random, leave: Literal["terminal", "inside"] = "terminal",
    point: Literal["ancestor", "root", "random"] = "ancestor", passed: Collection[int] | None = None,
) -> list[int] | None:  # fmt: skip
    """Draw one correct terminal and k incorrect ones with pairwise different answers, and linearize them.

    Args:
      leave: whether a wrong branch is left at its terminal or at a node inside.
      point: where the next one is entered, see `merge`.
      passed: Psi', the correct terminals to draw from (traces.self_evaluation); None: all of Psi, as where a verifier
        is exact and no answer is right by luck.

    Returns:
      node ids; None when the tree has no such terminal or fewer than k different wrong answers. With `leave` inside k
      is the most, and None is for a tree none of whose wrong branches can be left before its end.
    """
    correct = [n for n in tree.terminals(correct=True) if passed is None or n.id in passed]
    wrong = wrong_answers(tree)
    if not correct or len(wrong) < k:
        return None
    last = rng.choice(correct)
    if leave == "inside":
        left = _inside(tree, wrong, k, last, rng)
    else:
        drawn = (rng.choice(wrong[answer]).id for answer in rng.sample(sorted(wrong), k))
        left = {terminal: terminal for terminal in drawn}
    if k and not left:
        return None
    # In depth-first order, so that a branch is searched out before the next one (ours: the paper gives no order).
    ends = [tree.nodes[left[n.id]] for n in tree.terminals(correct=False) if n.id in left]
    return merge(tree, [*ends, last], point, rng)


def merge(
    tree: Tree, ends: Sequence[Node], point: Literal["ancestor", "root", "random"] = "ancestor",
    rng: random.Random | None = None,
) -> list[int]:  # fmt: skip
    """The paths from the root to each end, in order. No end lies on the path to another.

    Args:
      point: where a path is entered from the end before it. "ancestor": at the deepest node that it shares with any
        path before, so that each node stands once; "root": at the root, so that the path is repeated as a whole;
        "random": at any node from the root to that deepest one.
      rng: draws the random one.

    Where the next node is not a child of the one before, the sequence goes back to the next node's parent. Both of the
    paper's invariants hold by construction of the arguments: the sequence ends at the last end, and no wrong answer
    occurs twice, since no terminal does.
    """
    sequence: list[int] = []
    seen: set[int] = set()
    for end in ends:
        path = [node.id for node in tree.path(end.id)]
        start = 0 if point == "root" else sum(n in seen for n in path)
        if point == "random":
            assert rng is not None, "a random point is drawn"
            start = rng.randint(0, start)
        sequence += path[start:]
        seen.update(path)
    return sequence


def backtracks(tree: Tree, sequence: Sequence[int]) -> int:
    """How often a sequence goes back."""
    return sum(tree.nodes[n].parent != before for before, n in zip([0, *sequence], sequence, strict=False))


def _inside(
    tree: Tree, wrong: dict[str, list[Node]], k: int, last: Node, rng: random.Random
) -> dict[int, int]:  # fmt: skip
    """At most k incorrect terminals, with the inner node before each at which its branch is left.

    Such a node lies neither on the path to another end nor below one: else nothing would be gone back from, or a
    branch that was left would go on.
    """
    ways = {n.id for n in tree.path(last.id)}
    left: dict[int, int] = {}
    for answer in rng.sample(sorted(wrong), len(wrong)):
        terminal = rng.choice(wrong[answer])
        path = [n.id for n in tree.path(terminal.id)[:-1]]
        free = [n for n in path if n not in ways]
        if len(left) < k and free and not set(left.values()) & set(path):
            end = left[terminal.id] = rng.choice(free)
            ways.update(path[: path.index(end) + 1])
    return left
