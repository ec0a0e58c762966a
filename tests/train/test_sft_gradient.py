"""Loss and gradient of SFT: packed, accumulated, in chunks and on a mesh as one document at a time on one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_config, tiny_params

from astro_jax import config as cfg
from astro_jax import llama
from astro_jax.mesh import make_mesh, train_sharding
from astro_jax.train import data, losses, sft

CONFIG = tiny_config(n_layers=1, vocab_size=24, n_heads=8, n_kv_heads=8)
PARAMS = tiny_params(CONFIG)
ROWS, LENGTH = 16, 12


@functools.cache
def batch():
    """16 packed rows. Some tokens have no weight, so the rows differ in weight."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(2, LENGTH + 1, 22)
    documents = [data.make_document(rng.integers(1, 24, n), i, rng.random(n) < 0.7) for i, n in enumerate(sizes)]
    ((packed, indices),) = data.packed_batches(documents, ROWS, LENGTH, 0, 1, "bfd")
    assert sorted(indices) == list(range(22)) and len({*packed.loss_weights.sum(axis=1)}) > 3
    return packed, documents


@functools.cache
def expected():
    """From the logits of one document a row, by automatic differentiation, on one device."""
    documents = batch()[1]
    rows = np.stack([np.pad(d.tokens, (0, LENGTH - len(d.tokens))) for d in documents])
    weights = np.stack([np.pad(d.loss_weights, (0, LENGTH - len(d.loss_weights))) for d in documents])

    def loss(params):
        logprobs = jax.nn.log_softmax(llama.forward(params, rows, CONFIG))[:, :-1]
        nll = -jnp.take_along_axis(logprobs, rows[:, 1:, None], axis=2)[..., 0]
        return jnp.sum(nll * weights[:, 1:]) / weights.sum()

    return jax.device_get(jax.jit(jax.value_and_grad(loss))(PARAMS))


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes, micro_batch_size, chunks",
    [
        ({}, None, 5), ({}, 4, 1), ({}, 2, 3), ({"fsdp": 8}, None, 1), ({"fsdp": 8}, 8, 3), ({"tp": 8}, 4, 1),
        ({"tp": 8}, None, 5), ({"data": 2, "tp": 4}, 2, 2),
    ],
)  # fmt: skip
def test_loss_and_gradient_equal_those_of_single_documents(sizes, micro_batch_size, chunks, monkeypatch):
    sharding = train_sharding(make_mesh(**sizes))
    tokens = (micro_batch_size or ROWS) * LENGTH // sharding.batch_size
    monkeypatch.setattr(losses, "LIVE_LOGITS", -(-tokens * 24 // (sharding.mesh.shape["tp"] * chunks)))
    c = cfg.Sft(batch_size=ROWS, micro_batch_size=micro_batch_size, max_length=LENGTH)
    (value, metrics), gradient = jax.jit(sft.make_gradient(c, CONFIG, sharding))(PARAMS, batch()[0])
    assert value == metrics["loss"] == pytest.approx(float(expected()[0]), rel=1e-5)
    for x, y in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected()[1]), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5 * np.abs(y).max())
