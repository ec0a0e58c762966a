"""GRPO with a verifiable reward (paper, section 3.2): sample a group, score +1 or -1, push towards the better ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from astro_jax import config as cfg
from astro_jax.errors import AstroError
from astro_jax.llama import params as llama_params
from astro_jax.llama.config import LlamaConfig
from astro_jax.llama.params import Params
from astro_jax.llama.tokenizer import Tokenizer
from astro_jax.mesh import Sharding
from astro_jax.policy import Policy
from astro_jax.sampler import Engine, SamplingParams
from astro_jax.train import data, losses
from astro_jax.train.losses import RolloutBatch
from astro_jax.train.state import Loss, Metrics, TrainState, make_accumulate, make_apply, zero_gradients
from astro_jax.types import Problem, Verdict
from astro_jax.verify import Verifier


@dataclasses.dataclass(frozen=True)
class Rollout:
    """One sampled response and its score."""

    prompt: tuple[int, ...]
    tokens: np.ndarray  # int32 [T]
    logprobs: np.ndarray  # float32 [T], the sampler's
    verdict: Verdict
    stopped: bool

    @property
    def reward(self) -> float:
        return 1.0 if self.verdict.correct else -1.0


def advantages(rewards: np.ndarray, scale_rewards: bool) -> np.ndarray:
    """A_i = (r_i - mean) / std over each group (arXiv 2402.03300, section 4.1.2); rewards float [prompts, group].

    A group whose rewards are all alike has advantages of 0.
    """
    centered = rewards - rewards.mean(axis=1, keepdims=True)
    if not scale_rewards:
        return centered
    return centered / (rewards.std(axis=1, keepdims=True) + 1e-6)


def make_loss(c: cfg.Grpo, config: LlamaConfig, sharding: Sharding) -> Loss:
    """The clipped surrogate of one micro-batch of a RolloutBatch; sums over micro-batches are the batch's."""

    def loss(params: Params, rollouts: RolloutBatch) -> tuple[jax.Array, Metrics]:
        batch = rollouts.batch
        logp, entropy = losses.token_logprobs(
            losses.cast(params, c.dtype), batch, config, sharding, c.remat_policy == "full"
        )
        value, clipped = losses.policy_loss(logp, rollouts.old_logprobs, rollouts.advantages, batch.weights, c.epsilon)
        gap = jax.numpy.abs(logp - rollouts.old_logprobs)
        share = batch.weights.sum()
        sums = {"loss": value, "weight": share, "clip_fraction": clipped * share}
        sums |= {"entropy": (entropy * batch.weights).sum(), "logp_gap": (gap * batch.weights).sum()}
        return value, sums

    return loss


def make_reshard(c: cfg.Grpo, config: LlamaConfig, sharding: Sharding) -> Callable[[Params], Params]:
    """The jitted way of the parameters from where they train to where they decode, in the computation's type."""
    return jax.jit(lambda p: losses.cast(p, c.dtype), out_shardings=llama_params.shardings(config, sharding))


class Trainer:
    """The i-th GRPO step as a function of the state alone, for train.loop.

    The prompts of step i, and all random draws, are named by (stage, i, place, problem), so a resumed run repeats them.
    """

    def __init__(
        self,
        c: cfg.Grpo,
        name: str,
        problems: Sequence[Problem],
        engine: Engine,
        tokenizer: Tokenizer,
        verifier: Verifier,
        tx: Any,
        config: LlamaConfig,
        train_sharding: Sharding,
    ):
        longest = max(len(tokenizer.prompt(p.prompt)) for p in problems)
        if longest + c.max_completion_length > c.max_length:
            raise AstroError(
                f"grpo.max_length={c.max_length}: a row must hold a prompt ({longest} tokens here) and grpo.max_completion_length="
                f"{c.max_completion_length}; raise it to {longest + c.max_completion_length} or more"
            )
        self.c, self.name, self.problems, self.engine, self.tokenizer = c, name, problems, engine, tokenizer
        self.verifier = verifier
        self.config, self.sharding = config, train_sharding
        self._accumulate = make_accumulate(make_loss(c, config, train_sharding), tx, config, train_sharding)
        self._apply = make_apply(tx, config, train_sharding)
        self._reshard = make_reshard(c, config, engine.sharding)

    def step(self, state: TrainState, i: int) -> tuple[TrainState, dict[str, Any]]:
        """Completion, score, update."""
        groups = self.rollouts(self._reshard(state.params), i)
        rewards = np.asarray([[r.reward for r in group] for group in groups])
        every = [r for group in groups for r in group]
        scores = advantages(rewards, self.c.scale_rewards).reshape(-1)
        metrics: dict[str, Any] = {}
        for part in np.array_split(np.arange(len(every)), self.c.steps_per_generation):
            state, metrics = self._update(state, [every[j] for j in part], scores[part])
        return state, metrics | rollout_metrics(every)

    def rollouts(self, params: Params, i: int) -> list[list[Rollout]]:
        """One group of scored responses for each prompt of step i."""
        c, policy = self.c, Policy(self.engine, params, self.tokenizer)
        chosen = [self.problems[j] for j in self._order(i)]
        # The place is part of the name: where few problems make many prompts, one may come twice in a step.
        requests = [
            policy.request(p.prompt, c.num_generations, "grpo", self.name, i, place, p.id)
            for place, p in enumerate(chosen)
        ]
        # Temperature 1 and no truncation of the distribution: the samples' log-probabilities are the policy's.
        samples = policy.generate(requests, SamplingParams(c.max_completion_length))
        responses = [policy.response(problem, s) for problem, group in zip(chosen, samples, strict=True) for s in group]
        verdicts = iter(self.verifier.judge(responses))
        return [
            [Rollout(request.prompt_token_ids, s.token_ids, s.logprobs, next(verdicts), s.stopped) for s in group]
            for request, group in zip(requests, samples, strict=True)
        ]

    def _order(self, i: int) -> list[int]:
        """The problems of step i: one shuffled pass over all of them after another."""
        n = len(self.problems)
        places = range(i * self.c.prompts_per_step, (i + 1) * self.c.prompts_per_step)
        passes = {place // n: np.random.default_rng((self.engine.seed, place // n)).permutation(n) for place in places}
        return [int(passes[place // n][place % n]) for place in places]

    def _update(
        self, state: TrainState, rollouts: Sequence[Rollout], scores: np.ndarray
    ) -> tuple[TrainState, dict[str, Any]]:
        """One optimizer step on these rollouts, a micro-batch at a time."""
        grads = zero_gradients(self.config, self.sharding)
        sums = []
        for micro in self._micro_batches(rollouts, scores):
            grads, metrics = self._accumulate(state.params, grads, self.sharding.device_put(micro, "batch"))
            sums.append(metrics)
        state, metrics = self._apply(state, grads)
        total = {k: float(sum(m[k] for m in jax.device_get(sums))) for k in (sums[0] if sums else {})}
        weight = total.pop("weight", 0.0)
        means = {k: total[k] / max(weight, 1e-9) for k in ("clip_fraction", "entropy", "logp_gap") if k in total}
        return state, total | means | metrics

    def _micro_batches(self, rollouts: Sequence[Rollout], scores: np.ndarray) -> list[RolloutBatch]:
        """Packed micro-batches. Each response token weighs 1 / (all response tokens of the update), so that long
        responses are neither favoured nor spared (ours; DAPO's choice). Those with advantage 0 have no gradient and
        are left out, but count in that total."""
        total = sum(len(r.tokens) for r in rollouts)
        documents = [_document(r, a, 1.0 / total) for r, a in zip(rollouts, scores, strict=True) if a != 0]
        if not documents:
            return []
        batch, extras = data.pack(documents, self.c.max_length)
        micro = micro_rows(self.c, self.sharding)
        rows = -(-len(batch.tokens) // micro) * micro
        every = RolloutBatch(batch, extras["advantages"], extras["old_logprobs"])
        every = jax.tree.map(lambda x: np.pad(x, [(0, rows - len(x)), (0, 0)]), every)
        return [jax.tree.map(lambda x, j=j: x[j : j + micro], every) for j in range(0, rows, micro)]


def micro_rows(c: cfg.Grpo, sharding: Sharding) -> int:
    """Rows of a micro-batch: those of the config, rounded up to what divides over the devices."""
    n = sharding.batch_size
    return -(-c.micro_batch_size // n) * n


def _document(r: Rollout, advantage: float, weight: float) -> data.Document:
    """Prompt and response as one document; only the response is learned."""
    head, size = np.zeros(len(r.prompt), np.float32), len(r.tokens)
    tokens = np.concatenate([np.asarray(r.prompt, np.int32), r.tokens])
    extras = {
        "advantages": np.concatenate([head, np.full(size, advantage, np.float32)]),
        "old_logprobs": np.concatenate([head, r.logprobs]),
    }
    return data.Document(tokens, np.concatenate([head, np.full(size, weight, np.float32)]), extras)


def rollout_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """What a step's responses were like, over all of them, those that were cut off included."""
    mean = lambda values: float(np.mean(list(values)))  # noqa: E731
    return {
        "reward_mean": mean(r.reward for r in rollouts),
        "solve_rate": mean(r.verdict.correct for r in rollouts),
        "mean_tokens": mean(len(r.tokens) for r in rollouts),
        "mean_backtracks": mean(r.verdict.backtracks for r in rollouts),
        "valid_rate": mean(r.verdict.valid for r in rollouts),
        "truncated_rate": mean(not r.stopped for r in rollouts),
    }
