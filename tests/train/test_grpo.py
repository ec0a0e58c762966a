"""GRPO against plain formulas on logits without packing or caches, and on a bandit that it must learn."""

import dataclasses
import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import (
    assert_trees_close,
    assert_trees_equal,
    countdown_tokenizer,
    one_device,
    one_device_train,
    tiny_config,
    tiny_params,
)

from astro_jax import config as cfg
from astro_jax import countdown, llama, verify
from astro_jax.countdown import Game
from astro_jax.errors import AstroError
from astro_jax.mesh import make_mesh, train_sharding
from astro_jax.sampler import Completion, Engine
from astro_jax.train import grpo
from astro_jax.train.grpo import Rollout, Trainer, advantages
from astro_jax.train.state import abstract_state, make_optimizer, new_state, place
from astro_jax.types import Problem, Verdict
from astro_jax.verify import Verifier

EOS = 0


class Letters:
    """A tokenizer of 20 tokens, one letter each."""

    end, ends = EOS, (EOS,)

    def prompt(self, text):
        return [ord(c) - 97 for c in text]

    def decode(self, ids):
        return "".join(chr(97 + i) for i in ids if i != EOS)


CONFIG = tiny_config(n_layers=1)
GRPO = cfg.Grpo(
    prompts_per_step=3,
    num_generations=4,
    max_completion_length=12,
    learning_rate=1e-2,
    max_length=32,
    warmup_ratio=0,
    max_steps=10,
    micro_batch_size=2,
)
PROBLEMS = [Problem(f"p{i}", "bcdefghijk"[i : i + 3], "") for i in range(7)]


def by_hash(problem, text, stopped):
    """A verdict that varies and means nothing."""
    correct = stopped and zlib.crc32(text.encode()) % 2 == 0
    return Verdict(correct, True, None, 0)


@pytest.fixture
def scored(monkeypatch):
    monkeypatch.setattr(verify, "verify", by_hash)


@functools.cache
def shared(c=GRPO, seed=3):
    """A trainer whose programs are compiled once for all tests."""
    return make(c, seed=seed)


def make(c=GRPO, problems=PROBLEMS, seed=3, tokenizer=None, sampler=None):
    tx = make_optimizer(c, c.steps)
    sampler = sampler or Engine(CONFIG, one_device(), seed, max_num_seqs=16, num_scheduler_steps=4)
    return Trainer(c, "rl", problems, sampler, tokenizer or Letters(), Verifier(), tx, CONFIG, one_device_train())


def fresh(c=GRPO, params=None, config=CONFIG):
    tx = make_optimizer(c, c.steps)
    params = jax.tree.map(jnp.copy, params if params is not None else tiny_params(config))
    return place(new_state(params, tx), abstract_state(config, tx, one_device_train()))


@jax.jit
def padded_logprobs(params, tokens):
    """Log-probabilities [B, 32, 20] after each token, from logits of each sequence on its own."""
    return jax.nn.log_softmax(llama.forward(params, tokens, CONFIG))


def padded(rollouts):
    """Tokens [B, 32] and the places of the responses."""
    tokens, places = np.zeros((len(rollouts), 32), np.int32), np.zeros((len(rollouts), 32), bool)
    for row, r in enumerate(rollouts):
        n, end = len(r.prompt), len(r.prompt) + len(r.tokens)
        tokens[row, :end] = [*r.prompt, *r.tokens.tolist()]
        places[row, n:end] = True
    return tokens, places


def without_packing(params, rollouts):
    """For each rollout the log-probabilities of its response."""
    tokens, places = padded(rollouts)
    logp = np.asarray(padded_logprobs(params, tokens))
    return [logp[row, np.nonzero(p)[0] - 1, tokens[row, p]] for row, p in enumerate(places)]


def plain_loss(params, rollouts, scores, clip):
    """GRPO, eq. 3 of arXiv 2402.03300 without KL, averaged over all response tokens."""
    tokens, places = padded(rollouts)
    old = np.zeros(tokens.shape, np.float32)
    old[places] = np.concatenate([r.logprobs for r in rollouts])
    logp = jnp.take_along_axis(padded_logprobs(params, tokens)[:, :-1], tokens[:, 1:, None], -1)[..., 0]
    ratio, a = jnp.exp(logp - old[:, 1:]), np.asarray(scores, np.float32)[:, None]
    gain = jnp.minimum(ratio * a, jnp.clip(ratio, 1 - clip, 1 + clip) * a)
    return -jnp.sum(jnp.where(places[:, 1:], gain, 0.0)) / places.sum()


def made_up(seed=0, n=9):
    """Rollouts of many lengths; the old policy's log-probabilities differ from the present one's."""
    rng = np.random.default_rng(seed)
    found = []
    for size in rng.integers(1, 16, n):
        prompt, tokens = tuple(rng.integers(1, 20, rng.integers(1, 9)).tolist()), rng.integers(1, 20, size)
        found.append(Rollout(prompt, tokens.astype(np.int32), np.zeros(size), by_hash(None, "", True), True))
    present = without_packing(tiny_params(CONFIG), found)
    noisy = [np.float32(p + 0.5 * rng.standard_normal(len(p))) for p in present]
    scores = rng.standard_normal(n)
    scores[2] = 0.0
    return [dataclasses.replace(r, logprobs=old) for r, old in zip(found, noisy, strict=True)], scores


# ---- Advantages


def test_advantages_by_hand():
    rewards = np.array([[1, -1, -1, -1], [1, 1, -1, -1], [1, 1, 1, 1], [-1, -1, -1, -1.0]])
    # Row 1: mean -0.5, deviations 1.5 and -0.5, standard deviation sqrt((2.25 + 3 * 0.25) / 4) = 0.866.
    centered = np.array([[1.5, -0.5, -0.5, -0.5], [1, 1, -1, -1], [0, 0, 0, 0], [0, 0, 0, 0]])
    scaled = centered / np.array([[np.sqrt(0.75)], [1], [1], [1]])
    np.testing.assert_array_equal(advantages(rewards, False), centered)
    np.testing.assert_allclose(advantages(rewards, True), scaled, rtol=2e-6)
    assert not advantages(rewards, True)[2:].any()


# ---- The loss


def test_loss_and_gradient_equal_plain_grpo_without_packing(scored):
    trainer, params = shared(), tiny_params(CONFIG)
    rollouts, scores = made_up()
    micro = trainer._micro_batches(rollouts, scores)
    assert len(micro) > 1 and all(m.batch.tokens.shape == (2, 32) for m in micro)
    total = grpo.zero_gradients(CONFIG, one_device_train())
    sums = []
    for m in micro:
        total, metrics = trainer._accumulate(params, total, m)
        sums.append(metrics)
    value, gradient = jax.value_and_grad(plain_loss)(params, rollouts, scores, GRPO.clip)
    np.testing.assert_allclose(sum(m["loss"] for m in sums), value, atol=1e-5)
    assert_trees_close(total, gradient, atol=1e-5)
    assert float(optax.tree.norm(gradient)) > 0.01
    ratios = [np.exp(p - r.logprobs) for p, r in zip(without_packing(params, rollouts), rollouts, strict=True)]
    out = [((q > 1.2) if a > 0 else (q < 0.8)).sum() for q, a in zip(ratios, scores, strict=True) if a]
    assert sum(float(m["clip_fraction"]) for m in sums) == pytest.approx(sum(out) / sum(len(q) for q in ratios))
    assert sum(out) > 5


def test_many_micro_batches_sum_to_one_and_the_clip_is_the_configs(scored, monkeypatch):
    loss = jax.jit(grpo.make_loss(GRPO.model_copy(update={"clip": 0.02}), CONFIG, one_device_train()))
    rollouts, scores = made_up(seed=1)
    trainer, params = shared(), tiny_params(CONFIG)
    many = [loss(params, m)[1] for m in trainer._micro_batches(rollouts, scores)]
    whole = make(GRPO.model_copy(update={"micro_batch": 16}))
    (one,) = (loss(params, m)[1] for m in whole._micro_batches(rollouts, scores))
    for key in one:
        np.testing.assert_allclose(sum(m[key] for m in many), one[key], rtol=1e-5, err_msg=key)
    assert one["loss"] == pytest.approx(float(plain_loss(params, rollouts, scores, 0.02)), abs=1e-5)
    assert abs(one["loss"] - plain_loss(params, rollouts, scores, 0.2)) > 0.01


def test_only_responses_with_an_advantage_carry_weight(scored):
    rollouts, scores = made_up()
    total = sum(len(r.tokens) for r in rollouts)
    found = []
    for m in shared()._micro_batches(rollouts, scores):
        b = m.batch
        for row in range(len(b.tokens)):
            for segment in range(1, b.segments[row].max() + 1):
                (at,) = np.nonzero(b.segments[row] == segment)
                w, a = b.weights[row, at], m.advantages[row, at]
                found.append((b.tokens[row, at].tolist(), w, a))
        assert not b.weights[b.segments == 0].any()
    expected = [(r, a) for r, a in zip(rollouts, scores, strict=True) if a]
    assert len(found) == len(expected) == len(rollouts) - 1
    for r, a in expected:
        _, weights, scored_as = next(f for f in found if f[0] == [*r.prompt, *r.tokens.tolist()])
        n = len(r.prompt)
        assert not weights[:n].any() and not scored_as[:n].any()
        np.testing.assert_allclose(weights[n:], 1 / total, rtol=1e-6)
        np.testing.assert_allclose(scored_as[n:], a, rtol=1e-6)


def test_micro_batches_are_split_over_the_devices(scored):
    tx, c = make_optimizer(GRPO, 1), GRPO.model_copy(update={"length": 64})
    sampler = Engine(CONFIG, one_device(), 0)
    trainer = Trainer(c, "rl", PROBLEMS, sampler, Letters(), Verifier(), tx, CONFIG, train_sharding(make_mesh(data=3)))
    assert {m.batch.tokens.shape for m in trainer._micro_batches(*made_up())} == {(3, 64)}  # micro_batch is 2


def test_a_step_without_any_advantage_has_no_gradient(scored, monkeypatch):
    monkeypatch.setattr(verify, "verify", lambda *_: Verdict(False, False, None, 0))
    state, metrics = shared().step(fresh(), 0)
    assert metrics["grad_norm"] == 0 and metrics["reward_mean"] == -1 and metrics["solve_rate"] == 0
    assert_trees_equal(state.params, tiny_params(CONFIG))


# ---- A step


def test_the_first_loss_is_on_policy(scored):
    trainer, params = shared(), tiny_params(CONFIG)
    every = [r for group in trainer.rollouts(params, 0) for r in group]
    scores = advantages(np.asarray([r.reward for r in every]).reshape(3, 4), True).reshape(-1)
    assert scores.any()
    _, metrics = trainer.step(fresh(), 0)
    sizes = np.asarray([len(r.tokens) for r in every])
    assert metrics["loss"] == pytest.approx(-(scores * sizes).sum() / sizes.sum(), abs=1e-5)
    assert metrics["clip_fraction"] == 0 and metrics["logp_gap"] < 1e-5
    for r, logp in zip(every, without_packing(params, every), strict=True):
        np.testing.assert_allclose(r.logprobs, logp, atol=1e-5)


def test_the_entropy_is_that_of_the_tokens_that_are_learned(scored):
    params, (rollouts, scores) = tiny_params(CONFIG), made_up()
    _, metrics = shared()._update(fresh(), rollouts, scores)
    _, places = padded(rollouts)
    logp = np.asarray(padded_logprobs(params, padded(rollouts)[0]))[:, :-1]
    entropy = -(np.exp(logp) * logp).sum(-1)
    assert metrics["entropy"] == pytest.approx(entropy[places[:, 1:] & (scores != 0)[:, None]].mean(), abs=1e-4)


def test_a_step_repeated_from_the_same_state_is_bitwise_equal(scored):
    (a, left), (b, right) = shared().step(fresh(), 4), make().step(fresh(), 4)
    assert_trees_equal(a, b)
    assert {k: float(v) for k, v in left.items()} == {k: float(v) for k, v in right.items()}
    c, _ = shared().step(fresh(), 5)
    assert not np.array_equal(a.params.embed, c.params.embed)


def test_one_step_in_several_updates(scored):
    c = GRPO.model_copy(update={"updates": 3})
    trainer = shared(c)
    every = [r for group in trainer.rollouts(tiny_params(CONFIG), 0) for r in group]
    scores = advantages(np.asarray([r.reward for r in every]).reshape(3, 4), True).reshape(-1)
    state, metrics = trainer.step(fresh(c), 0)
    expected = fresh(c)
    for part in range(3):  # four rollouts each, the ratio to the policy that sampled them
        part = slice(4 * part, 4 * part + 4)
        expected, _ = trainer._update(expected, every[part], scores[part])
    assert state.step == 3 and metrics["logp_gap"] > 1e-4
    assert_trees_equal(state, expected)


def test_the_step_divides_by_the_standard_deviation_if_asked(scored):
    losses_of = {std: make(GRPO.model_copy(update={"normalize_std": std})).step(fresh(), 0)[1] for std in (True, False)}
    assert losses_of[True]["reward_mean"] == losses_of[False]["reward_mean"]
    assert abs(losses_of[True]["loss"]) > abs(losses_of[False]["loss"]) > 0  # ±1 deviate by less than 1


# ---- What is sampled


def test_all_problems_come_once_before_any_comes_again():
    trainer = make()
    places = [j for i in range(14) for j in trainer._order(i)]
    passes = [places[at : at + 7] for at in range(0, 42, 7)]
    assert all(sorted(p) == list(range(7)) for p in passes)
    assert len({tuple(p) for p in passes}) > 3


def test_samples_differ_between_steps_and_places(scored):
    trainer = make(problems=PROBLEMS[:2])  # three prompts of two problems: one comes twice in a step
    asked = []
    generate = trainer.sampler.generate
    trainer.sampler.generate = lambda params, requests, **k: asked.extend(requests) or generate(params, requests, **k)
    for i in range(3):
        trainer.rollouts(tiny_params(CONFIG), i)
    names = [r.name for r in asked]
    assert len(set(names)) == len(names) == 9


def test_a_row_that_cannot_hold_a_response_is_refused():
    make(GRPO.model_copy(update={"length": 15}))  # prompts of 3 and 12 new tokens
    with pytest.raises(AstroError, match=r"grpo\.length=14.*raise it to 15"):
        make(GRPO.model_copy(update={"length": 14}))


class Fixed:
    """A sampler that gives each prompt the same two samples."""

    sharding, seed = one_device(), 0

    def __init__(self, *samples):
        self.samples = samples

    def generate(self, params, requests, *, max_tokens, stop):
        return [list(self.samples) for _ in requests]


def test_a_response_that_was_cut_off_is_wrong():
    game = Game(count=2, max_number=4, max_value=9)
    (problem,) = countdown.problems(game, 1, 0, held_out=False)
    tokenizer = countdown_tokenizer(9)
    (path, *_) = countdown.reachable(tuple(problem.meta["numbers"]), game)[problem.meta["target"]]
    solution = tokenizer.encode(countdown.attempt_text(tuple(problem.meta["numbers"]), path, problem.meta["target"]))

    def sample(ids, stopped):
        return Completion(np.asarray(ids, np.int32), *2 * [np.zeros(len(ids), np.float32)], stopped)

    end = [tokenizer.eos_token_id]
    sampler = Fixed(sample(solution + end, True), sample(solution, False), sample(solution[:-1] + end, True),
                    sample(end, True))  # fmt: skip
    trainer = make(GRPO.model_copy(update={"prompts": 1}), [problem], tokenizer=tokenizer, sampler=sampler)
    (group,) = trainer.rollouts(tiny_params(CONFIG), 0)
    assert [r.reward for r in group] == [1, -1, -1, -1]
    metrics = grpo.rollout_metrics(group)
    assert metrics == {
        "reward_mean": -0.5, "solve_rate": 0.25, "mean_tokens": (2 * len(solution) + len(solution) + 2) / 4,
        "mean_backtracks": 0.0, "valid_rate": 0.5, "truncated_rate": 0.25,
    }  # fmt: skip
    # The shortest response is an end token alone; it is learned from like any other.
    batch = trainer._micro_batches(group, np.asarray([3.0, -1, -1, -1]))[0].batch
    assert (batch.weights > 0).sum() == sum(len(r.tokens) for r in group)


# ---- It learns


def test_reward_rises_on_a_bandit(monkeypatch):
    """Two arms in forty are right for each prompt; chance solves one in twenty."""

    def verdict(problem, text, stopped):
        return Verdict(text[:1] in problem.answer, True, text, 0)

    monkeypatch.setattr(verify, "verify", verdict)
    problems = [Problem("b", "b", "fg"), Problem("c", "c", "hi")]
    c = cfg.Grpo(
        prompts_per_step=2,
        num_generations=8,
        max_completion_length=2,
        learning_rate=2e-2,
        max_length=32,
        warmup_ratio=0,
        max_steps=25,
        micro_batch_size=4,
    )
    trainer, state = make(c, problems), fresh(c, tiny_params(CONFIG, scale=0.05))
    solved = []
    for i in range(c.steps):
        state, metrics = trainer.step(state, i)
        solved.append(metrics["solve_rate"])
    assert np.mean(solved[:3]) < 0.4 and np.mean(solved[-3:]) > 0.9
