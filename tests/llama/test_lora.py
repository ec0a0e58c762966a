"""LoRA: an adapted model, against a model with merged weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_close, assert_trees_equal, one_device_train, tiny_config, tiny_params

from astro_jax import llama
from astro_jax.llama import lora, model
from astro_jax.mesh import make_mesh, train_sharding

CONFIG = tiny_config(n_kv_heads=4)
PARAMS = tiny_params(CONFIG)
TOKENS = np.random.default_rng(0).integers(0, 20, (2, 9))
TARGETS = tuple(lora.TARGETS)


def random_adapters(targets=TARGETS):
    """Adapters whose B is not 0."""
    adapters = lora.init(jax.random.key(0), CONFIG, 3, targets)
    leaves, treedef = jax.tree.flatten(adapters)
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(treedef, [x + 0.1 * rng.normal(size=x.shape).astype(np.float32) for x in leaves])


@pytest.mark.parametrize("targets", [TARGETS, ("q_proj", "o_proj"), ("down_proj",)])
def test_merged_model_equals_adapted_model(targets):
    adapters = random_adapters(targets)
    adapted = llama.forward(lora.attach(PARAMS, adapters, 0.7), TOKENS, CONFIG)
    merged = llama.forward(lora.merge(PARAMS, adapters, 0.7), TOKENS, CONFIG)
    np.testing.assert_allclose(adapted, merged, rtol=1e-4, atol=1e-4)
    assert np.abs(merged - llama.forward(PARAMS, TOKENS, CONFIG)).max() > 0.1


def test_fresh_adapters_change_nothing():
    adapters = lora.init(jax.random.key(0), CONFIG, 3, TARGETS)
    assert_trees_equal(lora.merge(PARAMS, adapters, 2.0), PARAMS)
    assert {name: np.abs(x.a).max() > 0 for name, x in adapters.items()} == dict.fromkeys(lora.TARGETS.values(), True)


def test_gradients_equal_those_of_the_merged_model_on_a_mesh():
    """Only the adapters have a gradient: that of W + scale A B by A and B."""
    sharding = train_sharding(make_mesh(data=2, tp=2))
    adapters = random_adapters()

    def loss(params, sharding):
        return jnp.sum(model.hidden_states(params, TOKENS, CONFIG, sharding=sharding) ** 2)

    adapted = jax.jit(jax.value_and_grad(lambda x, base: loss(lora.attach(base, x, 0.7), sharding)))
    merged = jax.jit(jax.value_and_grad(lambda x, base: loss(lora.merge(base, x, 0.7), None)))
    expected = merged(adapters, PARAMS)
    for x, y in zip(jax.tree.leaves(adapted(adapters, PARAMS)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5 * np.abs(y).max())
    frozen = jax.jit(jax.grad(lambda base: loss(lora.attach(base, adapters, 0.7), None)))(PARAMS)
    assert not any(x.any() for x in jax.tree.leaves(frozen))


def test_abstract_adapters_have_the_shapes_of_the_drawn_ones():
    abstract = lora.abstract(CONFIG, 3, TARGETS, one_device_train())
    drawn = lora.init(jax.random.key(0), CONFIG, 3, TARGETS)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), abstract) == jax.tree.map(lambda x: (x.shape, x.dtype), drawn)
    assert drawn["wq"].a.shape == (2, 16, 3) and drawn["wq"].b.shape == (2, 3, 4, 4)
    assert drawn["wo"].a.shape == (2, 4, 4, 3) and drawn["wo"].b.shape == (2, 3, 16)


def test_bfloat16_adapters_have_float32_gradients():
    from astro_jax.train import losses

    def loss(adapters):
        params = lora.attach(losses.cast(PARAMS, "bfloat16"), losses.mixed(adapters, "bfloat16"), 0.7)
        return jnp.sum(model.hidden_states(params, TOKENS, CONFIG).astype(jnp.float32) ** 2)

    exact = jax.jit(jax.grad(lambda x: jnp.sum(model.hidden_states(lora.attach(PARAMS, x, 0.7), TOKENS, CONFIG) ** 2)))
    gradient, expected = jax.jit(jax.grad(loss))(random_adapters()), exact(random_adapters())
    assert {x.dtype.name for x in jax.tree.leaves(gradient)} == {"float32"}
    scale = max(float(np.abs(y).max()) for y in jax.tree.leaves(expected))
    assert_trees_close(gradient, expected, atol=0.1 * scale)
