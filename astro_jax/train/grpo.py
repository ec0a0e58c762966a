"""GRPO with a verifiable reward (paper, section 3.2; arXiv 2402.03300).

One step of `GRPOTrainer`: sample a group of M completions for each of G prompts, reward each (`rewards.Rewarder`),
compare each with its group (`advantages`), and update the policy by the gradient of `policy_loss.policy_loss`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from astro_jax import attempts
from astro_jax import config as cfg
from astro_jax.errors import AstroError
from astro_jax.llama import params as llama_params
from astro_jax.llama import quantized
from astro_jax.llama.config import LlamaConfig
from astro_jax.llama.params import Params
from astro_jax.llama.tokenizer import Tokenizer
from astro_jax.mesh import Sharding
from astro_jax.policy import Policy
from astro_jax.sampler import Completion, Engine, Request, SamplingParams
from astro_jax.train import losses, micro_batches, policy_loss
from astro_jax.train.advantages import comparable, group_advantages, has_variance, length_penalty, repeat_penalty
from astro_jax.train.collapse_guard import CollapseGuard
from astro_jax.train.held_out import HeldOut
from astro_jax.train.losses import Batch
from astro_jax.train.micro_batches import Update, mean_metrics, padding_rate, token_metrics
from astro_jax.train.policy_loss import RolloutBatch
from astro_jax.train.restarts import Beginning, Restarts
from astro_jax.train.rewards import Rewarder
from astro_jax.train.rollouts import (
    Rollout,
    RolloutLog,
    group_metrics,
    record,
    reward_array,
    rollout_metrics,
    sampling_metrics,
)
from astro_jax.train.state import (
    LossFn,
    Metrics,
    TrainState,
    learning_rate,
    make_accumulate,
    make_apply,
    make_optimizer,
    zero_gradients,
)
from astro_jax.types import Problem, Response

Groups = list[list[Rollout]]  # G groups of M rollouts


def make_loss(c: cfg.Grpo, config: LlamaConfig, sharding: Sharding) -> LossFn:
    """Make the loss of one micro-batch, a RolloutBatch.

    Losses and gradients of the micro-batches of an update sum to those of the update.
    """

    def loss(params: Params, rollouts: RolloutBatch) -> tuple[jax.Array, Metrics]:
        batch = rollouts.batch
        logprobs, entropy = losses.token_logprobs(
            losses.mixed(params, c.dtype), batch, config, sharding, c.remat_policy, c.temperature
        )
        value, metrics = policy_loss.policy_loss(logprobs, rollouts, c)
        return value, metrics | {"entropy": jnp.sum(jnp.where(batch.loss_weights > 0, entropy, 0.0))}

    return loss


def make_score(c: cfg.Grpo, config: LlamaConfig, sharding: Sharding) -> Callable[[Params, Batch], jax.Array]:
    """Make the jitted forward pass: (parameters, Batch) -> log-probabilities of its tokens, float32 [B, S]."""

    def score(params: Params, batch: Batch) -> jax.Array:
        params = losses.cast(params, c.dtype)
        return losses.token_logprobs(params, batch, config, sharding, temperature=c.temperature)[0]

    in_shardings = (llama_params.shardings(config, sharding), sharding.named("batch"))
    return jax.jit(score, in_shardings=in_shardings, out_shardings=sharding.named("batch"))


def make_reshard(
    c: cfg.Grpo, config: LlamaConfig, sharding: Sharding, quantization: cfg.Quantization = None
) -> Callable[[Params], Params]:
    """Make the jitted copy of the trained parameters for the sampler.

    Args:
      sharding: of decoding. The copy lies on it, in the type `c.dtype`.
      quantization: of the engine that samples.
    """
    if quantization is None:
        return jax.jit(lambda p: losses.cast(p, c.dtype), out_shardings=llama_params.shardings(config, sharding))
    return jax.jit(
        lambda p: quantized.quantize_params(losses.cast(p, c.dtype), config),
        out_shardings=quantized.shardings(config, sharding),
    )


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
      reference: the parameters of the reference model, on `train_sharding`. None where `beta` is 0.
      log: of the texts of some rollouts. None: none are written.
      guard: may skip an update, and scales the learning rate after a rollback. None: no guard.
      restarts: beginnings of some responses. None: all responses begin after the prompt.
      held_out: problems whose solve rate is measured. None: none are.

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
        reference: Params | None = None,
        log: RolloutLog | None = None,
        guard: CollapseGuard | None = None,
        restarts: Restarts | None = None,
        held_out: HeldOut | None = None,
    ):
        all_problems = [*problems, *(held_out.problems if held_out else ())]
        longest = max(len(tokenizer.prompt(p.prompt)) for p in all_problems)
        if longest + c.max_completion_length > c.max_length:
            raise AstroError(
                f"grpo.max_length={c.max_length}: a row must hold a prompt ({longest} tokens here) and "
                f"grpo.max_completion_length={c.max_completion_length}; raise it to "
                f"{longest + c.max_completion_length} or more"
            )
        assert (reference is not None) == (c.beta > 0)
        # The longest prompt may come late: caches that grow then would compile all programs of the sampler again.
        engine.reserve(max(longest, restarts.longest if restarts else 0), c.max_completion_length)
        self.c, self.name, self.problems, self.engine, self.tokenizer = c, name, problems, engine, tokenizer
        self.rewarder, self.reference, self.log, self.guard, self.restarts = rewarder, reference, log, guard, restarts
        self.held_out = held_out
        self.config, self.sharding = config, train_sharding
        self._accumulate = make_accumulate(make_loss(c, config, train_sharding), tx, config, train_sharding)
        self._apply, self._learning_rate_factor = make_apply(tx, config, train_sharding), 1.0
        self._reshard = make_reshard(c, config, engine.sharding, engine.quantization)
        self._score = make_score(c, config, train_sharding)
        self._norm = jax.jit(optax.tree.norm, out_shardings=train_sharding.named())
        self._batches = 1  # batches of prompts of the last step
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def step(self, state: TrainState, i: int) -> tuple[TrainState, dict[str, Any]]:
        """Sample, score and update: step i, from 0. The state is donated.

        The rollouts of the step are split over `steps_per_generation` optimizer steps. Rollouts that cannot be compared
        with their group are left out: they have no weight.

        Returns:
          (the new state, metrics: `mean_metrics` of the optimizer steps, metrics of all rollouts, and every
          `eval_steps` steps those of the new state on the held-out problems).
        """
        self._seconds.clear()
        self._scale_learning_rate()
        groups = self._generate(self._timed_reshard(state.params), i)
        rewards = reward_array(groups)
        advantages, is_learned = self._advantages(groups, rewards)
        members = [r for group in groups for r in group]
        metrics = self._metrics(groups, rewards)
        with self._timed("update"):
            updates = [
                self._pack([members[j] for j in indices], advantages[indices], (i, n))
                for n, indices in enumerate(np.array_split(np.flatnonzero(is_learned), self.c.steps_per_generation))
            ]
            if self.c.importance_sampling_cap is not None:
                updates = [self._with_old_logprobs(state.params, update) for update in updates]
            update_metrics = []
            for update in updates:
                state, values = self._update(state, update, metrics)
                update_metrics.append(values)
        self._write_texts(i, groups, advantages)
        if self.held_out is not None and self.held_out.is_due(i + 1):
            policy = Policy(self.engine, self._timed_reshard(state.params), self.tokenizer)
            with self._timed("evaluation"):
                metrics |= self.held_out.measure(policy, i + 1)
        seconds = {f"seconds_{name}": round(value, 4) for name, value in self._seconds.items()}
        return state, mean_metrics(update_metrics) | metrics | seconds

    def _metrics(self, groups: Groups, rewards: np.ndarray) -> dict[str, float]:
        """The metrics of all rollouts of a step."""
        members = [r for group in groups for r in group]
        metrics = sampling_metrics(members) | rollout_metrics(members) | group_metrics(rewards)
        if self.restarts:
            metrics["restarted_rate"] = float(np.mean([bool(group[0].beginning) for group in groups]))
        if self.c.max_num_gen_batches > 1:
            metrics["gen_batches"] = float(self._batches)
        return metrics

    def examples(self, i: int) -> list[str]:
        """Return the ids of the problems of step i, the last step."""
        return [self.problems[j].id for batch in range(self._batches) for j in self._prompt_indices(i, batch)]

    def generate_rollouts(self, params: Params, i: int, batch: int = 0) -> Groups:
        """Sample, judge and reward one group of M completions for each of the G prompts of step i.

        Workers judge the completions that have ended while others are still sampled, and a thread counts their repeats.

        Args:
          batch: the number of the batch of prompts in the step. Above 0: of the dynamic sampling.
        """
        c, policy = self.c, Policy(self.engine, params, self.tokenizer)
        problems = [self.problems[j] for j in self._prompt_indices(i, batch)]
        # The place is part of the request's id: where few problems make many prompts, a problem may come twice in a
        # step, and its groups must differ.
        places = range(batch * c.prompts_per_step, (batch + 1) * c.prompts_per_step)
        begins = [self._beginning(p, i, place) for p, place in zip(problems, places, strict=True)]
        requests = [
            Request(
                (*self.tokenizer.prompt(p.prompt), *begin.token_ids), c.num_generations,
                ("grpo", self.name, i, place, p.id),
            )
            for p, begin, place in zip(problems, begins, places, strict=True)
        ]  # fmt: skip
        responses: dict[tuple[int, int], Response] = {}
        repeats: dict[tuple[int, int], Future[int]] = {}

        def on_completion(g: int, j: int, completion: Completion) -> None:
            responses[g, j] = policy.response(problems[g], completion, begins[g].text)
            repeats[g, j] = thread.submit(attempts.count_repeats_in, responses[g, j].text)
            if stream is not None:
                stream.add(g, j, responses[g, j], completion)

        with (
            self.rewarder.stream(i, problems, c.num_generations, batch) as stream,
            _thread() as thread,
        ):
            with self._timed("sampling"):
                # No top-k, top-p or min-p: the log-probabilities of the samples are those of the policy.
                sampling = SamplingParams(c.max_completion_length, c.temperature)
                groups = policy.generate(requests, sampling, on_completion=on_completion)
            answered = [[(responses[g, j], s) for j, s in enumerate(group)] for g, group in enumerate(groups)]
            with self._timed("verification"):
                judgements = self.rewarder.judge(i, answered, batch, stream)
                counts = {key: count.result() for key, count in repeats.items()}
        return [
            [
                Rollout(
                    request.prompt_token_ids, s.token_ids, s.logprobs if c.temperature == 1 else s.sampling_logprobs,
                    judged.verdict, s.stopped, judged.reward, begin.text, counts[g, j],
                )
                for j, (s, judged) in enumerate(zip(group, judgements[g], strict=True))
            ]
            for g, (request, begin, group) in enumerate(zip(requests, begins, groups, strict=True))
        ]  # fmt: skip

    def _beginning(self, problem: Problem, i: int, place: int) -> Beginning:
        """The beginning of the responses to a prompt of step i."""
        return self.restarts.draw(problem.id, self.engine.seed, i, place, 2) if self.restarts else Beginning()

    def _generate(self, params: Params, i: int) -> Groups:
        """Sample the groups of step i, and go on until enough of them have different rewards (DAPO, equation 11)."""
        groups, self._batches = self.generate_rollouts(params, i), 1
        while (
            self._batches < self.c.max_num_gen_batches
            and has_variance(reward_array(groups)).sum() < self.c.prompts_per_step
        ):
            groups += self.generate_rollouts(params, i, self._batches)
            self._batches += 1
        return groups

    def _advantages(self, groups: Groups, rewards: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compare the rollouts with their groups.

        Returns:
          (advantages, float64 [G * M]; which rollouts are learned, bool [G * M]).
        """
        c, lengths = self.c, np.asarray([[len(r.completion_ids) for r in group] for group in groups])
        repeats = np.asarray([[r.repeats for r in group] for group in groups])
        penalties = length_penalty(lengths, c.max_completion_length, c.soft_punish_cache)
        penalties += repeat_penalty(repeats, c.repeat_penalty)
        is_learned = comparable(rewards)
        if c.mask_truncated_completions:
            is_learned &= np.asarray([[r.stopped for r in group] for group in groups])
        if c.max_num_gen_batches > 1:
            chosen = np.flatnonzero(has_variance(rewards))[: c.prompts_per_step]
            is_learned &= np.isin(np.arange(len(groups)), chosen)[:, None]
        advantages = group_advantages(rewards + penalties, c.scale_rewards)
        if c.positive_advantages_only:  # the others keep their part in the mean of the group and in the token weights
            advantages = np.maximum(advantages, 0.0)
        return advantages.reshape(-1), is_learned.reshape(-1)

    def _prompt_indices(self, i: int, batch: int = 0) -> list[int]:
        """The problems of a batch of prompts of step i.

        Batch 0: all problems come once, in a random order, before any problem comes again. Further batches: the other
        problems in an order of the step, so that a step depends on no step before it.
        """
        n, size = len(self.problems), self.c.prompts_per_step
        if batch == 0:
            places = range(i * size, (i + 1) * size)
            orders = {p // n: np.random.default_rng((self.engine.seed, p // n)).permutation(n) for p in places}
            return [int(orders[place // n][place % n]) for place in places]
        others = sorted(set(range(n)) - set(self._prompt_indices(i))) or range(n)
        order = np.random.default_rng((self.engine.seed, i, 1)).permutation(others)
        return [int(order[place % len(order)]) for place in range((batch - 1) * size, batch * size)]

    def _pack(self, members: Sequence[Rollout], advantages: np.ndarray, key: tuple[int, ...] = ()) -> Update:
        """Pack the rollouts of an update (`micro_batches.pack`). `key` names the random draws."""
        rng = np.random.default_rng((self.engine.seed, *key, 3))
        return micro_batches.pack(self.c, members, advantages, self.sharding, rng)

    def _with_old_logprobs(self, params: Params, update: Update) -> Update:
        """Add the log-probabilities that the trainer computes for the policy which has sampled."""
        scored = [
            dataclasses.replace(m, old_logprobs=self._score(params, self.sharding.device_put(m.batch, "batch")))
            for m in update.micro_batches
        ]
        return update._replace(micro_batches=scored)

    def _update(
        self, state: TrainState, update: Update, of_step: Mapping[str, float] = MappingProxyType({})
    ) -> tuple[TrainState, dict[str, Any]]:
        """One optimizer step, one micro-batch at a time.

        Without any advantage no gradient exists. Then the state stays as it is: AdamW would still move the parameters
        by its momentum and its weight decay.

        Args:
          of_step: the metrics of the rollouts of the step, for the guard.
        """
        rate = float(learning_rate(state))
        if not update.micro_batches:
            return state, {
                "loss": 0.0, "clip_fraction": 0.0, "clip_low": 0.0, "clip_high": 0.0, "grad_norm": 0.0,
                "learning_rate": rate, "skipped_steps": 0.0, "no_gradient_steps": 1.0,
            }  # fmt: skip
        grads, parts = zero_gradients(self.config, self.sharding), []
        for rows in update.micro_batches:
            micro_batch = self.sharding.device_put(rows, "batch")
            if self.reference is not None:
                scores = self._score(self.reference, micro_batch.batch)
                micro_batch = dataclasses.replace(micro_batch, ref_logprobs=scores)
            grads, metrics = self._accumulate(state.params, grads, micro_batch)
            parts.append(metrics)
        means = token_metrics(jax.device_get(parts), update.tokens) | {"padding_rate": padding_rate(update)}
        if self.guard is not None and self.guard.has_skips:
            known = {**of_step, **means, "grad_norm": float(self._norm(grads))}
            if self.guard.should_skip(known):
                unchanged = {"grad_norm": known["grad_norm"], "learning_rate": rate, "skipped_steps": 0.0}
                return state, means | unchanged | {"no_gradient_steps": 0.0, "guard_skips": 1.0}
        state, metrics = self._apply(state, grads, np.float32(means["loss"]))
        return state, means | jax.device_get(metrics) | {"no_gradient_steps": 0.0}

    def _write_texts(self, i: int, groups: Groups, advantages: np.ndarray) -> None:
        """Write the texts of the first groups of step i."""
        if self.log is None or not self.c.logged_groups:
            return
        problems = [self.problems[j] for j in self._prompt_indices(i)[: self.c.logged_groups]]
        by_group = advantages.reshape(len(groups), -1)
        records = [record(p, groups[j], by_group[j], self.tokenizer) for j, p in enumerate(problems)]
        self.log.write(i + 1, records)

    def _scale_learning_rate(self) -> None:
        """Take the learning rate that the rollbacks have left. The state of the optimizer stays as it is."""
        factor = self.guard.learning_rate_factor if self.guard is not None else 1.0
        if factor != self._learning_rate_factor:
            scaled = self.c.model_copy(update={"learning_rate": self.c.learning_rate * factor})
            tx = make_optimizer(scaled, num_updates(self.c))
            self._apply, self._learning_rate_factor = make_apply(tx, self.config, self.sharding), factor

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self._seconds[name] += time.monotonic() - start

    def _timed_reshard(self, params: Params) -> Params:
        with self._timed("reshard"):
            return jax.block_until_ready(self._reshard(params))


@contextlib.contextmanager
def _thread() -> Iterator[ThreadPoolExecutor]:
    """One thread, whose work is dropped where the block ends early: a run that is told to stop does not wait for it."""
    executor = ThreadPoolExecutor(1)
    try:
        yield executor
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def num_updates(c: cfg.Grpo) -> int:
    """Return the optimizer steps of a stage, which the schedule of the learning rate counts."""
    return c.max_steps * c.steps_per_generation
