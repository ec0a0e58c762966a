"""Monte Carlo tree search over reasoning steps (paper, section 2.2).

One simulation of a tree has four phases, each a function of this module:

1. `select`: descend from the root by the PUCT score to a leaf.
2. `expand`: sample the next steps after the leaf. Different steps become its children.
3. `evaluate`: roll out each child to the end. Its reward R is the share of correct rollouts (Eq. 2).
4. `backup`: count the evaluation in N (Eq. 3), and update Q (Eq. 4), from the child up to the root.

`MCTS.step` makes one simulation of many trees at once. Each phase then is one call of the sampler, or of the verifier,
for all trees.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence

from astro_jax import config as cfg
from astro_jax.policy import Policy
from astro_jax.search import kept_rollouts, stopping
from astro_jax.search.tree import Node, Tree
from astro_jax.search.tree_sampler import TreeSampler, priors
from astro_jax.types import Problem, Response
from astro_jax.verify import Verifier


def puct_score(node: Node, sqrt_parent_visits: float, c_puct: float) -> float:
    """The PUCT score of the action a that leads from S to `node`:

        Q(S, a) + c_puct * P(a | S) * sqrt(N(S)) / (1 + N(S, a))

    Virtual visits of the node count as visits of value 0.

    Args:
      sqrt_parent_visits: sqrt(N(S)), virtual visits included.
    """
    visits = node.visits + node.virtual_visits
    value = node.value * node.visits / visits if visits else 0.0
    return value + c_puct * node.prior * sqrt_parent_visits / (1 + visits)


def select(tree: Tree, c_puct: float) -> Node:
    """Selection: descend from the root to a leaf, always to the child with the highest PUCT score.

    A leaf is a node without proposed children. Nodes that exist only because a rollout was kept are ignored.

    Virtual loss: the selection counts as a visit of value 0 on its whole path, until `undo_virtual_loss`. So further
    selections before the next backup prefer other leaves (`search.num_parallel_leaves`).
    """
    node = tree.nodes[0]
    while proposed := [child for c in node.children if (child := tree.nodes[c]).number]:
        sqrt_visits = math.sqrt(node.visits + node.virtual_visits)
        node.virtual_visits += 1
        node = max(proposed, key=lambda child: puct_score(child, sqrt_visits, c_puct))
    node.virtual_visits += 1
    return node


def undo_virtual_loss(tree: Tree, leaf: Node) -> None:
    """Take back the virtual visits of one selection of `leaf`."""
    for node in (tree.nodes[0], *tree.path(leaf.id)):
        node.virtual_visits -= 1


def expand(leaves: Sequence[tuple[Tree, Node]], sampler: TreeSampler) -> list[tuple[Tree, Node]]:
    """Expansion: sample k next steps after each leaf. Equal steps become one child.

    A leaf without a complete step becomes an incorrect terminal. It is only closed when a rollout from it was correct,
    or was kept: steps can follow it.

    Returns:
      the new children, with priors and without rewards.
    """
    proposals = sampler.propose(leaves)
    children = []
    for (tree, leaf), completions in zip(leaves, proposals, strict=True):
        scores = {tuple(c.token_ids.tolist()): sampler.score(c.logprobs) for c in completions if c.stopped}
        for tokens, prior in priors(scores).items():
            text = sampler.policy.tokenizer.decode(tokens)
            children.append((tree, tree.add_child(leaf.id, tokens, text, prior)))
        if not scores:
            tree.unfinished += 1
            if leaf.reward or leaf.children:
                leaf.closed = True
                continue
            leaf.end(False, None)
            leaf.reward = 0.0
    return children


def evaluate(children: Sequence[tuple[Tree, Node]], sampler: TreeSampler) -> None:
    """Evaluation: set the reward R(S') of each child (Eq. 2).

        R(S') = (1 / M) * sum of the verdicts of M rollouts from S'

    The reward of a terminal is its own verdict, 1 or 0. A child is terminal when its step ends the solution, at the
    depth limit, and where the model's context has no room for a further step.
    """
    c = sampler.c
    terminals, responses, inner = [], [], []
    for tree, node in children:
        complete = sampler.ends_solution(node.tokens)
        if complete or len(tree.path(node.id)) >= c.max_depth or not sampler.fits(tree.prefix_tokens(node.id)):
            terminals.append((tree, node))
            responses.append(Response(tree.problem, tree.path_text(node.id), complete))
        else:
            inner.append((tree, node))
    for (tree, node), verdict in zip(terminals, sampler.judge(responses), strict=True):
        node.end(verdict.correct, verdict.answer)
        node.reward = float(verdict.correct)
        if verdict.correct:
            tree.solved_at = tree.solved_at or tree.sampled_tokens
    _roll_out_in_rounds(inner, sampler)


def _roll_out_in_rounds(children: Sequence[tuple[Tree, Node]], sampler: TreeSampler) -> None:
    """Roll out new nodes: `num_rollouts` each at once, or in the rounds of `rollout_rounds` (ours).

    After each round but the last, the children of trees that have enough stop. Of the others, the half whose value is
    least certain goes on: whose reward is nearest to 1/2 (sequential halving, as Gumbel MuZero evaluates actions).
    """
    c = sampler.c
    correct: collections.Counter[tuple[int, int]] = collections.Counter()
    total: collections.Counter[tuple[int, int]] = collections.Counter()
    for i, n in enumerate(c.rollout_rounds or (c.num_rollouts,)):
        if i:
            children = _uncertain_half(children, c)
        names = [f"rollout {i}" if i else "rollout"] * len(children)
        rollouts, verdicts = sampler.roll_out(children, [n] * len(children), names)
        for (tree, node), completions, group in zip(children, rollouts, verdicts, strict=True):
            key = (id(tree), node.id)
            correct[key] += sum(v.correct for v in group)
            total[key] += len(group)
            node.reward = correct[key] / total[key]
            if c.keep_rollouts:
                kept_rollouts.keep(tree, node, completions, group, sampler)


def _uncertain_half(children: Sequence[tuple[Tree, Node]], c: cfg.Search) -> list[tuple[Tree, Node]]:
    """The half of each tree's new nodes whose reward is nearest to 1/2. None of a tree that has enough."""
    groups: dict[int, list[tuple[Tree, Node]]] = {}
    for tree, node in children:
        groups.setdefault(id(tree), []).append((tree, node))
    chosen = []
    for group in groups.values():
        if not stopping.has_enough(group[0][0], c):
            chosen += sorted(group, key=lambda child: abs(child[1].reward - 0.5))[: (len(group) + 1) // 2]
    return chosen


def backup(tree: Tree, node: Node) -> None:
    """Backup: count one evaluation of `node`, and update N and Q from the node up to the root (Eq. 3 and 4).

    N(S) += 1
    Q(S, a) = (sum_i Q(S', a_i) N(S', a_i) + R(S')) / (sum_i N(S', a_i) + 1), where a leads from S to S'
    """
    for ancestor in (*tree.path(node.id)[::-1], tree.nodes[0]):
        ancestor.visits += 1
        children = [tree.nodes[c] for c in ancestor.children]
        child_visits = sum(child.visits for child in children)
        ancestor.value = (sum(child.value * child.visits for child in children) + ancestor.reward) / (child_visits + 1)


class MCTS:
    """Tree search with one policy. A tree does not depend on the trees that are searched at the same time.

    Args:
      num_problems: the number of problems that share `search.max_total_tokens`.
    """

    def __init__(self, c: cfg.Search, policy: Policy, verifier: Verifier, num_problems: int):
        self.c, self.sampler = c, TreeSampler(c, policy, verifier)
        self.token_budget = stopping.token_budget(c, num_problems)
        self.num_steps = c.num_simulations

    def init(self, problem: Problem) -> Tree:
        """Make a tree that is only a root."""
        return self.sampler.root(problem)

    def step(self, trees: Sequence[Tree]) -> None:
        """Make one simulation of each tree, and set the `end_reason` of the trees that need no more.

        With `num_parallel_leaves` > 1 a simulation selects that many leaves of each tree before it expands them.
        """
        selected = [(tree, select(tree, self.c.c_puct)) for tree in trees for _ in range(self.c.num_parallel_leaves)]
        leaves = list({(id(tree), leaf.id): (tree, leaf) for tree, leaf in selected}.values())
        children = expand([(tree, leaf) for tree, leaf in leaves if not (leaf.terminal or leaf.closed)], self.sampler)
        evaluate(children, self.sampler)
        for tree, leaf in selected:
            undo_virtual_loss(tree, leaf)
        for tree, leaf in leaves:
            if leaf.terminal or leaf.closed:  # no child was added: the leaf is evaluated again, by the same reward
                backup(tree, leaf)
        for tree, child in children:
            backup(tree, child)
        for tree in trees:
            tree.simulations += 1
            tree.end_reason = stopping.end_reason(tree, self.c, self.token_budget)
            if not tree.end_reason and tree.simulations == self.num_steps:
                tree.end_reason = "iterations"
