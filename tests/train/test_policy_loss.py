"""The losses of RL against their equations, one completion and one token at a time in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from astro_jax import config as cfg
from astro_jax.train import policy_loss
from astro_jax.train.losses import Batch
from astro_jax.train.policy_loss import RolloutBatch

LENGTHS = [[5, 9, 6], [12, 8]]  # completions in two rows of 24; each document has two tokens of prompt before
SIZE = 24


@dataclasses.dataclass
class Completion:
    """One completion: its place, its advantage, and float64 log-probabilities of its tokens."""

    row: int
    columns: np.ndarray
    advantage: float
    new: np.ndarray
    sampler: np.ndarray
    old: np.ndarray
    ref: np.ndarray
    chosen: np.ndarray


def completions(seed=0):
    """Completions whose ratios lie beyond all bounds, on both sides, with advantages of both signs."""
    rng = np.random.default_rng(seed)
    found = []
    for row, lengths in enumerate(LENGTHS):
        start = 0
        for length in lengths:
            new = rng.uniform(-4, -0.1, length)
            old = new - rng.normal(0, 1, length)
            columns = np.arange(start + 2, start + length)
            found.append(
                Completion(
                    row, columns, (-1) ** len(found) * rng.uniform(0.5, 2), new[2:],
                    (old + rng.normal(0, 0.3, length))[2:], old[2:], (new + rng.normal(0, 0.5, length))[2:],
                    columns % 3 == 0,
                )
            )  # fmt: skip
            start += length
    return found


def packed(found, c, with_old=False):
    """(log-probabilities [2, 24] of the policy, RolloutBatch)."""
    arrays = {name: np.zeros((2, SIZE), np.float32) for name in ("new", "sampler", "old", "ref", "chosen", "a", "w")}
    segments = np.zeros((2, SIZE), np.int32)
    total = sum(len(x.new) for x in found)
    for x in found:
        place = (x.row, x.columns)
        segments[x.row, x.columns[0] - 2 : x.columns[-1] + 1] = segments[x.row].max() + 1
        arrays["a"][place] = x.advantage
        arrays["w"][place] = policy_loss.completion_weight(c, len(x.new), total, len(found))
        for name in ("new", "sampler", "old", "ref", "chosen"):
            arrays[name][place] = getattr(x, name)
    batch = Batch(segments, segments, segments, arrays["w"])
    old = arrays["old"] if with_old else None
    chosen = arrays["chosen"] if c.clip_cov_ratio or c.kl_cov_ratio else None
    rollouts = RolloutBatch(batch, arrays["a"], arrays["sampler"], old, arrays["ref"] if c.beta else None, chosen)
    return jnp.asarray(arrays["new"]), jax.tree.map(jnp.asarray, rollouts)


def numpy_loss(found, c, detached=None):
    """The loss by the equations. `detached`: completions that give the weights without a gradient (CISPO)."""
    total, n = sum(len(x.new) for x in found), len(found)
    high = c.epsilon if c.epsilon_high is None else c.epsilon_high
    loss = 0.0
    for x, fixed in zip(found, detached or found, strict=True):
        old = x.old if c.importance_sampling_cap else x.sampler
        log_ratio, fixed_log_ratio = x.new - old, fixed.new - old
        if c.importance_sampling_level == "sequence":
            log_ratio = np.full(len(old), log_ratio.mean())
        if c.max_log_ratio:
            log_ratio = np.clip(log_ratio, -c.max_log_ratio, c.max_log_ratio)
        for t in range(len(old)):
            r, a = np.exp(log_ratio[t]), x.advantage
            if c.loss_type == "cispo":
                j = min(np.exp(fixed_log_ratio[t]), c.epsilon_high) * a * x.new[t]
            else:
                j = min(r * a, min(max(r, 1 - c.epsilon), 1 + high) * a)
                if c.delta and a < 0:
                    j = max(j, c.delta * a)
            if c.importance_sampling_cap:
                j *= min(np.exp(x.old[t] - x.sampler[t]), c.importance_sampling_cap)
            if x.chosen[t] and c.clip_cov_ratio:
                j = 0
            if c.geometric_mask_bounds:
                least, largest = c.geometric_mask_bounds
                j *= least <= np.exp((x.new - x.sampler).mean()) <= largest
            if x.chosen[t] and c.kl_cov_ratio:
                r = np.exp(x.new[t] - old[t])
                j -= c.kl_cov_coef * (r - 1 - np.log(r))
            kl = np.exp(x.ref[t] - x.new[t]) - (x.ref[t] - x.new[t]) - 1
            weight = {"grpo": 1 / n / len(old), "dr_grpo": 1 / n / c.max_completion_length}.get(c.loss_type, 1 / total)
            loss += weight * (c.beta * kl - j)
    return loss


OPTIONS = {
    "paper": {},
    "narrow": {"epsilon": 0.05},
    "clip-higher": {"epsilon_high": 0.5},
    "dual clip": {"delta": 1.6},
    "clamped log-ratio": {"max_log_ratio": 0.4, "epsilon": 10.0},
    "KL": {"beta": 0.3},
    "mean over completions": {"loss_type": "grpo"},
    "constant": {"loss_type": "dr_grpo", "max_completion_length": 17},
    "GSPO": {"importance_sampling_level": "sequence", "loss_type": "grpo", "epsilon": 0.01, "epsilon_high": 0.1},
    "CISPO": {"loss_type": "cispo", "epsilon_high": 1.5},
    "truncated importance weights": {"importance_sampling_cap": 1.2},
    "geometric mask": {"geometric_mask_bounds": [0.8, 1.2], "importance_sampling_cap": 5.0},
    "Clip-Cov": {"clip_cov_ratio": 0.1},
    "KL-Cov": {"kl_cov_ratio": 0.1, "kl_cov_coef": 0.7, "steps_per_generation": 2},
    "all": {"epsilon_high": 0.3, "delta": 2.0, "max_log_ratio": 0.7, "beta": 0.1, "loss_type": "dr_grpo",
            "importance_sampling_cap": 2.0},
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_loss_and_gradient_equal_the_equation(name):
    c, found = cfg.Grpo(**OPTIONS[name]), completions()
    logprobs, rollouts = packed(found, c, with_old=c.importance_sampling_cap is not None)
    loss, gradient = jax.value_and_grad(lambda x: policy_loss.policy_loss(x, rollouts, c)[0])(logprobs)
    assert loss == pytest.approx(numpy_loss(found, c), rel=1e-4)
    expected, h = np.zeros((2, SIZE)), 1e-5
    for k, x in enumerate(found):
        for t, column in enumerate(x.columns):
            values = []
            for step in (h, -h):
                moved = dataclasses.replace(x, new=x.new + step * (np.arange(len(x.new)) == t))
                values.append(numpy_loss([*found[:k], moved, *found[k + 1 :]], c, detached=found))
            expected[x.row, column] = (values[0] - values[1]) / 2 / h
    np.testing.assert_allclose(gradient, expected, atol=1e-5)
    if name != "paper":
        base = cfg.Grpo()
        assert abs(loss - policy_loss.policy_loss(logprobs, packed(found, base)[1], base)[0]) > 1e-4


def test_metrics_are_of_the_tokens_with_a_weight():
    c, found = cfg.Grpo(epsilon_high=0.3, delta=1.5, beta=0.1), completions(1)
    logprobs, rollouts = packed(found, c)
    _, metrics = policy_loss.policy_loss(logprobs, rollouts, c)
    ratios = [(np.exp(x.new - x.sampler), x.advantage) for x in found]
    assert metrics["learned_tokens"] == sum(len(x.new) for x in found)
    assert metrics["clip_low"] == sum((r < 0.8).sum() for r, a in ratios if a < 0) > 0
    assert metrics["clip_high"] == sum((r > (1.3 if a > 0 else 1.5)).sum() for r, a in ratios) > 0
    assert metrics["max_ratio"] == pytest.approx(max(r.max() for r, _ in ratios), rel=1e-5)
    gaps = np.concatenate([np.abs(x.new - x.sampler) for x in found])
    assert metrics["max_logp_gap"] == pytest.approx(gaps.max(), rel=1e-5)
    assert metrics["logp_gap"] == pytest.approx(gaps.sum(), rel=1e-5)
    assert metrics["approx_kl"] == pytest.approx(sum((r - np.log(r) - 1).sum() for r, _ in ratios), rel=1e-4)
    kl = sum((np.exp(x.ref - x.new) - (x.ref - x.new) - 1).sum() for x in found)
    assert metrics["kl"] == pytest.approx(kl, rel=1e-4)


def test_gradient_at_old_policy_is_plain_policy_gradient():
    """d/dp of -sum w min(r A, clip(r) A) at r = 1 is d/dp of -sum w A p, which is -w A; GSPO's is the same."""
    for options in ({}, {"loss_type": "grpo", "importance_sampling_level": "sequence"}):
        c = cfg.Grpo(**options)
        logprobs, rollouts = packed(completions(), c)
        rollouts = rollouts.replace(sampler_logprobs=logprobs)
        gradient = jax.grad(lambda x: policy_loss.policy_loss(x, rollouts, c)[0])(logprobs)  # noqa: B023
        np.testing.assert_allclose(gradient, -rollouts.batch.loss_weights * rollouts.advantages, rtol=1e-5, atol=1e-8)


def surrogate_gradient(ratio, advantages, **options):
    c, x = cfg.Grpo(**options), jnp.log(jnp.asarray([ratio]))
    weights = jnp.full(x.shape, 0.25)
    batch = Batch(jnp.zeros(x.shape, int), jnp.ones(x.shape, int), jnp.zeros(x.shape, int), weights)
    rollouts = RolloutBatch(batch, jnp.asarray([advantages]), jnp.zeros(x.shape))
    return jax.grad(lambda x: policy_loss.policy_loss(x, rollouts, c)[0])(x)[0]


def test_clipped_tokens_have_no_gradient():
    # A > 0: only a ratio above 1 + epsilon is clipped. A < 0: only a ratio below 1 - epsilon.
    ratio, advantages = [1.5, 0.5, 1.5, 0.5], [1.0, 1.0, -1.0, -1.0]
    np.testing.assert_allclose(surrogate_gradient(ratio, advantages), [0, -0.125, 0.375, 0], atol=1e-7)
    # A ratio of 1.5 is inside of 1 + 0.6, and beyond the dual clip's 1.45 (whose bound is above 1 + epsilon).
    np.testing.assert_allclose(surrogate_gradient(ratio, advantages, epsilon_high=0.6)[0], -0.375, atol=1e-7)
    np.testing.assert_allclose(surrogate_gradient(ratio, advantages, delta=1.45), [0, -0.125, 0, 0], atol=1e-7)
    # CISPO keeps the gradient of all tokens, with a weight of at most 1.2.
    cispo = surrogate_gradient(ratio, advantages, loss_type="cispo", epsilon_high=1.2)
    np.testing.assert_allclose(cispo, [-0.3, -0.125, 0.3, 0.125], atol=1e-7)


def test_log_probability_at_weight_zero_cannot_overflow():
    logprobs, sampler = jnp.asarray([[-1.0, 0.0]]), jnp.asarray([[-1.0, -1e4]])
    ids = jnp.ones((1, 2), int)
    rollouts = RolloutBatch(Batch(ids, ids, ids, jnp.asarray([[1.0, 0.0]])), jnp.ones((1, 2)), sampler)
    loss = jax.value_and_grad(lambda x: policy_loss.policy_loss(x, rollouts, cfg.Grpo())[0])
    value, gradient = loss(logprobs)
    assert value == -1 and gradient.tolist() == [[-1, 0]]


def test_completion_with_a_geometric_mean_ratio_outside_of_the_bounds_has_no_gradient():
    # Two completions in one row: ratios 1.5 and 1 / 1.5 have a mean of 1, ratios 1.5 and 1.2 a mean of 1.34.
    logprobs, segments = jnp.log(jnp.asarray([[1.5, 1 / 1.5, 1.5, 1.2]])), jnp.asarray([[1, 1, 2, 2]])
    batch = Batch(segments, segments, segments, jnp.full((1, 4), 0.25))
    rollouts = RolloutBatch(batch, -jnp.ones((1, 4)), jnp.zeros((1, 4)))
    c = cfg.Grpo(geometric_mask_bounds=(0.8, 1.25), epsilon=0.9)
    gradient, metrics = jax.grad(lambda x: policy_loss.policy_loss(x, rollouts, c), has_aux=True)(logprobs)
    np.testing.assert_allclose(gradient, [[0.375, 0.25 / 1.5, 0, 0]], atol=1e-7)
    assert metrics["geometric_mask_rate"] == 2  # tokens


def test_clamped_log_ratio_keeps_a_tiny_old_probability_finite():
    logprobs, ids = jnp.asarray([[-0.1]]), jnp.ones((1, 1), int)
    rollouts = RolloutBatch(Batch(ids, ids, ids, jnp.ones((1, 1))), -jnp.ones((1, 1)), jnp.asarray([[-200.0]]))
    loss = {
        c.max_log_ratio: policy_loss.policy_loss(logprobs, rollouts, c)[0]
        for c in (cfg.Grpo(), cfg.Grpo(max_log_ratio=2))
    }
    assert loss[None] == pytest.approx(np.exp(60)) and loss[2] == pytest.approx(np.exp(2))


@pytest.mark.parametrize(
    "advantage, options", [(1.0, {}), (-1.0, {"delta": 3.0}), (-1.0, {"geometric_mask_bounds": (0.9, 1.1)})]
)
def test_a_ratio_that_overflows_has_no_gradient_of_nan(advantage, options):
    """The gradient of exp(99) is infinite, and NaN where the clip or the mask multiplies it by 0."""
    logprobs, ids = jnp.asarray([[-1.0, -1.0]]), jnp.asarray([[1, 2]])
    rollouts = RolloutBatch(
        Batch(ids, ids, ids, jnp.ones((1, 2))), jnp.full((1, 2), advantage), jnp.asarray([[-100.0, -1.0]]),
        ref_logprobs=jnp.asarray([[99.0, -1.0]]),
    )  # fmt: skip
    gradient = jax.grad(lambda x: policy_loss.policy_loss(x, rollouts, cfg.Grpo(beta=0.1, **options))[0])(logprobs)
    np.testing.assert_allclose(gradient, [[0, -advantage]])


def test_arrays_without_rows_are_refused():
    x = jnp.zeros(3)
    with pytest.raises(AssertionError, match="rank"):
        policy_loss.policy_loss(x, RolloutBatch(Batch(x, x, x, x), x, x), cfg.Grpo())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"loss_type": "cispo"}, "epsilon_high is the largest weight"),
        ({"loss_type": "cispo", "epsilon_high": 5, "delta": 7}, "cispo has no delta"),
        ({"delta": 1.2, "epsilon_high": 0.3}, "delta=1.2 must be above 1 \\+ epsilon_high = 1.3"),
        ({"clip_cov_ratio": 0.1, "kl_cov_ratio": 0.1}, "set one of them"),
        ({"clip_cov_bounds": (5, 1)}, "the first must be less"),
        ({"geometric_mask_bounds": (1.01, 0.99)}, "the second above 1, as in"),
        ({"kl_cov_ratio": 0.1}, "set steps_per_generation to 2 or more"),
        ({"quantized_rollouts": True}, "set importance_sampling_cap"),
        ({"soft_punish_cache": 256}, "soft_punish_cache=256 must be less than max_completion_length=256"),
    ],
)
def test_options_that_exclude_each_other_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        cfg.Grpo(**options)
