"""The LM head with its gradient in the forward pass, against automatic differentiation without chunks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import one_device_train

from astro_jax.llama import mixed_precision as mp
from astro_jax.mesh import make_mesh, train_sharding
from astro_jax.train.linear_cross_entropy import sum_nll

B, S, D, V = 8, 6, 16, 24
RNG = np.random.default_rng(0)
X, HEAD = (jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in ((B, S, D), (D, V)))
TARGETS = RNG.integers(0, V, (B, S))
WEIGHTS = jnp.asarray(RNG.random((B, S)) * (RNG.random((B, S)) < 0.7), jnp.float32)


def plain(head, x):
    logprobs = jax.nn.log_softmax(x @ head)
    return 3 * -jnp.sum(WEIGHTS * jnp.take_along_axis(logprobs, TARGETS[..., None], axis=-1)[..., 0])


@functools.cache
def expected():
    """The loss, and its gradients by the head and by x. The factor 3 shows that the gradient scales."""
    return jax.value_and_grad(plain, argnums=(0, 1))(HEAD, X)


def assert_close(actual, desired, rtol):
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(desired), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * np.abs(y).max())


@pytest.mark.parametrize(
    "sizes, n_chunks, tied",
    [
        ({}, 1, False), ({}, 5, True), ({"fsdp": 8}, 2, False), ({"tp": 8}, 5, True),
        ({"data": 2, "fsdp": 2, "tp": 2}, 3, True), ({"data": 2, "fsdp": 2, "tp": 2}, 1, False),
    ],
)  # fmt: skip
def test_loss_and_gradients_equal_those_of_automatic_differentiation(sizes, n_chunks, tied):
    axes = ("vocab", "embed") if tied else ("embed", "vocab")
    sharding = train_sharding(make_mesh(**sizes))

    def loss(head, x):
        return 3 * sum_nll(head.T if tied else head, axes, x, TARGETS, WEIGHTS, n_chunks, sharding)

    assert_close(jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(HEAD, X), expected(), 1e-5)


def test_gradient_of_a_bfloat16_head_is_float32():
    def loss(head, x):
        return 3 * sum_nll(mp.mixed(head, "bfloat16"), ("embed", "vocab"), x, TARGETS, WEIGHTS, 4, None)

    value, (head, x) = jax.value_and_grad(loss, argnums=(0, 1))(HEAD, X.astype("bfloat16"))
    assert head.dtype == jnp.float32 and x.dtype == jnp.bfloat16
    assert_close((value, (head, x.astype("float32"))), expected(), 0.03)


def test_loss_without_a_gradient_computes_none():
    def matmuls(function):
        return str(jax.make_jaxpr(function)(HEAD, X)).count("dot_general")

    def loss(head, x):
        return 3 * sum_nll(head, ("embed", "vocab"), x, TARGETS, WEIGHTS, 4, one_device_train())

    assert matmuls(loss) == 1 and matmuls(jax.grad(loss)) == 3
    assert_close(jax.jit(loss)(HEAD, X), expected()[0], 1e-5)
