"""Rounds of rollouts (`search.method: rounds`, ours): a tree of whole solutions that ends when it is usable.

The paper's search asks for 8 proposals and 128 rollouts before it looks at the tree for the first time. Here a round
samples a few rollouts of each tree, and adds them to the tree, merged where they begin alike. Their first steps are the
children; there are no separate proposals. After each round the tree ends if it holds what traces need
(`search.early_stop`).

The first round starts at the root. Later rounds go where the outcome is uncertain (`search.focus`). Example: seven
solutions are right, and one of ten steps is wrong.

    root (7 of 8 right) - s1 - s2 - s3 - s4 - s5 - s6 - s7 - s8 - s9 - wrong

The solution was still good at the root, and has failed at its end. So rollouts from s5, half way between, are wrong
more often than those from the root. They also cost half as much, and share a beginning that a trace can go back to. If
some are right, s5 was still good, and the next round starts half way between s5 and the end. If all are wrong, it
starts half way between the root and s5. This bisection finds the first wrong step (as in OmegaPRM, arXiv 2406.06592).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from astro_jax import config as cfg
from astro_jax.policy import Policy
from astro_jax.sampler import Completion
from astro_jax.search import stopping
from astro_jax.search.tree import Node, Tree
from astro_jax.search.tree_sampler import TreeSampler
from astro_jax.types import Problem, Verdict
from astro_jax.verify import Verifier


class RolloutRounds:
    """Samples `search.rounds` rollouts a round. `Tree.simulations` counts the rounds.

    Q(S) is the share of correct ones among the N(S) rollouts that were sampled from S, or from a node above and led
    through S. A rollout from S says nothing about the nodes above S.
    """

    def __init__(self, c: cfg.Search, policy: Policy, verifier: Verifier, num_problems: int):
        self.c, self.sampler = c, TreeSampler(c, policy, verifier)
        self.token_budget = stopping.token_budget(c, num_problems)
        self.num_steps = len(c.rounds)

    def init(self, problem: Problem) -> Tree:
        """Make a tree that is only a root."""
        return self.sampler.root(problem)

    def step(self, trees: Sequence[Tree]) -> None:
        """Make one round of each tree, and set the `end_reason` of the trees that need no more."""
        starts = [(tree, node, n) for tree in trees for node, n in allocate(tree, self.c, self.sampler.fits)]
        nodes, counts = [(tree, node) for tree, node, _ in starts], [n for *_, n in starts]
        names = {tree.problem.id: f"round {tree.simulations}" for tree in trees}
        rollouts, verdicts = self.sampler.roll_out(nodes, counts, [names[tree.problem.id] for tree, _ in nodes])
        for (tree, node), completions, group in zip(nodes, rollouts, verdicts, strict=True):
            for completion, verdict in zip(completions, group, strict=True):
                self._add(tree, node, completion, verdict)
        for tree in trees:
            tree.simulations += 1
            tree.end_reason = stopping.end_reason(tree, self.c, self.token_budget)
            if not tree.end_reason and tree.simulations == self.num_steps:
                tree.end_reason = "rounds"
            _set_priors(tree)

    def _add(self, tree: Tree, start: Node, rollout: Completion, verdict: Verdict) -> None:
        """Count one rollout for its start, and for the nodes of its steps if it ended within the depth limit."""
        steps = self.sampler.split_into_steps(rollout)
        chain: list[Node] = []
        if rollout.stopped and len(tree.path(start.id)) + len(steps) <= self.c.max_depth:
            chain = tree.add_chain(start.id, steps)
            chain[-1].end(verdict.correct, verdict.answer)
        else:
            tree.unfinished += 1
        for node in (start, *chain):
            node.count(verdict.correct)


def allocate(
    tree: Tree, c: cfg.Search, fits: Callable[[tuple[int, ...]], bool] = lambda tokens: True
) -> list[tuple[Node, int]]:
    """The nodes from which the next round of a tree samples, with the number of rollouts of each.

    A tree without a correct terminal samples from the root, where the chance of a correct solution is best known. A
    tree with correct and wrong terminals spends half of the round on the root, and the other half on the uncertain
    nodes of its wrong solutions, evenly, at most one node for two rollouts.

    Args:
      fits: whether the model's context has room for a rollout after a prefix. The root has.
    """
    root, n = tree.nodes[0], c.rounds[tree.simulations]
    if c.focus == "root" or not tree.terminals(True):
        return [(root, n)]
    wrong = [node for node in tree.terminals(False) if node.answer]
    uncertain = list({node.id: node for end in wrong if (node := uncertain_node(tree, end))}.values())
    uncertain = [node for node in uncertain if fits(tree.prefix_tokens(node.id))][: n // 4]
    if not uncertain:
        return [(root, n)]
    shares = [len(range(i, n // 2, len(uncertain))) for i in range(len(uncertain))]
    return [(root, n - n // 2), *zip(uncertain, shares, strict=True)]


def uncertain_node(tree: Tree, end: Node) -> Node | None:
    """The node half way between the last good and the first bad node of a wrong solution. None if none lies between.

    Good: a rollout through the node was correct, or the node is the root. Bad: the node is the end, or at least two
    rollouts led through it, all of them wrong.
    """
    path = tree.path(end.id)
    good = max((i + 1 for i, node in enumerate(path) if node.value > 0), default=0)  # the root is 0
    bad = next(i + 1 for i, node in enumerate(path) if i + 1 > good and (node is end or node.visits > 1))
    middle = (good + bad) // 2
    return path[middle - 1] if good < middle < bad else None


def _set_priors(tree: Tree) -> None:
    """Set P of each node to its share of the rollouts through the children of its parent."""
    for node in tree.nodes:
        total = sum(tree.nodes[child].visits for child in node.children)
        for child in node.children:
            tree.nodes[child].prior = tree.nodes[child].visits / total
