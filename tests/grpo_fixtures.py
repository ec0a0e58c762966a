"""A small GRPO trainer with a verifier by hash, and plain formulas to compare it with, for several tests."""

import contextlib
import dataclasses
import functools
import json
import statistics
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from helpers import (
    one_device,
    one_device_train,
    tiny_config,
    tiny_params,
)

from astro_jax import config as cfg
from astro_jax import llama
from astro_jax.sampler import Engine
from astro_jax.train import loop
from astro_jax.train.advantages import group_advantages
from astro_jax.train.grpo import GRPOTrainer
from astro_jax.train.rewards import Rewarder
from astro_jax.train.rollouts import Rollout
from astro_jax.train.state import abstract_state, make_optimizer, new_state, place
from astro_jax.types import Problem, Verdict
from astro_jax.verify.verdict_counts import VerdictCounts

EOS = 0


class Letters:
    """A tokenizer of 20 tokens, one letter each."""

    eos_token_id, stop_token_ids = EOS, (EOS,)

    def prompt(self, text):
        return [ord(c) - 97 for c in text]

    def decode(self, ids):
        return "".join(chr(97 + i) for i in ids if i != EOS)


class FunctionVerifier:
    """Judges each response by a function of it."""

    def __init__(self, is_correct):
        self.is_correct, self.counts = is_correct, VerdictCounts()

    def judge(self, responses):
        return [Verdict(self.is_correct(r), True, None, 0) for r in responses]

    def stream(self, problems):
        """Judges nothing while others are sampled: it is its own stream."""
        return contextlib.nullcontext(self)

    def add(self, index, response, part=None):
        pass

    def peek(self, index, response):
        return self.judge([response])[0]


HASH_VERIFIER = FunctionVerifier(lambda r: r.stopped and zlib.crc32(r.text.encode()) % 2 == 0)
CONFIG = tiny_config(n_layers=1)
GRPO = cfg.Grpo(
    prompts_per_step=3,
    num_generations=4,
    max_completion_length=12,
    learning_rate=2e-2,
    max_length=32,
    warmup_ratio=0,
    max_steps=10,
    micro_batch_size=2,
)
PROBLEMS = [Problem(f"p{i}", "bcdefghijk"[i : i + 3], "") for i in range(7)]


def make(
    problems=PROBLEMS, *, engine=None, tokenizer=None, verifier=HASH_VERIFIER, sharding=None, reference=None, log=None,
    guard=None, restarts=None, held_out=None, **settings,
):  # fmt: skip
    """A trainer with its own compiled functions (compiled when they are first called)."""
    c = GRPO.model_copy(update=settings)
    engine = engine or shared_engine()
    sharding = sharding or one_device_train()
    tx = make_optimizer(c, c.max_steps)
    rewarder = Rewarder(verifier, max_batches=c.max_num_gen_batches)
    tokenizer = tokenizer or Letters()
    return GRPOTrainer(
        c, "rl", problems, engine, tokenizer, rewarder, tx, CONFIG, sharding, reference, log, guard, restarts, held_out
    )


def make_shared(*args, **kwargs):
    """A trainer with the compiled functions of `trainer()`: they depend on no setting that such a test changes."""
    new = make(*args, **kwargs)
    new._accumulate, new._apply, new._reshard = trainer()._accumulate, trainer()._apply, trainer()._reshard
    return new


class Killed(Exception):
    """Ends a run like SIGKILL: nothing is saved."""


def run_loop(folder, trainer, max_steps=4, kill_at=None, step=None, **options):
    """Train with a checkpoint after every second step, from the last checkpoint in `folder`. Return the final state.

    Args:
      kill_at: this step, from 0, is killed after its rollouts and before its update.
      step: takes a step in the place of the trainer.
      options: of `loop.run`.
    """

    def train_step(state, i):
        if i != kill_at:
            return (step or trainer.step)(state, i)
        trainer._generate(trainer._reshard(state.params), i)
        raise Killed

    abstract = abstract_state(CONFIG, make_optimizer(GRPO, GRPO.max_steps), one_device_train())
    c = GRPO.model_copy(update={"save_steps": 2})
    state, _ = loop.run(
        epath.Path(folder), "rl", fresh(), abstract, train_step, trainer.examples, max_steps, c, **options
    )
    return state


def read_lines(path):
    """The objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def update(state, rollouts, advantages):
    """One optimizer step of `trainer()`."""
    return trainer()._update(state, trainer()._pack(rollouts, advantages))


@functools.cache
def shared_engine():
    return Engine(CONFIG, one_device(), 3, max_num_seqs=16, num_scheduler_steps=4)


@functools.cache
def trainer():
    return make()


def fresh(params=None):
    tx = make_optimizer(GRPO, GRPO.max_steps)
    params = jax.tree.map(jnp.copy, params if params is not None else tiny_params(CONFIG))
    return place(new_state(params, tx), abstract_state(CONFIG, tx, one_device_train()))


@jax.jit
def padded_logprobs(params, tokens):
    """Log-probabilities [B, 32, 20] after each token, from logits of each sequence on its own."""
    return jax.nn.log_softmax(llama.forward(params, tokens, CONFIG))


def pad(rollouts):
    """Tokens [B, 32], and a mask of the completions."""
    tokens, mask = np.zeros((len(rollouts), 32), np.int32), np.zeros((len(rollouts), 32), bool)
    for row, r in enumerate(rollouts):
        n, end = len(r.prompt_ids), len(r.prompt_ids) + len(r.completion_ids)
        tokens[row, :end] = [*r.prompt_ids, *r.completion_ids.tolist()]
        mask[row, n:end] = True
    return tokens, mask


def logprobs_without_packing(params, rollouts):
    """For each rollout the log-probabilities of its completion."""
    tokens, mask = pad(rollouts)
    logprobs = np.asarray(padded_logprobs(params, tokens))
    return [logprobs[row, np.nonzero(m)[0] - 1, tokens[row, m]] for row, m in enumerate(mask)]


def plain_loss(params, rollouts, advantages, epsilon):
    """GRPO, eq. 3 of arXiv 2402.03300 without KL, averaged over all completion tokens."""
    tokens, mask = pad(rollouts)
    old = np.zeros(tokens.shape, np.float32)
    old[mask] = np.concatenate([r.logprobs for r in rollouts])
    logprobs = jnp.take_along_axis(padded_logprobs(params, tokens)[:, :-1], tokens[:, 1:, None], -1)[..., 0]
    ratio, a = jnp.exp(logprobs - old[:, 1:]), np.asarray(advantages, np.float32)[:, None]
    surrogate = jnp.minimum(ratio * a, jnp.clip(ratio, 1 - epsilon, 1 + epsilon) * a)
    return -jnp.sum(jnp.where(mask[:, 1:], surrogate, 0.0)) / mask.sum()


@functools.cache
def random_rollouts(seed=0, n=9):
    """Rollouts of many lengths, whose old log-probabilities differ from the present policy's; and advantages."""
    rng = np.random.default_rng(seed)
    rollouts = []
    for size in rng.integers(1, 16, n):
        prompt, tokens = tuple(rng.integers(1, 20, rng.integers(1, 9)).tolist()), rng.integers(1, 20, size)
        verdict = Verdict(True, True, None, 0)
        rollouts.append(Rollout(prompt, tokens.astype(np.int32), np.zeros(size), verdict, True, 1.0))
    present = logprobs_without_packing(tiny_params(CONFIG), rollouts)
    noisy = [np.float32(p + 0.5 * rng.standard_normal(len(p))) for p in present]
    advantages = rng.standard_normal(n)
    advantages[2] = 0.0
    return [dataclasses.replace(r, logprobs=old) for r, old in zip(rollouts, noisy, strict=True)], advantages


@functools.cache
def first_rollouts():
    """The rollouts of step 0 and their advantages."""
    rollouts = [r for group in trainer().generate_rollouts(tiny_params(CONFIG), 0) for r in group]
    advantages = group_advantages(np.asarray([r.reward for r in rollouts]).reshape(3, 4), True).reshape(-1)
    assert advantages.any()
    return rollouts, advantages


def reference_advantages(rewards, scale):
    """One group by the formulas of the statistics module, over the rewards that are no NaN."""
    judged = [r for r in rewards if r == r]
    if len(judged) < 2 or len(set(judged)) == 1:
        return [0.0] * len(rewards)
    mean, deviation = statistics.fmean(judged), statistics.pstdev(judged) + 1e-6 if scale else 1.0
    return [0.0 if r != r else (r - mean) / deviation for r in rewards]
