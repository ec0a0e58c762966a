"""How trees grow: each phase of an iteration is one call of the sampler, and one of the verifier, for many trees."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from astro_jax import config as cfg
from astro_jax.policy import Policy
from astro_jax.sampler import Completion, Request, SamplingParams
from astro_jax.search.tree import Node, Step, Tree
from astro_jax.types import Problem, Response, Verdict
from astro_jax.verify import Verifier

K = TypeVar("K", bound=Hashable)


def search(problems: Sequence[Problem], c: cfg.Search, policy: Policy, verifier: Verifier) -> list[Tree]:
    """Grow one tree a problem, all at the same time, to their ends."""
    driver = Driver(c, policy, verifier, len(problems))
    trees = [driver.plant(p) for p in problems]
    with policy.engine.keeping():  # a child's prefix begins with its parent's
        while growing := [tree for tree in trees if not tree.ended]:
            driver.grow(growing)
    return trees


class Driver:
    """Grows trees with one policy. What becomes of a tree does not depend on which others grow beside it, but for the
    last digits of a model's logits, which depend on the shape of the batch.

    Args:
      problems: how many share `c.max_total_tokens`. Each tree gets the same part, whatever the others leave: so it does
        not depend on their order, nor on how they are spread over processes.

    Attributes:
      judged, right: verdicts so far, and the correct ones.
      sampling: seconds in the sampler's calls.
    """

    def __init__(self, c: cfg.Search, policy: Policy, verifier: Verifier, problems: int):
        self.c, self.policy, self.verifier = c, policy, verifier
        # A step ends with any token whose text ends so, or with an end token.
        self.step_ends = (*policy.tokenizer.ending_with(c.step_end), *policy.tokenizer.stop_token_ids)
        self._cuts = frozenset(self.step_ends)
        self.room = policy.engine.config.max_positions - max(c.max_step_tokens, c.max_rollout_tokens)
        share = max(c.max_total_tokens // problems, 1) if c.max_total_tokens else math.inf
        self.budget = min(c.max_tree_tokens or math.inf, share)
        self.judged = self.right = 0
        self.sampling = 0.0

    def plant(self, problem: Problem) -> Tree:
        """A tree that is only a root."""
        return Tree(problem, self.policy.tokenizer.prompt(problem.prompt))

    def fits(self, tokens: Sequence[int]) -> bool:
        """Whether the model's context has room for a step and a rollout after these."""
        return len(tokens) <= self.room

    def grow(self, trees: Sequence[Tree]) -> None:
        """One iteration of each tree, or with best-of-N all of it; those that need no more are marked as ended.

        A tree ends after `iterations`; when it has `enough`; or when it has sampled its budget of tokens: then no
        further iteration begins, and the last one may have gone past it.
        """
        c = self.c
        if c.method == "best-of-n":
            self._best_of_n(trees)
            return
        self._iterate(trees)
        for tree in trees:
            tree.iterations += 1
            if c.early_stop and tree.enough(c.early_stop.correct, c.early_stop.wrong):
                tree.ended = "enough"
            elif tree.sampled >= self.budget:
                tree.ended = "tokens"
            elif tree.iterations == c.num_simulations:
                tree.ended = "iterations"

    def _iterate(self, trees: Sequence[Tree]) -> None:
        """One round of selection, expansion, evaluation and backup in each tree."""
        selected = [(tree, tree.select(self.c.c_puct)) for tree in trees for _ in range(self.c.num_parallel_leaves)]
        leaves = list({(id(tree), node): (tree, node) for tree, node in selected}.values())
        children = self._expand([(t, n) for t, n in leaves if not t.nodes[n].terminal])
        self._evaluate(children)
        for tree, node in selected:
            tree.release(node)
        for tree, node in leaves:
            if tree.nodes[node].terminal:
                tree.backup(node)
        for tree, child in children:
            tree.backup(child.id)

    def _expand(self, leaves: Sequence[tuple[Tree, int]]) -> list[tuple[Tree, Node]]:
        """Propose k next steps for each leaf; equal ones become one child."""
        samples = self._sample(leaves, self.c.num_proposals, "propose", self._next_steps)
        children = []
        for (tree, leaf), proposed in zip(leaves, samples, strict=True):
            scores = {tuple(s.token_ids.tolist()): self._score(s.logprobs) for s in proposed if s.stopped}
            for tokens, prior in _normalized(scores).items():
                child = tree.add(leaf, tokens, self.policy.tokenizer.decode(tokens), prior)
                children.append((tree, child))
            if not scores:  # no step within max_step_tokens: nothing can follow this node
                tree.nodes[leaf].terminal, tree.nodes[leaf].correct, tree.nodes[leaf].reward = True, False, 0.0
                tree.unfinished += 1
        return children

    def _evaluate(self, children: Sequence[tuple[Tree, Node]]) -> None:
        """Set R(S') of new nodes: a terminal's verdict, else the mean verdict of M rollouts (Eq. 2)."""
        ended, open_nodes = [], []
        for tree, node in children:
            stopped = node.tokens[-1] in self.policy.tokenizer.stop_token_ids
            if stopped or len(tree.path(node.id)) >= self.c.max_depth or not self.fits(tree.tokens(node.id)):
                ended.append((node, Response(tree.problem, tree.text(node.id), stopped)))
            else:
                open_nodes.append((tree, node))
        for (node, _), verdict in zip(ended, self._judge([r for _, r in ended]), strict=True):
            node.terminal, node.correct = True, verdict.correct
            node.answer, node.reward = verdict.answer, float(verdict.correct)
        samples, verdicts = self._solve([(t, n.id) for t, n in open_nodes], self.c.num_rollouts, "rollout")
        for (tree, node), rollouts, mine in zip(open_nodes, samples, verdicts, strict=True):
            node.reward = sum(v.correct for v in mine) / len(mine)
            if self.c.keep_rollouts:
                self._keep(tree, node, rollouts, mine)

    def _keep(self, tree: Tree, node: Node, rollouts: Sequence[Completion], verdicts: Sequence[Verdict]) -> None:
        """Add the rollouts that came to an end within the depth limit below the node that they began at."""
        depth = len(tree.path(node.id))
        for rollout, verdict in zip(rollouts, verdicts, strict=True):
            steps = self._steps(rollout)
            if rollout.stopped and depth + len(steps) <= self.c.max_depth:
                tree.solution(node.id, steps, verdict.correct, verdict.answer, visit=False)

    def _best_of_n(self, trees: Sequence[Tree]) -> None:
        """N independent solutions a problem, merged where they begin alike; the depth limit is the search's alone."""
        samples, verdicts = self._solve([(tree, 0) for tree in trees], self.c.num_samples, "sample")
        for tree, solutions, mine in zip(trees, samples, verdicts, strict=True):
            scores: dict[int, dict[int, float]] = {}  # of the children of each node
            for s, verdict in zip(solutions, mine, strict=True):
                steps = self._steps(s)
                starts = np.cumsum([0, *(len(tokens) for tokens, _ in steps)])
                for i, node in enumerate(tree.solution(0, steps, verdict.correct, verdict.answer, visit=True)):
                    part = s.logprobs[starts[i] : starts[i + 1]]
                    scores.setdefault(node.parent, {})[node.id] = self._score(part) if len(part) else 0.0
            for siblings in scores.values():
                for i, prior in _normalized(siblings).items():
                    tree.nodes[i].prior = prior
            tree.ended = "samples"

    def _steps(self, sample: Completion) -> list[Step]:
        """A sample cut after each token that ends a step. Of one that was cut off the last step is what there is of it,
        if need be nothing, so that it is never the same as a step that goes on."""
        tokens = sample.token_ids.tolist()
        ends = [i + 1 for i, t in enumerate(tokens) if t in self._cuts]
        if not sample.stopped:
            ends.append(len(tokens))
        parts = [tuple(tokens[a:b]) for a, b in zip([0, *ends], ends, strict=False)]
        return [(part, self.policy.tokenizer.decode(part)) for part in parts]

    def _score(self, logprobs: np.ndarray) -> float:
        """What siblings' priors are made from: a step's log-probability by the policy, so that long steps are unlikely,
        or with `prior: mean` the mean over its tokens, so that length does not matter."""
        return float((np.sum if self.c.prior == "total" else np.mean)(logprobs))

    def _solve(
        self, nodes: Sequence[tuple[Tree, int]], n: int, purpose: str
    ) -> tuple[list[list[Completion]], list[list[Verdict]]]:
        """n continuations to the end after each node, judged."""
        samples = self._sample(nodes, n, purpose, self._to_the_end)
        responses = [
            self.policy.response(tree.problem, s, tree.text(node))
            for (tree, node), each in zip(nodes, samples, strict=True)
            for s in each
        ]
        verdicts = self._judge(responses)
        return samples, [verdicts[i * n : (i + 1) * n] for i in range(len(nodes))]

    def _judge(self, responses: Sequence[Response]) -> list[Verdict]:
        verdicts = self.verifier.judge(responses)
        self.judged += len(verdicts)
        self.right += sum(v.correct for v in verdicts)
        return verdicts

    def _sample(
        self,
        nodes: Sequence[tuple[Tree, int]],
        n: int,
        purpose: str,
        generate: Callable[[list[Request]], list[list[Completion]]],
    ) -> list[list[Completion]]:
        requests = [
            Request(tree.tokens(node), n, ("search", tree.problem.id, purpose, *(s.number for s in tree.path(node))))
            for tree, node in nodes
        ]
        start = time.monotonic()
        samples = generate(requests) if requests else []
        self.sampling += time.monotonic() - start
        for (tree, _), each in zip(nodes, samples, strict=True):
            tree.sampled += sum(len(s.token_ids) for s in each)
        return samples

    def _next_steps(self, requests: list[Request]) -> list[list[Completion]]:
        """Up to the end of the line, or of the text."""
        c = self.c
        sampling = SamplingParams(c.max_step_tokens, c.temperature, stop_token_ids=self.step_ends)
        return self.policy.generate(requests, sampling)

    def _to_the_end(self, requests: list[Request]) -> list[list[Completion]]:
        c = self.c
        return self.policy.generate(requests, SamplingParams(c.max_rollout_tokens, c.temperature))


def _normalized(scores: Mapping[K, float]) -> dict[K, float]:
    """Probabilities of siblings from their log-probabilities."""
    top = max(scores.values(), default=0.0)
    total = sum(math.exp(logp - top) for logp in scores.values())
    return {key: math.exp(logp - top) / total for key, logp in scores.items()}
