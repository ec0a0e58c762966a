"""Procedure cloning from templates (paper, section 2.4): a sequence of nodes becomes the segments of a trace.

After a backtrack in Countdown the template restates the numbers and the target as a prompt does, so a retry looks like
a fresh start. In other problems the template quotes the step that the trace goes back to. `rewriting` lets a model
write the segments again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from astro_jax import countdown, phrases
from astro_jax.search.tree import Tree


@dataclasses.dataclass(frozen=True)
class Segment:
    """One part of a trace: a step, a reflection, or a backtrack.

    Attributes:
      node: the id of the node that the segment is about. For a backtrack: the node that the trace returns to.
      kind: the kind of the segment.
      text: the text, a line break at its end included.
    """

    node: int
    kind: Literal["step", "reflect", "backtrack"]
    text: str


def clone(
    tree: Tree, sequence: Sequence[int], min_value: float | None, reflect: bool, confidence: float | None = None,
    max_rate: float = 1.0,
) -> list[Segment]:  # fmt: skip
    """Write a sequence of nodes as segments.

    Example: the sequence [1, 3, 4], where 3 is a wrong and 4 the correct child of 1, becomes the steps of 1 and 3, a
    doubt, a backtrack to 1, the step of 4, and a positive reflection.

    Args:
      sequence: node ids, from `linearize`.
      min_value, confidence, max_rate: which inner nodes get the positive reflection (`high_value_nodes`).
      reflect: whether reflections are written: after wrong ends, after the inner nodes of `min_value`, and after the
        last node. Without, backtracks are still written. Traces of the Direct control have neither.
    """
    segments: list[Segment] = []
    at = 0
    high_value = high_value_nodes(tree, sequence, min_value, confidence, max_rate)
    for i, n in enumerate(sequence):
        node = tree.nodes[n]
        if node.parent != at:
            if reflect:
                segments.append(Segment(at, "reflect", phrases.DOUBT + phrases.UNSURE))
            write_backtrack = _restate if tree.problem.task == "countdown" else _quote
            segments.append(Segment(node.parent, "backtrack", write_backtrack(tree, node.parent)))
        # A step of an end token alone has no text, and adds no line.
        segments.append(Segment(n, "step", node.text + "\n" * (bool(node.text) and not node.text.endswith("\n"))))
        if reflect and (i in high_value or n == sequence[-1]):
            segments.append(Segment(n, "reflect", phrases.DOUBT + phrases.CORRECT))
        at = n
    return segments


def high_value_nodes(
    tree: Tree, sequence: Sequence[int], min_value: float | None, confidence: float | None, max_rate: float
) -> set[int]:
    """The places in a sequence of the inner nodes that get the positive reflection.

    Args:
      min_value: the least Q of such a node. None: no node gets it.
      confidence: the lower bound of Q at this confidence (`Node.lower_bound`) is compared. None: Q itself. A node that
        one lucky rollout has seen has Q = 1, and a low bound.
      max_rate: the largest share of the inner nodes that get it, those with the highest bounds first.
    """
    inner = [i for i, n in enumerate(sequence) if not tree.nodes[n].terminal]
    if min_value is None:
        return set()
    nodes = {i: tree.nodes[sequence[i]] for i in inner}
    values = {i: node.value if confidence is None else node.lower_bound(confidence) for i, node in nodes.items()}
    high = sorted((i for i in inner if values[i] >= min_value), key=lambda i: -values[i])
    return set(high[: int(max_rate * len(inner))])


def _restate(tree: Tree, node: int) -> str:
    """Go back to a Countdown state, in the words of a prompt: "Let's go back to where we make 10 from 4 6."

    The last step up to the node that names numbers gives the state. (A policy that already reflects also proposes lines
    without numbers.) If no step does, the trace restarts.
    """
    target = tree.problem.meta["target"]
    for step in reversed(tree.path(node)):
        if numbers := countdown.numbers_left(step.text):
            return phrases.GO_BACK + countdown.restate(numbers, target)
    return phrases.RESTART + countdown.restate(tuple(tree.problem.meta["numbers"]), target)


def _quote(tree: Tree, node: int) -> str:
    """Go back to a step by quoting the step, or restart: "Let's go back to where we wrote: 2 + 3 = 5." """
    for step in reversed(tree.path(node)):
        if line := " ".join(step.text.split()):
            return f"{phrases.GO_BACK} wrote: {line}\n"
    return f"{phrases.RESTART} read the problem once more.\n"
