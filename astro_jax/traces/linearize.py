"""Algorithm 1 of the paper (section 2.3): `linearize` turns a tree into a sequence of nodes.

The sequence visits k wrong answers first and ends at a correct terminal. Example, with the wrong terminals 3 and 5, the
correct terminal 4 and k = 2:

    root -+- 1 -+- 3  wrong, answer 2        [1, 3, 4]        for k = 1 with terminal 3
          |     `- 4  correct                [2, 5, 1, 4]     for k = 1 with terminal 5
          `- 2 --- 5  wrong, answer 9        [1, 3, 2, 5, 4]  for k = 2
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Collection, Sequence
from typing import Literal

from astro_jax.search.tree import Node, Tree
from astro_jax.verify.same_answer import value_key

LeaveAt = Literal["terminal", "inside"]
MergeAt = Literal["ancestor", "root", "random"]


@dataclasses.dataclass(frozen=True)
class Terminals:
    """The terminals of a finished tree, in depth-first order. A large tree is searched for them once.

    Attributes:
      correct: Psi of the paper, the correct terminals.
      wrong: the incorrect terminals.
      wrong_answers: Lambda of the paper, the incorrect terminals by answer. A terminal without an answer is left out.
        Answers of equal value are one answer, under the text that comes first.
    """

    correct: list[Node]
    wrong: list[Node]
    wrong_answers: dict[str, list[Node]]

    @classmethod
    def of(cls, tree: Tree) -> Terminals:
        """Find the terminals of a tree."""
        terminals = tree.all_terminals()
        wrong = [node for node in terminals if not node.correct]
        by_answer: dict[str, list[Node]] = {}
        names: dict[str, str] = {}  # value -> the first answer with this value
        for node in wrong:
            if node.answer is not None:
                name = names.setdefault(value_key(node.answer), node.answer)
                by_answer.setdefault(name, []).append(node)
        return cls([node for node in terminals if node.correct], wrong, by_answer)


def linearize(
    tree: Tree, k: int, rng: random.Random, leave_at: LeaveAt = "terminal", merge_at: MergeAt = "ancestor",
    passed: Collection[int] | None = None, terminals: Terminals | None = None,
) -> list[int] | None:  # fmt: skip
    """Algorithm 1: draw one correct terminal and k incorrect ones with different answers, and merge their paths.

    Args:
      k: the number of wrong answers.
      leave_at: where a wrong branch is left: at its terminal, or at a node before the terminal.
      merge_at: where the next path is entered (`merge_paths`).
      passed: Psi', the correct terminals that self-evaluation let pass. None: all correct terminals (Psi). A verifier
        that is exact leaves nothing to filter.
      terminals: of the tree. None: find them.

    Returns:
      node ids. None when the tree has no such correct terminal, or fewer than k different wrong answers. With
      `leave_at="inside"` the sequence has at most k wrong branches, and None stands for a tree whose wrong branches
      cannot be left before their terminals.
    """
    terminals = terminals or Terminals.of(tree)
    correct = [n for n in terminals.correct if passed is None or n.id in passed]
    wrong = terminals.wrong_answers
    if not correct or len(wrong) < k:
        return None
    last = rng.choice(correct)
    if leave_at == "inside":
        ends = _draw_inside(tree, wrong, k, last, rng)
    else:
        drawn = (rng.choice(wrong[answer]).id for answer in rng.sample(sorted(wrong), k))
        ends = {terminal: terminal for terminal in drawn}
    if k and not ends:
        return None
    # In depth-first order, so that a branch is finished before the next one starts (ours: the paper gives no order).
    branches = [tree.nodes[ends[n.id]] for n in terminals.wrong if n.id in ends]
    return merge_paths(tree, [*branches, last], merge_at, rng)


def merge_paths(
    tree: Tree, ends: Sequence[Node], merge_at: MergeAt = "ancestor", rng: random.Random | None = None
) -> list[int]:
    """Join the paths from the root to each end, in order. No end node is an ancestor of another end node.

    Where the next node is not a child of the node before, the sequence goes back to the next node's parent. The two
    invariants of the paper follow: the sequence ends at the last end, and no wrong answer occurs twice.

    Args:
      merge_at: where a path is entered after the end before. "ancestor": below the deepest node that the path shares
        with any earlier path, so each node stands once. "root": at the root, so the whole path is repeated. "random":
        below any node between the root and that deepest node.
      rng: draws the node for "random".
    """
    sequence: list[int] = []
    seen: set[int] = set()
    for end in ends:
        path = [node.id for node in tree.path(end.id)]
        start = 0 if merge_at == "root" else sum(n in seen for n in path)
        if merge_at == "random":
            assert rng is not None, 'merge_at="random" needs rng'
            start = rng.randint(0, start)
        sequence += path[start:]
        seen.update(path)
    return sequence


def count_backtracks(tree: Tree, sequence: Sequence[int]) -> int:
    """Count the nodes of a sequence that are not children of the node before."""
    return sum(tree.nodes[n].parent != before for before, n in zip([0, *sequence], sequence, strict=False))


def _draw_inside(tree: Tree, wrong: dict[str, list[Node]], k: int, last: Node, rng: random.Random) -> dict[int, int]:
    """Draw at most k incorrect terminals, and for each an inner node of its path at which the branch is left.

    Such a node lies neither on the path to another end, else nothing would be gone back from; nor below another end,
    else a branch that was left would go on.

    Returns:
      {terminal: inner node}.
    """
    on_paths = {n.id for n in tree.path(last.id)}
    ends: dict[int, int] = {}
    for answer in rng.sample(sorted(wrong), len(wrong)):
        terminal = rng.choice(wrong[answer])
        path = [n.id for n in tree.path(terminal.id)[:-1]]
        free = [n for n in path if n not in on_paths]
        if len(ends) < k and free and not set(ends.values()) & set(path):
            end = ends[terminal.id] = rng.choice(free)
            on_paths.update(path[: path.index(end) + 1])
    return ends
