"""The batched driver: many trees grow together, and each phase is one call of the sampler for all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath

from astro_jax import config as cfg
from astro_jax.problems import Problem
from astro_jax.progress import Bar
from astro_jax.sampler import Policy, Request, Sample
from astro_jax.search.tree import Node, Tree
from astro_jax.storage import Shards
from astro_jax.verify import Response, Verifier


def run(
    folder: epath.Path, problems: Sequence[Problem], c: cfg.Search, policy: Policy, verifier: Verifier
) -> dict[str, Any]:
    """Search all problems, in waves; each finished wave is one shard of the store `folder`/trees-*.jsonl.

    Returns:
      counts: trees, nodes, and the yield (share of trees with a correct terminal).
    """
    store = Shards(folder, "trees")
    waves = [problems[i : i + c.wave] for i in range(0, len(problems), c.wave)]
    done = sum(len(wave) for i, wave in enumerate(waves) if store.has(i))
    with Bar("search", len(problems), "trees", done) as bar:
        for i, wave in enumerate(waves):
            if store.has(i):
                continue
            trees = search(wave, c, policy, verifier)
            store.write(i, (tree.record() for tree in trees))
            solved = sum(bool(tree.terminals(True)) for tree in trees) / len(trees)
            bar.advance(len(wave), solved=solved, nodes_a_tree=sum(len(t.nodes) for t in trees) / len(trees))
    trees = [Tree.from_record(r) for r in store.read()]
    valid = sum(bool(tree.terminals(True)) for tree in trees)
    return {
        "trees": len(trees),
        "nodes": sum(len(t.nodes) for t in trees),
        "valid_trees": valid,
        "yield": round(valid / max(len(trees), 1), 4),
    }


def search(problems: Sequence[Problem], c: cfg.Search, policy: Policy, verifier: Verifier) -> list[Tree]:
    """Grow one tree a problem, all at the same time, for `c.iterations` iterations of `c.leaves` leaves each."""
    trees = [Tree(p, policy.tokenizer.prompt(p.prompt)) for p in problems]
    driver = _Driver(c, policy, verifier)
    with policy.sampler.keeping():  # a child's prefix begins with its parent's
        for _ in range(c.iterations):
            _iterate(trees, c, driver)
    return trees


def _iterate(trees: Sequence[Tree], c: cfg.Search, driver: _Driver) -> None:
    """One round of selection, expansion, evaluation and backup in each tree."""
    selected = [(tree, tree.select(c.c_puct)) for tree in trees for _ in range(c.leaves)]
    leaves = list({(id(tree), node): (tree, node) for tree, node in selected}.values())
    children = driver.expand([(t, n) for t, n in leaves if not t.nodes[n].terminal])
    driver.evaluate(children)
    for tree, node in selected:
        tree.release(node)
    for tree, node in leaves:
        if tree.nodes[node].terminal:
            tree.backup(node)
    for tree, child in children:
        tree.backup(child.id)


class _Driver:
    """Expansion and evaluation of leaves of many trees with one policy."""

    def __init__(self, c: cfg.Search, policy: Policy, verifier: Verifier):
        self.c, self.policy, self.verifier = c, policy, verifier
        # A step ends with any token whose text ends so, or with an end token.
        self.step_ends = (*policy.tokenizer.ending_with(c.step_end), *policy.tokenizer.ends)

    def expand(self, leaves: Sequence[tuple[Tree, int]]) -> list[tuple[Tree, Node]]:
        """Propose k next steps for each leaf; equal ones become one child.

        The prior is the policy's probability of the step, normalized over siblings: of the whole step, or with `prior:
        mean` the geometric mean over its tokens, so that many tokens do not make a step unlikely.
        """
        samples = self._sample(leaves, self.c.proposals, "propose", self._next_steps)
        children = []
        for (tree, leaf), proposed in zip(leaves, samples, strict=True):
            score = np.sum if self.c.prior == "total" else np.mean
            distinct = {tuple(s.tokens.tolist()): float(score(s.logprobs)) for s in proposed if s.stopped}
            top = max(distinct.values(), default=0.0)
            total = sum(math.exp(logp - top) for logp in distinct.values())
            for tokens, logp in distinct.items():
                child = tree.add(leaf, tokens, self.policy.tokenizer.decode(tokens), math.exp(logp - top) / total)
                children.append((tree, child))
            if not distinct:  # no step within max_step_tokens: nothing can follow this node
                tree.nodes[leaf].terminal, tree.nodes[leaf].correct, tree.nodes[leaf].reward = True, False, 0.0
        return children

    def evaluate(self, children: Sequence[tuple[Tree, Node]]) -> None:
        """Set R(S') of new nodes: a terminal's verdict, else the mean verdict of M rollouts (Eq. 2)."""
        ended, open_nodes = [], []
        for tree, node in children:
            stopped = node.tokens[-1] in self.policy.tokenizer.ends
            if stopped or len(tree.path(node.id)) >= self.c.depth:
                ended.append((node, Response(tree.problem, tree.text(node.id), stopped)))
            else:
                open_nodes.append((tree, node))
        for (node, _), verdict in zip(ended, self.verifier.judge([r for _, r in ended]), strict=True):
            node.terminal, node.correct = True, verdict.correct
            node.answer, node.reward = verdict.answer, float(verdict.correct)
        samples = self._sample([(t, n.id) for t, n in open_nodes], self.c.rollouts, "rollout", self._to_the_end)
        responses = [
            Response(tree.problem, tree.text(node.id) + self.policy.tokenizer.decode(r.tokens.tolist()), r.stopped)
            for (tree, node), rollouts in zip(open_nodes, samples, strict=True)
            for r in rollouts
        ]
        verdicts = self.verifier.judge(responses)
        for i, (_, node) in enumerate(open_nodes):
            mine = verdicts[i * self.c.rollouts : (i + 1) * self.c.rollouts]
            node.reward = sum(v.correct for v in mine) / len(mine)

    def _sample(
        self,
        nodes: Sequence[tuple[Tree, int]],
        n: int,
        purpose: str,
        generate: Callable[[list[Request]], list[list[Sample]]],
    ) -> list[list[Sample]]:
        requests = [
            Request(tree.tokens(node), n, ("search", tree.problem.id, purpose, *(s.id for s in tree.path(node))))
            for tree, node in nodes
        ]
        return generate(requests) if requests else []

    def _next_steps(self, requests: list[Request]) -> list[list[Sample]]:
        """Up to the end of the line, or of the text."""
        c = self.c
        return self.policy.generate(
            requests, max_tokens=c.max_step_tokens, stop=self.step_ends, temperature=c.temperature
        )

    def _to_the_end(self, requests: list[Request]) -> list[list[Sample]]:
        c = self.c
        return self.policy.generate(requests, max_tokens=c.max_tokens, temperature=c.temperature)
