"""Kept rollouts (`search.keep_rollouts`, ours): rollouts of the search become nodes that traces can choose from.

A kept rollout adds a chain of nodes below the node that it was rolled out from. The chain does not change the search:
its nodes have N = 0 and P = 0, and `mcts.select` does not see them. When the search later proposes such a step itself,
the node becomes a proposed one (`Tree.add_child`).
"""

from __future__ import annotations

from collections.abc import Sequence

from astro_jax.sampler import Completion
from astro_jax.search.tree import Node, Step, Tree
from astro_jax.search.tree_sampler import TreeSampler
from astro_jax.types import Verdict


def keep(
    tree: Tree, node: Node, rollouts: Sequence[Completion], verdicts: Sequence[Verdict], sampler: TreeSampler
) -> None:
    """Add the rollouts of a node that ended within the depth limit."""
    depth = len(tree.path(node.id))
    for rollout, verdict in zip(rollouts, verdicts, strict=True):
        steps = sampler.split_into_steps(rollout)
        if rollout.stopped and depth + len(steps) <= sampler.c.max_depth:
            add(tree, node.id, steps, verdict.correct, verdict.answer)


def add(tree: Tree, node: int, steps: Sequence[Step], correct: bool, answer: str | None) -> None:
    """Add one judged rollout below a node, merged with the steps that the tree already holds.

    The reward and the value of each node of the chain are the share of correct ones among its kept rollouts.
    """
    chain = tree.add_chain(node, steps)
    for n in chain:
        n.prior, n.kept_rollouts = 0.0, n.kept_rollouts + 1
        n.reward += (correct - n.reward) / n.kept_rollouts
        n.value = n.reward
    chain[-1].end(correct, answer)
