"""GRPO against plain formulas on logits without packing or caches, and on a bandit that it must learn."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from grpo_fixtures import (
    CONFIG,
    GRPO,
    PROBLEMS,
    FunctionVerifier,
    first_rollouts,
    fresh,
    logprobs_without_packing,
    make,
    make_shared,
    pad,
    padded_logprobs,
    plain_loss,
    random_rollouts,
    trainer,
    update,
)
from helpers import (
    assert_trees_close,
    assert_trees_equal,
    count_compilations,
    countdown_tokenizer,
    one_device,
    one_device_train,
    tiny_params,
)

from astro_jax import countdown, phrases
from astro_jax.countdown import Game
from astro_jax.errors import AstroError
from astro_jax.mesh import make_mesh, train_sharding
from astro_jax.sampler import Completion, Engine
from astro_jax.train import grpo, micro_batches, policy_loss
from astro_jax.train.rollouts import Rollout, reward_array, rollout_metrics, sampling_metrics
from astro_jax.types import Problem, Verdict
from astro_jax.verify import Verifier

# ---- The loss


@pytest.mark.slow
def test_loss_and_gradient_equal_plain_grpo_without_packing():
    params, (rollouts, advantages) = tiny_params(CONFIG), random_rollouts()
    micro_batches = trainer()._pack(rollouts, advantages).micro_batches
    assert len(micro_batches) > 1 and all(m.batch.tokens.shape == (2, 32) for m in micro_batches)
    total = grpo.zero_gradients(CONFIG, one_device_train())
    sums = []
    for m in micro_batches:
        total, metrics = trainer()._accumulate(params, total, m)
        sums.append(metrics)
    value, gradient = jax.value_and_grad(plain_loss)(params, rollouts, advantages, GRPO.epsilon)
    np.testing.assert_allclose(sum(m["loss"] for m in sums), value, atol=1e-5)
    assert_trees_close(total, gradient, atol=1e-5)
    assert float(optax.tree.norm(gradient)) > 0.01
    present = logprobs_without_packing(params, rollouts)
    ratios = [np.exp(p - r.logprobs) for p, r in zip(present, rollouts, strict=True)]
    clipped = [((q > 1.2) if a > 0 else (q < 0.8)).sum() for q, a in zip(ratios, advantages, strict=True) if a]
    assert sum(float(m["clip_low"] + m["clip_high"]) for m in sums) == sum(clipped)
    assert sum(clipped) > 5


def test_micro_batches_sum_to_whole_batch_and_epsilon_is_the_configs():
    loss = jax.jit(grpo.make_loss(GRPO.model_copy(update={"epsilon": 0.02}), CONFIG, one_device_train()))
    rollouts, advantages = random_rollouts(seed=1)
    params = tiny_params(CONFIG)
    many = [loss(params, m)[1] for m in trainer()._pack(rollouts, advantages).micro_batches]
    (one,) = (loss(params, m)[1] for m in make(micro_batch_size=7)._pack(rollouts, advantages).micro_batches)
    assert len(many) > 1
    for key in one:
        joined = max(m[key] for m in many) if key in policy_loss.MAXIMA else sum(m[key] for m in many)
        np.testing.assert_allclose(joined, one[key], rtol=1e-5, err_msg=key)
    assert one["loss"] == pytest.approx(float(plain_loss(params, rollouts, advantages, 0.02)), abs=1e-5)
    assert abs(one["loss"] - plain_loss(params, rollouts, advantages, 0.2)) > 0.01


def test_only_completions_with_an_advantage_carry_weight():
    rollouts, advantages = random_rollouts()
    total = sum(len(r.completion_ids) for r in rollouts)
    packed = []
    for m in trainer()._pack(rollouts, advantages).micro_batches:
        b = m.batch
        for row in range(len(b.tokens)):
            for segment_id in range(1, b.segment_ids[row].max() + 1):
                (columns,) = np.nonzero(b.segment_ids[row] == segment_id)
                tokens = b.tokens[row, columns].tolist()
                packed.append((tokens, b.loss_weights[row, columns], m.advantages[row, columns]))
        assert not b.loss_weights[b.segment_ids == 0].any()
    expected = [(r, a) for r, a in zip(rollouts, advantages, strict=True) if a]
    assert len(packed) == len(expected) == len(rollouts) - 1
    for r, a in expected:
        tokens = [*r.prompt_ids, *r.completion_ids.tolist()]
        _, loss_weights, packed_advantages = next(p for p in packed if p[0] == tokens)
        n = len(r.prompt_ids)
        assert not loss_weights[:n].any() and not packed_advantages[:n].any()
        np.testing.assert_allclose(loss_weights[n:], 1 / total, rtol=1e-6)
        np.testing.assert_allclose(packed_advantages[n:], a, rtol=1e-6)


def test_micro_batches_are_split_over_devices():
    three = make(sharding=train_sharding(make_mesh(data=3)), max_length=64)
    micro_batches = three._pack(*random_rollouts()).micro_batches
    assert {m.batch.tokens.shape for m in micro_batches} == {(3, 64)}  # micro_batch_size is 2


def test_step_without_any_advantage_applies_neither_momentum_nor_weight_decay():
    state, _ = trainer().step(fresh(), 0)  # fills the moments
    before = jax.tree.map(np.array, state)
    all_wrong = make_shared(verifier=FunctionVerifier(lambda _: False), steps_per_generation=3)
    state, metrics = all_wrong.step(state, 1)
    assert metrics["grad_norm"] == 0 and metrics["reward_mean"] == -1 and metrics["solve_rate"] == 0
    assert metrics["no_gradient_steps"] == 3 and metrics["skipped_steps"] == 0
    assert metrics["learning_rate"] == pytest.approx(float(before.opt_state[1].hyperparams["learning_rate"]))
    assert_trees_equal(state, before)


# ---- A step


def test_first_loss_is_on_policy():
    params, (rollouts, advantages) = tiny_params(CONFIG), first_rollouts()
    _, metrics = trainer().step(fresh(), 0)
    sizes = np.asarray([len(r.completion_ids) for r in rollouts])
    assert metrics["loss"] == pytest.approx(-(advantages * sizes).sum() / sizes.sum(), abs=1e-5)
    assert metrics["clip_fraction"] == 0 and metrics["logp_gap"] < 1e-5
    for r, logprobs in zip(rollouts, logprobs_without_packing(params, rollouts), strict=True):
        np.testing.assert_allclose(r.logprobs, logprobs, atol=1e-5)


def test_entropy_is_of_the_tokens_that_are_learned():
    params, (rollouts, advantages) = tiny_params(CONFIG), random_rollouts()
    _, metrics = update(fresh(), rollouts, advantages)
    tokens, mask = pad(rollouts)
    logprobs = np.asarray(padded_logprobs(params, tokens))[:, :-1]
    entropy = -(np.exp(logprobs) * logprobs).sum(-1)
    assert metrics["entropy"] == pytest.approx(entropy[mask[:, 1:] & (advantages != 0)[:, None]].mean(), abs=1e-4)


def test_step_repeated_from_same_state_is_bitwise_equal():
    (a, left), (b, right) = trainer().step(fresh(), 4), make().step(fresh(), 4)
    assert_trees_equal(a, b)
    left, right = ({k: float(v) for k, v in m.items() if not k.startswith("seconds_")} for m in (left, right))
    assert left == right
    c, _ = trainer().step(fresh(), 5)
    assert not np.array_equal(a.params.embed, c.params.embed)


def test_rollouts_of_a_step_are_split_over_optimizer_steps():
    rollouts, advantages = first_rollouts()
    state, metrics = make_shared(steps_per_generation=3).step(fresh(), 0)
    expected = fresh()
    for k in range(3):  # four rollouts each; the ratio is to the policy that sampled them
        rows = slice(4 * k, 4 * k + 4)
        expected, _ = update(expected, rollouts[rows], advantages[rows])
    assert state.step == 3 and metrics["max_ratio"] > 1.0001 and metrics["logp_gap"] < 1e-5
    assert_trees_equal(state, expected)


def test_metrics_are_means_over_all_optimizer_steps():
    """Three optimizer steps: one without advantage, one with a gradient of NaN, one like any other."""
    rollouts, _ = random_rollouts()
    broken = [dataclasses.replace(r, logprobs=np.nan * r.logprobs) for r in rollouts]
    state = fresh()
    state, good = update(state, rollouts, np.ones(9))
    state, no_gradient = update(state, rollouts, np.zeros(9))
    kept = jax.tree.map(np.array, state)
    state, skipped = update(state, broken, np.ones(9))
    assert_trees_equal(state, kept)
    metrics = micro_batches.mean_metrics([good, no_gradient, skipped])
    assert metrics["skipped_steps"] == 1 and metrics["no_gradient_steps"] == 1
    assert metrics["grad_norm"] == float(good["grad_norm"])  # of the finite ones
    state, better = update(state, rollouts, np.linspace(-1, 1, 9))
    metrics = micro_batches.mean_metrics([no_gradient, good, better])  # the step without a gradient counts in no mean
    for name in ("loss", "grad_norm", "entropy", "clip_fraction"):
        assert metrics[name] == pytest.approx((float(good[name]) + float(better[name])) / 2)
    assert metrics["logp_gap"] == good["logp_gap"] != better["logp_gap"]  # later steps have another policy
    assert micro_batches.mean_metrics([no_gradient, no_gradient])["loss"] == 0


def test_clip_fraction_and_sampled_entropy_include_tokens_without_advantage():
    params, (rollouts, advantages) = tiny_params(CONFIG), random_rollouts()
    _, metrics = update(fresh(), rollouts, advantages)
    present = logprobs_without_packing(params, rollouts)
    ratios = [np.exp(p - r.logprobs) for p, r in zip(present, rollouts, strict=True)]
    clipped = [(a * q > a * np.clip(q, 0.8, 1.2)).sum() for q, a in zip(ratios, advantages, strict=True)]
    tokens = sum(len(r.completion_ids) for r in rollouts)
    assert advantages[2] == 0 and metrics["clip_fraction"] == pytest.approx(sum(clipped) / tokens)
    sampled = sampling_metrics(rollouts)
    assert sampled["tokens"] == tokens
    assert sampled["sampled_entropy"] == pytest.approx(-sum(float(r.logprobs.sum()) for r in rollouts) / tokens)


def test_sampled_entropy_estimates_the_entropy_of_the_policy():
    """A policy of one distribution: the mean over many sampled tokens is near -sum p log p."""
    p = np.asarray([0.5, 0.3, 0.2])
    logprobs = np.log(p)[np.random.default_rng(0).choice(3, 20_000, p=p)]
    rollout = Rollout((1,), np.zeros(len(logprobs), np.int32), logprobs, Verdict(True, True, None, 0), True, 1.0)
    assert sampling_metrics([rollout])["sampled_entropy"] == pytest.approx(-(p * np.log(p)).sum(), abs=0.01)


def test_correct_logprob_is_of_correct_completions_alone():
    correct, wrong = (Verdict(is_correct, True, None, 0) for is_correct in (True, False))
    logprobs = ([-1.0, -2.0], [-3.0], [-9.0])
    rollouts = [
        Rollout((1,), np.zeros(len(x), np.int32), np.asarray(x), verdict, True, 1.0)
        for x, verdict in zip(logprobs, (correct, correct, wrong), strict=True)
    ]
    assert sampling_metrics(rollouts)["correct_logprob"] == -2  # a mean over tokens: (-1 - 2 - 3) / 3
    assert "correct_logprob" not in sampling_metrics(rollouts[2:])


def test_examples_of_a_step_are_its_problems():
    assert trainer().examples(1) == [PROBLEMS[j].id for j in trainer()._prompt_indices(1)]


def test_scale_rewards_divides_by_standard_deviation():
    scaled, unscaled = (make_shared(scale_rewards=scale).step(fresh(), 0)[1] for scale in (True, False))
    assert scaled["reward_mean"] == unscaled["reward_mean"]
    assert abs(scaled["loss"]) > abs(unscaled["loss"]) > 0  # rewards of +1 and -1 have a deviation below 1


# ---- Prompts and samples


def test_all_problems_come_once_before_any_comes_again():
    indices = [j for i in range(14) for j in trainer()._prompt_indices(i)]
    epochs = [indices[start : start + 7] for start in range(0, 42, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 3


class FixedEngine:
    """An engine that gives each prompt the same completions.

    Attributes:
      requests: of all calls.
    """

    sharding, seed, quantization = one_device(), 0, None

    def __init__(self, *completions):
        self.completions, self.requests = completions, []

    def reserve(self, prompt, new):
        pass

    def generate(
        self, params, requests, sampling, *, prefix_cache=None, stop_fn=None, progress=None, on_completion=None
    ):
        self.requests += requests
        for i in range(len(requests)):
            for j, found in enumerate(self.completions):
                on_completion(i, j, found)
        return [list(self.completions) for _ in requests]


def completion(ids, stopped):
    zeros = np.zeros(len(ids), np.float32)
    return Completion(np.asarray(ids, np.int32), zeros, zeros, "stop" if stopped else "length")


def test_request_ids_differ_between_steps_and_places():
    engine = FixedEngine(completion([1], True))
    two_problems = make(PROBLEMS[:2], engine=engine)  # three prompts of two problems: one comes twice in a step
    for i in range(3):
        two_problems.generate_rollouts(None, i)
    ids = [r.request_id for r in engine.requests]
    assert len(set(ids)) == len(ids) == 9


def test_row_that_cannot_hold_a_completion_is_refused():
    make(max_length=15)  # prompts of 3 tokens and completions of 12
    with pytest.raises(AstroError, match=r"grpo\.max_length=14.*raise it to 15"):
        make(max_length=14)


@pytest.mark.slow
def test_longer_prompt_in_a_later_step_compiles_nothing():
    """The caches of the sampler grew with the longest prompt so far, and its programs compiled again."""
    problems = [*PROBLEMS[:5], Problem("long", "bcdefghijkbcdefghijk", "")]
    engine = Engine(CONFIG, one_device(), 3, max_num_seqs=16, num_scheduler_steps=4, block_size=4)
    reserved = make_shared(problems, engine=engine)
    params = tiny_params(CONFIG)
    engine.precompile(params, prompt=3, new=12)  # of the shorter prompts, which leave the reservation as it is
    late = next(i for i in range(2) if "long" in reserved.examples(i))
    with count_compilations() as compiled:
        reserved.generate_rollouts(params, late)
    assert compiled == []


def test_truncated_response_is_wrong():
    game = Game(count=2, max_number=4, max_value=9)
    (problem,) = countdown.problems(game, 1, 0, held_out=False)
    tokenizer = countdown_tokenizer(9)
    (path, *_) = countdown.reachable(tuple(problem.meta["numbers"]), game)[problem.meta["target"]]
    solution = tokenizer.encode(countdown.attempt_text(tuple(problem.meta["numbers"]), path, problem.meta["target"]))
    end = [tokenizer.eos_token_id]
    engine = FixedEngine(completion(solution + end, True), completion(solution, False),
                         completion(solution[:-1] + end, True), completion(end, True))  # fmt: skip
    fixed = make([problem], engine=engine, tokenizer=tokenizer, verifier=Verifier(), prompts_per_step=1)
    (group,) = fixed.generate_rollouts(None, 0)
    assert [r.reward for r in group] == [1, -1, -1, -1]
    assert rollout_metrics(group) == {
        "reward_mean": -0.5, "solve_rate": 0.25, "mean_tokens": (2 * len(solution) + len(solution) + 2) / 4,
        "mean_backtracks": 0.0, "valid_rate": 0.5, "truncated_rate": 0.25, "unjudged_rate": 0.0, "repeat_rate": 0.0,
        "mean_tokens_stopped": (2 * len(solution) + 2) / 3, "max_tokens": len(solution) + 1, "repetition": 0.0,
        "p95_tokens": pytest.approx(len(solution) + 0.85),
    }  # fmt: skip
    # The shortest completion is an end token alone. It is learned like any other.
    batch = fixed._pack(group, np.asarray([3.0, -1, -1, -1])).micro_batches[0].batch
    assert (batch.loss_weights > 0).sum() == sum(len(r.completion_ids) for r in group)


def test_penalty_of_repeats_counts_the_repeated_attempts_of_the_text():
    game = Game(count=2, max_number=4, max_value=9)
    (problem,) = countdown.problems(game, 1, 0, held_out=False)
    tokenizer = countdown_tokenizer(9)
    numbers, target = tuple(problem.meta["numbers"]), problem.meta["target"]
    paths = countdown.reachable(numbers, game)
    right, wrong = (countdown.attempt_text(numbers, paths[t][0], target) for t in (target, min(set(paths) - {target})))
    again = f"{phrases.DOUBT}{phrases.UNSURE}{phrases.RESTART} make {target} from {' '.join(map(str, numbers))}.\n"
    texts = (right, wrong + again + right, again.join([wrong, wrong, wrong, right]), again.join([wrong] * 9))
    tokens = [[*tokenizer.encode(text), tokenizer.eos_token_id] for text in texts]
    engine = FixedEngine(*(completion(ids, True) for ids in tokens))
    priced = make(
        [problem], engine=engine, tokenizer=tokenizer, verifier=Verifier(), prompts_per_step=1, repeat_penalty=0.25
    )
    groups = priced.generate_rollouts(None, 0)
    assert [r.repeats for r in groups[0]] == [0, 0, 2, 8] and rollout_metrics(groups[0])["repeat_rate"] == 0.5
    rewards = reward_array(groups)
    np.testing.assert_array_equal(rewards, [[1, 1, 1, -1]])
    advantages, _ = priced._advantages(groups, rewards)
    r = np.asarray([1, 1, 0.5, -2])  # 8 repeats cost 1, not 2
    np.testing.assert_allclose(advantages, (r - r.mean()) / (r.std() + 1e-6), atol=1e-9)


# ---- Learning


def test_reward_rises_on_a_bandit():
    """Two arms in forty are right for each prompt; chance solves one in twenty."""
    problems = [Problem("b", "b", "fg"), Problem("c", "c", "hi")]
    bandit = make_shared(
        problems, verifier=FunctionVerifier(lambda r: r.text[:1] in r.problem.answer),
        prompts_per_step=2, num_generations=8, max_completion_length=2, max_steps=25,
    )  # fmt: skip
    state, solve_rates = fresh(tiny_params(CONFIG, scale=0.05)), []
    for i in range(bandit.c.max_steps):
        state, metrics = bandit.step(state, i)
        solve_rates.append(metrics["solve_rate"])
    assert np.mean(solve_rates[:3]) < 0.4 and np.mean(solve_rates[-3:]) > 0.9
