"""GRPO with a verifiable reward (paper, section 3.2; arXiv 2402.03300).

One step of `GRPOTrainer`: sample a group of M completions for each of G prompts, reward each (`rewards.Rewarder`),
compare each with its group (`group_advantages`), and update the policy by the gradient of `losses.grpo_loss`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import numpy as np
import optax

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
from astro_jax.train.rewards import Rewarder
from astro_jax.train.state import (
    LossFn,
    Metrics,
    TrainState,
    learning_rate,
    make_accumulate,
    make_apply,
    zero_gradients,
)
from astro_jax.types import Problem, Verdict


@dataclasses.dataclass(frozen=True)
class Rollout:
    """One sampled completion, its verdict and its reward.

    Attributes:
      prompt_ids: the tokens of the prompt.
      completion_ids: int32 [T].
      logprobs: float32 [T], of the completion's tokens under the policy that sampled them.
      verdict: the verifier's judgement.
      stopped: whether an end token ended the completion. False: it was truncated.
      reward: +1 or -1 by the verdict, or of `grpo.reward`. None: no reward.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: np.ndarray
    logprobs: np.ndarray
    verdict: Verdict
    stopped: bool
    reward: float | None


def comparable(rewards: np.ndarray) -> np.ndarray:
    """Return which completions can be compared with their group: those with a reward, if the group has two of them.

    Args:
      rewards: float [G, M]. NaN: no reward.

    Returns:
      bool [G, M].
    """
    rewarded = ~np.isnan(rewards)
    return rewarded & (rewarded.sum(axis=1, keepdims=True) >= 2)


def group_advantages(rewards: np.ndarray, scale_rewards: bool) -> np.ndarray:
    """Advantages A_i = (r_i - mean(r)) / std(r) over each group (arXiv 2402.03300, section 4.1.2).

    A group whose rewards are all equal has advantages of 0. Example: rewards `[1, -1, -1, -1]` give
    `[1.73, -0.58, -0.58, -0.58]` scaled, and `[1.5, -0.5, -0.5, -0.5]` unscaled. A completion without a reward is left
    out of its group (ours): `[1, -1, NaN]` gives `[1, -1, 0]`.

    Args:
      rewards: float [G, M]. NaN: no reward.
      scale_rewards: divide by the standard deviation of the group.

    Returns:
      float [G, M]. 0 for completions that cannot be compared.
    """
    chex.assert_rank(rewards, 2)
    advantages = np.zeros_like(rewards)
    for group, mask, out in zip(rewards, comparable(rewards), advantages, strict=True):
        r = group[mask]
        if len(r) == 0 or r.min() == r.max():  # their mean may be rounded, and differ from them
            continue
        centered = r - r.mean()
        out[mask] = centered / (r.std() + 1e-6) if scale_rewards else centered
    return advantages


def make_loss(c: cfg.Grpo, config: LlamaConfig, sharding: Sharding) -> LossFn:
    """Make the loss of one micro-batch, a RolloutBatch.

    Losses and gradients of the micro-batches of an update sum to those of the update.
    """

    def loss(params: Params, rollouts: RolloutBatch) -> tuple[jax.Array, Metrics]:
        batch, remat = rollouts.batch, c.remat_policy == "full"
        logprobs, entropy = losses.token_logprobs(losses.mixed(params, c.dtype), batch, config, sharding, remat)
        value, clip_fraction = losses.grpo_loss(
            logprobs, rollouts.old_logprobs, rollouts.advantages, batch.loss_weights, c.epsilon
        )
        logp_gap = jax.numpy.abs(logprobs - rollouts.old_logprobs)
        weight = batch.loss_weights.sum()
        sums = {"loss": value, "weight": weight, "clip_fraction": clip_fraction * weight}
        sums |= {"entropy": (entropy * batch.loss_weights).sum(), "logp_gap": (logp_gap * batch.loss_weights).sum()}
        return value, sums

    return loss


def make_reshard(c: cfg.Grpo, config: LlamaConfig, sharding: Sharding) -> Callable[[Params], Params]:
    """Make the jitted copy of the trained parameters for the sampler.

    Args:
      sharding: of decoding. The copy lies on it, in the type `c.dtype`.
    """
    return jax.jit(lambda p: losses.cast(p, c.dtype), out_shardings=llama_params.shardings(config, sharding))


class GRPOTrainer:
    """Trains a policy by GRPO, one step at a time. `train.loop.run` calls `step`.

    A step depends on the state and the step number alone. Its prompts and all its random draws are named by
    (stage, step, place of the prompt, problem), so a resumed run repeats them exactly.

    Args:
      c: the settings.
      name: the stage, which names the random draws.
      problems: the prompts to draw from.
      engine: samples the completions; its seed also orders the prompts.
      tokenizer: of the policy.
      rewarder: judges and rewards the completions.
      tx: the optimizer.
      config: of the model.
      train_sharding: of training.

    Raises:
      AstroError: when a row of `max_length` tokens cannot hold a prompt and a completion.
    """

    def __init__(
        self,
        c: cfg.Grpo,
        name: str,
        problems: Sequence[Problem],
        engine: Engine,
        tokenizer: Tokenizer,
        rewarder: Rewarder,
        tx: optax.GradientTransformation,
        config: LlamaConfig,
        train_sharding: Sharding,
    ):
        longest = max(len(tokenizer.prompt(p.prompt)) for p in problems)
        if longest + c.max_completion_length > c.max_length:
            raise AstroError(
                f"grpo.max_length={c.max_length}: a row must hold a prompt ({longest} tokens here) and "
                f"grpo.max_completion_length={c.max_completion_length}; raise it to "
                f"{longest + c.max_completion_length} or more"
            )
        # The longest prompt may come late: caches that grow then would compile all programs of the sampler again.
        engine.reserve(longest, c.max_completion_length)
        self.c, self.name, self.problems, self.engine, self.tokenizer = c, name, problems, engine, tokenizer
        self.rewarder = rewarder
        self.config, self.sharding = config, train_sharding
        self._accumulate = make_accumulate(make_loss(c, config, train_sharding), tx, config, train_sharding)
        self._apply = make_apply(tx, config, train_sharding)
        self._reshard = make_reshard(c, config, engine.sharding)

    def step(self, state: TrainState, i: int) -> tuple[TrainState, dict[str, Any]]:
        """Sample, score and update: step i, from 0. The state is donated.

        The rollouts of the step are split over `steps_per_generation` optimizer steps. Rollouts that cannot be compared
        with their group are left out: they have no weight.

        Returns:
          (the new state, metrics: `mean_metrics` of the optimizer steps, and `rollout_metrics` of all rollouts).
        """
        groups = self.generate_rollouts(self._reshard(state.params), i)
        rewards = np.asarray([[r.reward for r in group] for group in groups], np.float64)  # None becomes NaN
        rollouts = [r for group in groups for r in group]
        advantages = group_advantages(rewards, self.c.scale_rewards).reshape(-1)
        updates = []
        for indices in np.array_split(np.flatnonzero(comparable(rewards)), self.c.steps_per_generation):
            state, metrics = self._update(state, [rollouts[j] for j in indices], advantages[indices])
            updates.append(metrics)
        return state, mean_metrics(updates) | sampling_metrics(rollouts) | rollout_metrics(rollouts)

    def examples(self, i: int) -> list[str]:
        """Return the ids of the problems of step i."""
        return [self.problems[j].id for j in self._prompt_indices(i)]

    def generate_rollouts(self, params: Params, i: int) -> list[list[Rollout]]:
        """Sample, judge and reward one group of M completions for each of the G prompts of step i."""
        c, policy = self.c, Policy(self.engine, params, self.tokenizer)
        problems = [self.problems[j] for j in self._prompt_indices(i)]
        # The place is part of the request's id: where few problems make many prompts, a problem may come twice in a
        # step, and its groups must differ.
        requests = [
            policy.request(p.prompt, c.num_generations, "grpo", self.name, i, place, p.id)
            for place, p in enumerate(problems)
        ]
        # Temperature 1 without top-k, top-p or min-p: the log-probabilities of the samples are those of the policy.
        groups = policy.generate(requests, SamplingParams(c.max_completion_length))
        answered = [[(policy.response(p, s), s) for s in group] for p, group in zip(problems, groups, strict=True)]
        judgements = self.rewarder.judge(i, answered)
        return [
            [
                Rollout(request.prompt_token_ids, s.token_ids, s.logprobs, j.verdict, s.stopped, j.reward)
                for s, j in zip(group, judged, strict=True)
            ]
            for request, group, judged in zip(requests, groups, judgements, strict=True)
        ]

    def _prompt_indices(self, i: int) -> list[int]:
        """The problems of step i. All problems come once, in a random order, before any problem comes again."""
        n = len(self.problems)
        places = range(i * self.c.prompts_per_step, (i + 1) * self.c.prompts_per_step)
        orders = {place // n: np.random.default_rng((self.engine.seed, place // n)).permutation(n) for place in places}
        return [int(orders[place // n][place % n]) for place in places]

    def _update(
        self, state: TrainState, rollouts: Sequence[Rollout], advantages: np.ndarray
    ) -> tuple[TrainState, dict[str, Any]]:
        """One optimizer step on these rollouts, one micro-batch at a time. `advantages` is [number of rollouts].

        Without any advantage no gradient exists. Then the state stays as it is: AdamW would still move the parameters
        by its momentum and its weight decay.
        """
        micro_batches = self._micro_batches(rollouts, advantages)
        if not micro_batches:
            rate = float(learning_rate(state))
            return state, {
                "loss": 0.0, "clip_fraction": 0.0, "grad_norm": 0.0, "learning_rate": rate, "skipped_steps": 0.0,
                "no_gradient_steps": 1.0,
            }  # fmt: skip
        grads, sums = zero_gradients(self.config, self.sharding), []
        for micro_batch in micro_batches:
            grads, metrics = self._accumulate(state.params, grads, self.sharding.device_put(micro_batch, "batch"))
            sums.append(metrics)
        total = {k: float(sum(m[k] for m in jax.device_get(sums))) for k in sums[0]}
        state, metrics = self._apply(state, grads, np.float32(total["loss"]))
        weight = total.pop("weight")
        means = {k: total[k] / weight for k in ("entropy", "logp_gap")}
        return state, total | means | jax.device_get(metrics) | {"no_gradient_steps": 0.0}

    def _micro_batches(self, rollouts: Sequence[Rollout], advantages: np.ndarray) -> list[RolloutBatch]:
        """Pack the rollouts of an update into micro-batches of [micro_batch_size, max_length].

        Each completion token weighs 1 / (all completion tokens of the update), so a long completion is neither
        favoured nor spared (ours; the choice of DAPO, arXiv 2503.14476). A rollout with advantage 0 has no gradient: it
        is left out, but its tokens count in the total.
        """
        total = sum(len(r.completion_ids) for r in rollouts)
        documents = [_document(r, a, 1.0 / total) for r, a in zip(rollouts, advantages, strict=True) if a != 0]
        if not documents:
            return []
        batch, extras = data.pack(documents, self.c.max_length)
        size = micro_batch_size(self.c, self.sharding)
        rows = -(-len(batch.tokens) // size) * size
        packed = RolloutBatch(batch, extras["advantages"], extras["old_logprobs"])
        packed = jax.tree.map(lambda x: np.pad(x, [(0, rows - len(x)), (0, 0)]), packed)
        return [jax.tree.map(lambda x, j=j: x[j : j + size], packed) for j in range(0, rows, size)]


def micro_batch_size(c: cfg.Grpo, sharding: Sharding) -> int:
    """Rows of a micro-batch: grpo.micro_batch_size, rounded up to a multiple of the devices of the batch axis."""
    n = sharding.batch_size
    return -(-c.micro_batch_size // n) * n


def _document(r: Rollout, advantage: float, weight: float) -> data.Document:
    """Prompt and completion as one document. Only the completion is learned."""
    zeros, size = np.zeros(len(r.prompt_ids), np.float32), len(r.completion_ids)
    tokens = np.concatenate([np.asarray(r.prompt_ids, np.int32), r.completion_ids])
    extras = {
        "advantages": np.concatenate([zeros, np.full(size, advantage, np.float32)]),
        "old_logprobs": np.concatenate([zeros, r.logprobs]),
    }
    return data.Document(tokens, np.concatenate([zeros, np.full(size, weight, np.float32)]), extras)


def mean_metrics(updates: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Average the metrics of the optimizer steps of one step. The steps that were not applied are counted.

    A metric that some steps lack, such as the entropy of learned tokens, is the mean over the others.
    """
    values = {k: [float(m[k]) for m in updates if k in m] for k in dict.fromkeys(k for m in updates for k in m)}
    counts = ("skipped_steps", "no_gradient_steps")
    return {k: sum(v) if k in counts else sum(v) / len(v) for k, v in values.items()}


def sampling_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """What the sampler knows of all completions of a step, also of those without an advantage.

    `sampled_entropy` is minus the mean log-probability of the sampled tokens: an estimate without bias of the entropy
    of the policy at the tokens of its own completions, with no forward pass.
    """
    logprobs = np.concatenate([r.logprobs for r in rollouts])
    return {"tokens": float(len(logprobs)), "sampled_entropy": -float(logprobs.mean(dtype=np.float64))}


def rollout_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Means over all rollouts of a step, truncated rollouts included (see docs/metrics.md).

    The mean reward is over the rollouts with a reward, and missing if there are none.
    """
    mean = lambda values: float(np.mean(list(values)))  # noqa: E731
    rewards = [r.reward for r in rollouts if r.reward is not None]
    return ({"reward_mean": mean(rewards)} if rewards else {}) | {
        "unjudged_rate": mean(r.reward is None for r in rollouts),
        "solve_rate": mean(r.verdict.correct for r in rollouts),
        "mean_tokens": mean(len(r.completion_ids) for r in rollouts),
        "mean_backtracks": mean(r.verdict.backtracks for r in rollouts),
        "valid_rate": mean(r.verdict.valid for r in rollouts),
        "truncated_rate": mean(not r.stopped for r in rollouts),
    }
