"""The optimizer step against AdamW written out in NumPy, and on a mesh against one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_close, assert_trees_equal, one_device_train, tiny_config, tiny_params
from jax.sharding import PartitionSpec as P

from astro_jax import config as cfg
from astro_jax.mesh import make_mesh, train_sharding
from astro_jax.train import sft, state
from astro_jax.train.losses import Batch

CONFIG = tiny_config(n_layers=1)
PARAMS = tiny_params(CONFIG)
SFT = cfg.Sft(
    learning_rate=0.01, warmup_ratio=0.5, min_lr_rate=0.1, weight_decay=0.2, betas=(0.8, 0.9), max_grad_norm=1.0
)
STEPS = 4


def gradient_tree(seed, scale):
    return jax.tree.map(lambda x: scale * np.asarray(x), tiny_params(CONFIG, seed=seed))


def linear_loss(params, gradients):
    """A loss whose gradient is what the batch says (split over the batch axis, one row)."""
    terms = jax.tree.map(lambda p, g: jnp.sum(p * g[0]), params, gradients)
    value = sum(jax.tree.leaves(terms))
    return value, {"loss": value}


def learning_rates():
    """Warm-up over the first 2 of 4 steps from 1/3 of the peak, then a cosine to a tenth of it: at 2, 3, 4."""
    peak = 0.01
    return [peak / 3, peak / 3 + (peak - peak / 3) / 2, peak, 0.1 * peak + 0.9 * peak * (1 + np.cos(np.pi / 2)) / 2]


def numpy_adamw(params, gradients, betas, clip, decay, rates):
    """All parameters after a step for each gradient: arXiv 1711.05101 with the gradient clipped by its global norm."""
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    p = [np.asarray(x, np.float64) for x in jax.tree.leaves(params)]
    m, v = [0 * x for x in p], [0 * x for x in p]
    for t, (tree, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        g = [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]
        norm = np.sqrt(sum((x**2).sum() for x in g))
        for i, name in enumerate(names):
            gi = g[i] * min(1, clip / norm)
            m[i] = betas[0] * m[i] + (1 - betas[0]) * gi
            v[i] = betas[1] * v[i] + (1 - betas[1]) * gi**2
            step = (m[i] / (1 - betas[0] ** t)) / (np.sqrt(v[i] / (1 - betas[1] ** t)) + 1e-8)
            p[i] = p[i] - rate * (step + (0 if "norm" in name else decay) * p[i])
    return jax.tree.unflatten(jax.tree.structure(params), p)


def make(loss, c=SFT, sharding=None):
    sharding = sharding or one_device_train()
    tx = state.make_optimizer(c, STEPS)
    like = state.abstract_state(CONFIG, tx, sharding)
    start = state.place(state.new_state(jax.tree.map(jnp.array, PARAMS), tx), like)
    return start, state.make_step(loss, tx, CONFIG, sharding)


def test_steps_equal_adamw_by_hand():
    gradients = [gradient_tree(1, 5.0), gradient_tree(2, 1e-3), gradient_tree(3, 0.5)]  # clipped, not, clipped
    at, step = make(linear_loss)
    for i, tree in enumerate(gradients):
        at, metrics = step(at, jax.tree.map(lambda x: x[None], tree))
        norm = np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(tree)))
        assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-5)  # before the clip
        assert metrics["lr"] == pytest.approx(learning_rates()[i], rel=1e-5)
    expected = numpy_adamw(PARAMS, gradients, (0.8, 0.9), 1.0, 0.2, learning_rates()[:3])
    assert_trees_close(at.params, expected, atol=2e-6)
    assert at.step == 3


def test_weight_decay_leaves_norms_alone():
    at, step = make(linear_loss)
    at, _ = step(at, jax.tree.map(lambda x: 0 * x[None], PARAMS))
    factor = 1 - learning_rates()[0] * 0.2
    expected = jax.tree_util.tree_map_with_path(
        lambda path, x: x if "norm" in jax.tree_util.keystr(path) else factor * x, PARAMS
    )
    assert_trees_close(at.params, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "warmup, final_lr, expected",
    [
        (0.0, 0.0, [1, 0.5 + 0.5 * np.cos(np.pi / 4), 0.5, 0.5 - 0.5 * np.cos(np.pi / 4), 0]),
        (0.5, 0.0, [1 / 3, 2 / 3, 1, 0.5, 0]),
        (0.25, 1.0, [0.5, 1, 1, 1, 1]),
    ],
)
def test_the_schedule(warmup, final_lr, expected):
    c = cfg.Sft(learning_rate=0.01, warmup_ratio=warmup, min_lr_rate=final_lr)
    params = {"w": jnp.ones(1)}
    tx = state.make_optimizer(c, STEPS)
    at, found = tx.init(params), []
    update = jax.jit(tx.update)
    for _ in range(5):
        _, at = update(params, at, params)
        found.append(float(at[1].hyperparams["learning_rate"]) / 0.01)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def random_batch(rows=4, length=8):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 20, (rows, length))
    weights = np.ones((rows, length), np.float32)
    weights[:, 0] = 0
    positions = np.broadcast_to(np.arange(length), tokens.shape)
    return Batch(tokens, np.ones_like(tokens), positions, weights)


def sft_step(sharding, c=SFT):
    return make(sft.make_loss(c, CONFIG, sharding), c, sharding)


def test_a_step_on_a_mesh_equals_one_on_one_device_and_keeps_its_shardings():
    results = []
    for sharding in (one_device_train(), train_sharding(make_mesh(2, 2, 2))):
        at, step = sft_step(sharding)
        for _ in range(2):
            at, metrics = step(at, random_batch())
        results.append((at, metrics))
    assert_trees_close(results[1], results[0], rtol=1e-4, atol=2e-5)
    at = results[1][0]
    moments = at.opt_state[1].inner_state[0]
    wanted = sharding.spec(("layers", "embed", "heads", "head"))
    assert wanted == P(None, "fsdp", "tp", None)
    for tree in (at.params, moments.mu, moments.nu):
        assert tree.layers.wq.sharding.spec == wanted
        assert len({shard.device for shard in tree.embed.addressable_shards}) == 8
        assert tree.embed.addressable_shards[0].data.shape == (10, 8)  # of [20, 16], over tp and fsdp
    assert at.step.sharding.is_fully_replicated


def test_accumulated_halves_of_a_batch_equal_the_whole():
    # For a loss whose weights sum to 1 over all batches of an update, as GRPO's do.
    sharding = one_device_train()
    batch = random_batch()

    def loss(params, b):
        value, metrics = sft.make_loss(SFT, CONFIG, sharding)(params, b)
        return value * b.weights.sum() / batch.weights.sum(), metrics

    whole, step = make(loss)
    whole, metrics = step(whole, batch)
    tx = state.make_optimizer(SFT, STEPS)
    half = state.place(state.new_state(jax.tree.map(jnp.array, PARAMS), tx), state.abstract_state(CONFIG, tx, sharding))
    accumulate = state.make_accumulate(loss, tx, CONFIG, sharding)
    total = state.zero_gradients(CONFIG, sharding)
    for part in (slice(0, 2), slice(2, 4)):
        total, _ = accumulate(half.params, total, jax.tree.map(lambda x: x[part], batch))  # noqa: B023
    half, more = state.make_apply(tx, CONFIG, sharding)(half, total)
    assert_trees_close(half, whole, rtol=1e-4, atol=2e-5)
    assert more["grad_norm"] == pytest.approx(float(metrics["grad_norm"]), rel=1e-4)


def test_training_learns_a_batch_by_heart():
    c = cfg.Sft(learning_rate=0.03, warmup_ratio=0.0, min_lr_rate=1.0, weight_decay=0.0)
    at, step = sft_step(one_device_train(), c)
    losses = []
    for _ in range(40):
        at, metrics = step(at, random_batch())
        losses.append(float(metrics["loss"]))
    assert losses[0] > 2.5 and losses[-1] < 0.3


def test_a_fresh_state_starts_at_zero():
    at, _ = make(linear_loss)
    assert at.step == 0
    assert_trees_equal(at.params, PARAMS)
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(at.opt_state[1].inner_state[0]))
