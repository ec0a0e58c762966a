"""The optimizer step against AdamW written out in NumPy, and on a mesh against one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
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
    """A loss whose gradient is the batch (split over the batch axis, one row)."""
    terms = jax.tree.map(lambda p, g: jnp.sum(p * g[0]), params, gradients)
    value = sum(jax.tree.leaves(terms))
    return value, {"loss": value}


def learning_rates():
    """Of steps 1 to 4: up from 1/3 of the peak over the first 2 of 4 steps, then a cosine to 1/10 of the peak."""
    peak = 0.01
    return [peak / 3, peak / 3 + (peak - peak / 3) / 2, peak, 0.1 * peak + 0.9 * peak * (1 + np.cos(np.pi / 2)) / 2]


def numpy_adamw(params, gradients, betas, max_norm, decay, rates):
    """All parameters after a step with each gradient: arXiv 1711.05101 with the gradient clipped by its global norm."""
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    p = [np.asarray(x, np.float64) for x in jax.tree.leaves(params)]
    m, v = [0 * x for x in p], [0 * x for x in p]
    for t, (tree, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        g = [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]
        norm = np.sqrt(sum((x**2).sum() for x in g))
        for i, name in enumerate(names):
            gi = g[i] * min(1, max_norm / norm)
            m[i] = betas[0] * m[i] + (1 - betas[0]) * gi
            v[i] = betas[1] * v[i] + (1 - betas[1]) * gi**2
            step = (m[i] / (1 - betas[0] ** t)) / (np.sqrt(v[i] / (1 - betas[1] ** t)) + 1e-8)
            p[i] = p[i] - rate * (step + (0 if "norm" in name else decay) * p[i])
    return jax.tree.unflatten(jax.tree.structure(params), p)


def fresh(c=SFT, sharding=None):
    """A state at step 0."""
    tx = state.make_optimizer(c, STEPS)
    abstract = state.abstract_state(CONFIG, tx, sharding or one_device_train())
    return state.place(state.new_state(jax.tree.map(jnp.array, PARAMS), tx), abstract)


def make_step(loss, c=SFT, sharding=None):
    return state.make_step(
        jax.value_and_grad(loss, has_aux=True), state.make_optimizer(c, STEPS), CONFIG, sharding or one_device_train()
    )


@functools.cache
def linear_step():
    return make_step(linear_loss)


@functools.cache
def sft_step():
    return make_step(sft.make_loss(SFT, CONFIG, one_device_train()))


def test_steps_equal_numpy_adamw():
    gradients = [gradient_tree(1, 5.0), gradient_tree(2, 1e-3), gradient_tree(3, 0.5)]  # clipped, not, clipped
    train_state = fresh()
    for i, tree in enumerate(gradients):
        train_state, metrics = linear_step()(train_state, jax.tree.map(lambda x: x[None], tree))
        norm = np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(tree)))
        assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-5)  # before the clip
        assert metrics["learning_rate"] == pytest.approx(learning_rates()[i], rel=1e-5)
    expected = numpy_adamw(PARAMS, gradients, (0.8, 0.9), 1.0, 0.2, learning_rates()[:3])
    assert_trees_close(train_state.params, expected, atol=2e-6)
    assert train_state.step == 3


def test_bfloat16_first_moment_takes_half_of_its_memory_and_changes_little():
    gradients = [gradient_tree(1, 5.0), gradient_tree(2, 1e-3), gradient_tree(3, 0.5)]
    c = SFT.model_copy(update={"mu_dtype": "bfloat16"})
    train_state, step = fresh(c), make_step(linear_loss, c)
    adam = train_state.opt_state[1].inner_state[0]
    assert {x.dtype.name for x in jax.tree.leaves(adam.mu)} == {"bfloat16"}
    assert {x.dtype.name for x in jax.tree.leaves(adam.nu)} == {"float32"}
    for tree in gradients:
        train_state, _ = step(train_state, jax.tree.map(lambda x: x[None], tree))
    expected = numpy_adamw(PARAMS, gradients, (0.8, 0.9), 1.0, 0.2, learning_rates()[:3])
    assert_trees_close(train_state.params, expected, atol=2e-4)
    assert jax.tree.map(lambda x: x.dtype, train_state) == jax.tree.map(lambda x: x.dtype, fresh(c))


def test_weight_decay_leaves_norms_alone():
    train_state, _ = linear_step()(fresh(), jax.tree.map(lambda x: 0 * x[None], PARAMS))
    factor = 1 - learning_rates()[0] * 0.2
    expected = jax.tree_util.tree_map_with_path(
        lambda path, x: x if "norm" in jax.tree_util.keystr(path) else factor * x, PARAMS
    )
    assert_trees_close(train_state.params, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "warmup_ratio, min_lr_rate, expected",
    [
        (0.0, 0.0, [1, 0.5 + 0.5 * np.cos(np.pi / 4), 0.5, 0.5 - 0.5 * np.cos(np.pi / 4), 0]),
        (0.5, 0.0, [1 / 3, 2 / 3, 1, 0.5, 0]),
        (0.25, 1.0, [0.5, 1, 1, 1, 1]),
    ],
)
def test_schedule_warms_up_then_follows_cosine(warmup_ratio, min_lr_rate, expected):
    c = cfg.Sft(learning_rate=0.01, warmup_ratio=warmup_ratio, min_lr_rate=min_lr_rate)
    params = {"w": jnp.ones(1)}
    tx = state.make_optimizer(c, STEPS)
    opt_state, rates = tx.init(params), []
    update = jax.jit(tx.update)
    for _ in range(5):
        _, opt_state = update(params, opt_state, params)
        rates.append(float(opt_state[1].hyperparams["learning_rate"]) / 0.01)
    np.testing.assert_allclose(rates, expected, atol=1e-6)


def random_batch(rows=4, length=8):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 20, (rows, length))
    weights = np.ones((rows, length), np.float32)
    weights[:, 0] = 0
    positions = np.broadcast_to(np.arange(length), tokens.shape)
    return Batch(tokens, np.ones_like(tokens), positions, weights)


def test_step_on_mesh_equals_step_on_one_device_and_keeps_shardings():
    sharding = train_sharding(make_mesh(2, 2, 2))
    on_mesh = make_step(sft.make_loss(SFT, CONFIG, sharding), sharding=sharding)
    results = []
    for step, train_state in ((sft_step(), fresh()), (on_mesh, fresh(sharding=sharding))):
        for _ in range(2):
            train_state, metrics = step(train_state, random_batch())
        results.append((train_state, metrics))
    assert_trees_close(results[1], results[0], rtol=1e-4, atol=2e-5)
    train_state = results[1][0]
    moments = train_state.opt_state[1].inner_state[0]
    spec = sharding.spec(("layers", "embed", "heads", "head"))
    assert spec == P(None, "fsdp", "tp", None)
    for tree in (train_state.params, moments.mu, moments.nu):
        assert tree.layers.wq.sharding.spec == spec
        assert len({shard.device for shard in tree.embed.addressable_shards}) == 8
        assert tree.embed.addressable_shards[0].data.shape == (10, 8)  # of [20, 16], over tp and fsdp
    assert train_state.step.sharding.is_fully_replicated


def test_accumulated_halves_of_batch_equal_whole_batch():
    # For a loss whose weights sum to 1 over all micro-batches of an update, as GRPO's do.
    sharding, tx, batch = one_device_train(), state.make_optimizer(SFT, STEPS), random_batch()

    def loss(params, half):
        value, metrics = sft.make_loss(SFT, CONFIG, sharding)(params, half)
        return value * half.loss_weights.sum() / batch.loss_weights.sum(), metrics

    whole, metrics = sft_step()(fresh(), batch)  # of the whole batch, this loss is the loss of SFT
    accumulate = state.make_accumulate(loss, tx, CONFIG, sharding)
    total, halves = state.zero_gradients(CONFIG, sharding), fresh()
    for rows in (slice(0, 2), slice(2, 4)):
        total, _ = accumulate(halves.params, total, jax.tree.map(lambda x: x[rows], batch))  # noqa: B023
    halves, update_metrics = state.make_apply(tx, CONFIG, sharding)(halves, total, np.float32(1.0))
    assert_trees_close(halves, whole, rtol=1e-4, atol=2e-5)
    assert update_metrics["grad_norm"] == pytest.approx(float(metrics["grad_norm"]), rel=1e-4)


def test_finite_update_is_bitwise_equal_to_an_update_without_a_guard():
    tx = state.make_optimizer(SFT, STEPS)

    @functools.partial(jax.jit, donate_argnums=0)
    def alone(train_state, gradients):
        updates, opt_state = tx.update(gradients, train_state.opt_state, train_state.params)
        params = optax.apply_updates(train_state.params, updates)
        return state.TrainState(train_state.step + 1, params, opt_state), optax.tree.norm(gradients)

    apply = state.make_apply(tx, CONFIG, one_device_train())
    guarded, unguarded = fresh(), fresh()
    for seed, scale in ((1, 5.0), (2, 1e-3), (3, 0.5)):
        gradients = jax.tree.map(jnp.asarray, gradient_tree(seed, scale))
        guarded, metrics = apply(guarded, gradients, np.float32(0.5))
        unguarded, norm = alone(unguarded, gradients)
        assert metrics["grad_norm"] == norm
    assert_trees_equal(guarded, unguarded)


@pytest.mark.parametrize("loss, value", [(np.nan, 1.0), (np.inf, 1.0), (0.5, np.nan), (0.5, -np.inf), (0.5, 1e38)])
def test_nan_or_infinity_changes_nothing(loss, value):
    """A loss or a gradient, or a gradient whose norm overflows."""
    apply = state.make_apply(state.make_optimizer(SFT, STEPS), CONFIG, one_device_train())
    before, _ = apply(fresh(), jax.tree.map(jnp.asarray, gradient_tree(1, 0.5)), np.float32(0.5))
    kept = jax.tree.map(np.array, before)
    gradients = jax.tree.map(jnp.asarray, gradient_tree(2, 0.5))
    gradients = gradients.replace(final_norm=gradients.final_norm.at[0].set(value))
    after, metrics = apply(before, gradients, np.float32(loss))
    assert_trees_equal(after, kept)
    assert metrics["skipped_steps"] == 1 and after.step == 1


def test_training_overfits_one_batch():
    c = cfg.Sft(learning_rate=0.03, warmup_ratio=0.0, min_lr_rate=1.0, weight_decay=0.0)
    train_state, step = fresh(c), make_step(sft.make_loss(c, CONFIG, one_device_train()), c)
    losses = []
    for _ in range(40):
        train_state, metrics = step(train_state, random_batch())
        losses.append(float(metrics["loss"]))
    assert losses[0] > 2.5 and losses[-1] < 0.3


def test_new_state_is_at_step_zero_with_zero_moments():
    train_state = fresh()
    assert train_state.step == 0
    assert_trees_equal(train_state.params, PARAMS)
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(train_state.opt_state[1].inner_state[0]))
