"""The policy and the verifier as a search uses them: next steps, rollouts and verdicts for nodes of many trees.

Each function makes one call of the sampler, or one of the verifier, for all nodes that it gets.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from astro_jax import config as cfg
from astro_jax.llama.config import LlamaConfig
from astro_jax.policy import Policy
from astro_jax.sampler import Completion, Request, SamplingParams
from astro_jax.search.tree import Node, Step, Tree
from astro_jax.types import Problem, Response, Verdict
from astro_jax.verify import Verifier

K = TypeVar("K", bound=Hashable)


class TreeSampler:
    """Samples continuations of nodes, and judges solutions.

    Random draws are named by problem and path, so the other nodes of a call do not change a sample. (The batch shape
    changes the last digits of logits, and so of priors.)

    Attributes:
      verdicts: the number of verdicts so far.
      correct_verdicts: the number of correct ones.
      seconds: the time of all calls of the sampler.
    """

    def __init__(self, c: cfg.Search, policy: Policy, verifier: Verifier):
        self.c, self.policy, self.verifier = c, policy, verifier
        self._prefix_cache = policy.engine.new_prefix_cache()  # the prompt of a child starts with that of its parent
        # A step ends with any token whose text ends with `c.step_end`, or with an end token.
        self.step_ends = (*policy.tokenizer.ending_with(c.step_end), *policy.tokenizer.stop_token_ids)
        self._step_end_set = frozenset(self.step_ends)
        self._max_prefix = max_prefix_tokens(c, policy.engine.config)
        self.verdicts = self.correct_verdicts = 0
        self.seconds = 0.0

    def root(self, problem: Problem) -> Tree:
        """Make a tree that is only a root."""
        return Tree(problem, self.policy.tokenizer.prompt(problem.prompt))

    def fits(self, tokens: Sequence[int]) -> bool:
        """Whether the model's context has room for a step and a rollout after these tokens."""
        return len(tokens) <= self._max_prefix

    def propose(self, leaves: Sequence[tuple[Tree, Node]]) -> list[list[Completion]]:
        """Sample `num_proposals` next steps for each leaf: up to the end of a step, or of the solution."""
        sampling = SamplingParams(self.c.max_step_tokens, self.c.temperature, stop_token_ids=self.step_ends)
        n = len(leaves)
        return self._sample(leaves, [self.c.num_proposals] * n, ["propose"] * n, sampling)

    def roll_out(
        self, nodes: Sequence[tuple[Tree, Node]], counts: Sequence[int], purposes: Sequence[str]
    ) -> tuple[list[list[Completion]], list[list[Verdict]]]:
        """Sample continuations of each node to the end of the solution, and judge the whole solutions.

        Args:
          counts: the number of rollouts of each node.
          purposes: name the random draws of each node, with the problem and the path.
        """
        sampling = SamplingParams(self.c.max_rollout_tokens, self.c.temperature)
        tokens = {id(tree): tree.sampled_tokens for tree, _ in nodes}
        rollouts = self._sample(nodes, counts, purposes, sampling)
        for (tree, _), count in zip(nodes, counts, strict=True):
            tree.rollouts += count
        responses = [
            self.policy.response(tree.problem, rollout, tree.path_text(node.id))
            for (tree, node), group in zip(nodes, rollouts, strict=True)
            for rollout in group
        ]
        judged = iter(self.judge(responses))
        verdicts = [list(itertools.islice(judged, count)) for count in counts]
        for (tree, _), completions, group in zip(nodes, rollouts, verdicts, strict=True):
            for completion, verdict in zip(completions, group, strict=True):
                tokens[id(tree)] += len(completion.token_ids)
                if verdict.correct:
                    tree.solved_at = tree.solved_at or tokens[id(tree)]
        return rollouts, verdicts

    def judge(self, responses: Sequence[Response]) -> list[Verdict]:
        """Judge whole solutions, in one call of the verifier."""
        verdicts = self.verifier.judge(responses)
        self.verdicts += len(verdicts)
        self.correct_verdicts += sum(v.correct for v in verdicts)
        return verdicts

    def ends_solution(self, tokens: Sequence[int]) -> bool:
        """Whether the last token is an end token of the model."""
        return tokens[-1] in self.policy.tokenizer.stop_token_ids

    def split_into_steps(self, completion: Completion) -> list[Step]:
        """Cut a completion after each token that ends a step. With `lines_per_step` n, every n-th such token counts.

        An end token behind the end of a line belongs to the step of this line: a step of its own would have no text.
        The rest of a completion that was cut off is its last step, even if the rest is empty. So this last step never
        equals a step that is complete.
        """
        tokens = completion.token_ids.tolist()
        line_ends = [i + 1 for i, token in enumerate(tokens) if token in self._step_end_set]
        ends = line_ends[self.c.lines_per_step - 1 :: self.c.lines_per_step]
        if completion.stopped and ends[-1:] != line_ends[-1:]:
            ends.append(line_ends[-1])  # the last step of a solution may have fewer lines
        if completion.stopped and len(ends) > 1 and not self.policy.tokenizer.decode(tokens[ends[-2] :]):
            del ends[-2]
        if not completion.stopped:
            ends.append(len(tokens))
        spans = (tuple(tokens[start:end]) for start, end in zip([0, *ends], ends, strict=False))
        return [Step(span, self.policy.tokenizer.decode(span)) for span in spans]

    def score(self, logprobs: np.ndarray) -> float:
        """The score of a step, from the log-probabilities of its tokens. `priors` makes priors from scores.

        `search.prior: total` takes their sum, the step's log-probability, so long steps are unlikely. `mean` takes
        their mean, so length does not matter.
        """
        return float((np.sum if self.c.prior == "total" else np.mean)(logprobs))

    def _sample(
        self, nodes: Sequence[tuple[Tree, Node]], counts: Sequence[int], purposes: Sequence[str],
        sampling: SamplingParams,
    ) -> list[list[Completion]]:  # fmt: skip
        requests = []
        for (tree, node), n, purpose in zip(nodes, counts, purposes, strict=True):
            path = (ancestor.number or -ancestor.id for ancestor in tree.path(node.id))  # no number: not proposed
            requests.append(Request(tree.prefix_tokens(node.id), n, ("search", tree.problem.id, purpose, *path)))
        start = time.monotonic()
        completions = self.policy.generate(requests, sampling, prefix_cache=self._prefix_cache) if requests else []
        self.seconds += time.monotonic() - start
        for (tree, _), group in zip(nodes, completions, strict=True):
            tree.sampled_tokens += sum(len(completion.token_ids) for completion in group)
        return completions


def max_prefix_tokens(c: cfg.Search, model: LlamaConfig) -> int:
    """The most tokens of a prefix behind which the model's context has room for a rollout, and for a proposed step."""
    return model.max_positions - max(c.max_rollout_tokens, c.max_step_tokens if c.method == "mcts" else 0)


def priors(scores: Mapping[K, float]) -> dict[K, float]:
    """The priors P(a | S) of siblings: the softmax of their scores."""
    top = max(scores.values(), default=0.0)
    total = sum(math.exp(score - top) for score in scores.values())
    return {key: math.exp(score - top) / total for key, score in scores.items()}
