"""Kept rollouts (`search.keep_rollouts`, ours): rollouts of the search become nodes that traces can choose from.

The paper does not say how its trees reach complete solutions. One simulation adds one level to one branch, so 32
simulations hardly ever reach the end of a solution of eight steps. The rollouts are the only texts that end.

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

    The rollout counts as evidence for the node that it was sampled from and for the nodes of its chain. It says nothing
    about the nodes above: it shows how often their solutions are right only if they lead to this node. The reward and
    the value of a node that the search has not proposed are the share of correct ones among its kept rollouts.
    """
    chain = tree.add_chain(node, steps)
    for n in (tree.nodes[node], *chain):
        n.kept_rollouts += 1
        if n.id != node and not n.number:
            n.prior = 0.0
            n.reward += (correct - n.reward) / n.kept_rollouts
            n.value = n.reward
    chain[-1].end(correct, answer)
