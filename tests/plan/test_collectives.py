"""What moves between devices in training: what its sharding calls for, and nothing else."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import pytest
from helpers import assert_trees_close, tiny_config, tiny_params, unexpected_collectives

from astro_jax import config as cfg
from astro_jax.llama import model
from astro_jax.llama.params import param_specs
from astro_jax.mesh import make_mesh, train_sharding
from astro_jax.plan import collectives
from astro_jax.plan.programs import Plan
from astro_jax.train import losses

# Sizes that tell a tensor by its shape.
LENGTH, ROWS = 176, 2
CONFIG = tiny_config(n_layers=3, d_model=24, d_ff=40, n_heads=16, n_kv_heads=8, head_dim=6, vocab_size=56)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Layers in a loop and the LM head in chunks, as in large models."""
    monkeypatch.setattr(model, "UNROLLED_LAYERS", 0)
    monkeypatch.setattr(losses, "LOGITS_CHUNK", 44)


@pytest.mark.parametrize("sizes", [{"fsdp": 4, "tp": 2}, {"fsdp": 2, "tp": 4}, {"data": 2, "fsdp": 2, "tp": 2}])
def test_a_training_step_gathers_parameters_once_a_pass_and_activations_over_tp_alone(sizes):
    mesh = make_mesh(**sizes)
    rows = ROWS * 8 // mesh.shape["tp"]
    c = cfg.Config(sft=cfg.Sft(batch_size=rows, max_length=LENGTH, remat_policy="full"))
    text = Plan(c, CONFIG, mesh).sft_step().compile().as_text()
    assert unexpected_collectives(text, mesh, ROWS, LENGTH) == []
    found = collectives.count(text)
    assert set(found) <= {"all-gather", "all-reduce", "reduce-scatter"}

    def gathered(spec):  # elements of what a device holds of a tensor when it is gathered over fsdp
        n = math.prod(spec.shape)
        return n // (mesh.shape["tp"] if {"heads", "kv_heads", "mlp", "vocab"} & set(spec.axes) else 1)

    # Parameters: nine tensors of a layer, forward and backward; table, last norm and head once. Activations: before
    # attention and the MLP, forward and again, and the gradients of what they give; before the head, and the gradient
    # of the tokens' rows of the table.
    p = param_specs(CONFIG)
    layers = sum(map(gathered, jax.tree.leaves(p.layers)))  # of all layers
    others = sum(map(gathered, (p.embed, p.final_norm, p.lm_head)))
    activations = ROWS * LENGTH * CONFIG.d_model * (6 * CONFIG.n_layers + 2)
    assert found["all-gather"].calls == CONFIG.n_layers * (2 * 9 + 6) + 3 + 2
    assert found["all-gather"].bytes == 4 * (2 * layers + others + activations)


@pytest.mark.parametrize("tied, sizes", [(False, {"fsdp": 4, "tp": 2}), (True, {"data": 2, "tp": 4})])
def test_the_loss_and_gradient_do_not_depend_on_the_mesh(tied, sizes):
    config = dataclasses.replace(CONFIG, n_layers=1, tie_embeddings=tied)
    tokens = jax.random.randint(jax.random.key(0), (8, LENGTH), 0, config.vocab_size)
    segments = jnp.ones_like(tokens).at[:, 70:].set(2).at[:, 160:].set(0)
    positions = jnp.tile(jnp.arange(LENGTH), (8, 1))
    batch = losses.Batch(tokens, segments, positions, (segments > 0).astype(jnp.float32))

    @functools.partial(jax.jit, static_argnums=1)
    def run(params, sharding):
        def loss(params):
            logp, entropy = losses.token_logprobs(params, batch, config, sharding)
            return losses.cross_entropy(logp, batch.loss_weights), entropy

        return jax.value_and_grad(loss, has_aux=True)(params)

    params = tiny_params(config)
    assert_trees_close(run(params, train_sharding(make_mesh(**sizes))), run(params, None), rtol=1e-4, atol=1e-5)


def test_what_the_sharding_does_not_call_for_is_found():
    mesh = make_mesh(fsdp=4, tp=2)
    sharding = train_sharding(mesh)
    here = jax.ShapeDtypeStruct((8, LENGTH, 24), jnp.float32, sharding=sharding.named("batch", "seq", None))

    def moved(*axes):
        return unexpected_collectives(
            jax.jit(lambda x: sharding.constrain(x * 2, *axes)).lower(here).compile().as_text(), mesh, 2, LENGTH
        )

    assert moved("batch", None, None) == []  # over tp
    assert moved(None, "seq", None) and moved("batch", None, "heads")  # over fsdp; from tokens to heads
