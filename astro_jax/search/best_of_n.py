"""Best-of-N (`search.method: best-of-n`, ours): a tree of N independent solutions, merged where they begin alike.

The tree has the same fields as one of MCTS, so the traces can be made from either.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from astro_jax import config as cfg
from astro_jax.policy import Policy
from astro_jax.sampler import Completion
from astro_jax.search.tree import Node, Step, Tree
from astro_jax.search.tree_sampler import TreeSampler, priors
from astro_jax.types import Problem, Verdict
from astro_jax.verify import Verifier


class BestOfN:
    """Samples `search.num_samples` solutions a problem. The depth limit of the tree search does not apply."""

    def __init__(self, c: cfg.Search, policy: Policy, verifier: Verifier):
        self.c, self.sampler, self.num_steps = c, TreeSampler(c, policy, verifier), 1

    def init(self, problem: Problem) -> Tree:
        """Make a tree that is only a root."""
        return self.sampler.root(problem)

    def step(self, trees: Sequence[Tree]) -> None:
        """Sample and merge all solutions of each tree, and end the trees."""
        roots = [(tree, tree.nodes[0]) for tree in trees]
        n = len(roots)
        solutions, verdicts = self.sampler.roll_out(roots, [self.c.num_samples] * n, ["sample"] * n)
        for tree, completions, group in zip(trees, solutions, verdicts, strict=True):
            self._merge(tree, completions, group)
            tree.end_reason = "samples"

    def _merge(self, tree: Tree, completions: Sequence[Completion], verdicts: Sequence[Verdict]) -> None:
        """Add all solutions of one tree, and set the priors of siblings from the scores of their steps."""
        scores: dict[int, dict[int, float]] = {}  # parent -> child -> score
        for completion, verdict in zip(completions, verdicts, strict=True):
            steps = self.sampler.split_into_steps(completion)
            starts = np.cumsum([0, *(len(step.tokens) for step in steps)])
            for i, node in enumerate(add(tree, steps, verdict.correct, verdict.answer)):
                logprobs = completion.logprobs[starts[i] : starts[i + 1]]
                scores.setdefault(node.parent, {})[node.id] = self.sampler.score(logprobs) if len(logprobs) else 0.0
        for siblings in scores.values():
            for node_id, prior in priors(siblings).items():
                tree.nodes[node_id].prior = prior


def add(tree: Tree, steps: Sequence[Step], correct: bool, answer: str | None) -> list[Node]:
    """Add one judged solution below the root. Each solution is one evaluation of the nodes of its path (`Node.count`).

    Returns:
      the nodes of the steps.
    """
    chain = tree.add_chain(0, steps)
    for node in (tree.nodes[0], *chain):
        node.count(correct)
    chain[-1].end(correct, answer)
    return chain
