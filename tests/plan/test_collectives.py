"""Counts of collectives in compiled programs; training moves no other arrays than its sharding requires."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import pytest
from helpers import assert_trees_close, tiny_config, tiny_params, unexpected_collectives
from jax.sharding import PartitionSpec as P

from astro_jax import config as cfg
from astro_jax.llama import model
from astro_jax.llama.params import param_specs
from astro_jax.mesh import make_mesh, train_sharding
from astro_jax.plan import collectives
from astro_jax.plan.programs import Plan
from astro_jax.train import losses

# All sizes differ, so that a shape identifies its tensor.
LENGTH, ROWS = 176, 2
CONFIG = tiny_config(n_layers=3, d_model=24, d_ff=40, n_heads=16, n_kv_heads=8, head_dim=6, vocab_size=56)


@pytest.fixture
def loops(monkeypatch):
    """Layers in a loop and the LM head in chunks, as in large models."""
    monkeypatch.setattr(model, "UNROLLED_LAYERS", 0)
    monkeypatch.setattr(losses, "LIVE_LOGITS", 2 * 44 * 28)  # of 2 x 176 tokens with 28 logits each on a device


@pytest.mark.parametrize("sizes", [{"fsdp": 4, "tp": 2}, {"data": 2, "fsdp": 2, "tp": 2}])
def test_training_step_gathers_parameters_once_a_pass_and_activations_over_tp_only(loops, sizes):
    mesh = make_mesh(**sizes)
    rows = ROWS * 8 // mesh.shape["tp"]
    c = cfg.Config(sft=cfg.Sft(batch_size=rows, max_length=LENGTH, remat_policy="full"))
    text = Plan(c, CONFIG, mesh).sft_step().compile().as_text()
    assert unexpected_collectives(text, mesh, ROWS, LENGTH) == []
    stats = collectives.count(text)
    assert set(stats) <= {"all-gather", "all-reduce", "reduce-scatter"}

    def gathered(spec):  # elements on one device of a tensor that is gathered over fsdp
        n = math.prod(spec.shape)
        return n // (mesh.shape["tp"] if {"heads", "kv_heads", "mlp", "vocab"} & set(spec.axes) else 1)

    # Parameters: nine tensors a layer in both passes; the embedding, the last norm and the LM head once.
    # Activations, six a layer: the inputs of attention and of the MLP (forward pass, and again with remat), and the
    # gradients of their outputs. Two more: the input of the LM head, and the gradient of the embedded tokens.
    p = param_specs(CONFIG)
    layers = sum(map(gathered, jax.tree.leaves(p.layers)))  # leaves are stacked over all layers
    others = sum(map(gathered, (p.embed, p.final_norm, p.lm_head)))
    activations = ROWS * LENGTH * CONFIG.d_model * (6 * CONFIG.n_layers + 2)
    assert stats["all-gather"].calls == CONFIG.n_layers * (2 * 9 + 6) + 3 + 2
    assert stats["all-gather"].bytes == 4 * (2 * layers + others + activations)


@pytest.mark.slow
@pytest.mark.parametrize("tied, sizes", [(False, {"fsdp": 4, "tp": 2}), (True, {"data": 2, "tp": 4})])
def test_loss_and_gradient_do_not_depend_on_the_mesh(loops, tied, sizes):
    config = dataclasses.replace(CONFIG, n_layers=1, tie_embeddings=tied)
    tokens = jax.random.randint(jax.random.key(0), (8, LENGTH), 0, config.vocab_size)
    segments = jnp.ones_like(tokens).at[:, 70:].set(2).at[:, 160:].set(0)
    positions = jnp.broadcast_to(jnp.arange(LENGTH), (8, LENGTH))
    batch = losses.Batch(tokens, segments, positions, (segments > 0).astype(jnp.float32))

    @functools.partial(jax.jit, static_argnums=1)
    def run(params, sharding):
        def loss(params):
            logp, entropy = losses.token_logprobs(params, batch, config, sharding)
            return losses.mean_nll(params, batch, config, sharding), (logp * batch.loss_weights, entropy)

        return jax.value_and_grad(loss, has_aux=True)(params)

    params = tiny_params(config)
    assert_trees_close(run(params, train_sharding(make_mesh(**sizes))), run(params, None), rtol=1e-4, atol=1e-5)


def test_unexpected_collectives_finds_those_that_no_sharding_requires():
    mesh = make_mesh(fsdp=4, tp=2)
    sharding = train_sharding(mesh)
    x = jax.ShapeDtypeStruct((8, LENGTH, 24), jnp.float32, sharding=sharding.named("batch", "seq", None))

    def unexpected(*axes):
        text = jax.jit(lambda x: sharding.constrain(x * 2, *axes)).lower(x).compile().as_text()
        return unexpected_collectives(text, mesh, 2, LENGTH)

    assert unexpected("batch", None, None) == []  # an all-gather over tp
    assert unexpected(None, "seq", None)  # an all-gather over fsdp
    assert unexpected("batch", None, "heads")  # an all-to-all from tokens to heads


def test_collective_in_nested_loops_counts_once_for_each_trip():
    mesh = make_mesh(tp=8)

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=P(None, "tp"), out_specs=P(None, "tp"))
    def program(x):  # [4, 2] on each device
        def outer(x, _):
            y = jax.lax.scan(lambda y, _: (jnp.sin(y) + jax.lax.psum(y, "tp"), None), x, length=3)[0]
            return y + jax.lax.all_gather(y, "tp").sum(0), None

        return jax.lax.scan(outer, x, length=5)[0]

    stats = collectives.count(program.lower(jnp.ones((4, 16))).compile().as_text())
    assert stats["all-reduce"] == collectives.CollectiveStats(calls=15, bytes=15 * 4 * 2 * 4)
    assert stats["all-gather"] == collectives.CollectiveStats(calls=5, bytes=5 * 8 * 4 * 2 * 4)
    assert set(stats) == {"all-reduce", "all-gather"}


def test_loop_without_a_constant_limit_has_the_default_trip_count():
    mesh = make_mesh(tp=8)

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P("tp"), P()), out_specs=P("tp"))
    def program(x, n):
        return jax.lax.fori_loop(0, n, lambda _, x: jnp.sin(x) + jax.lax.psum(x, "tp"), x)

    text = program.lower(jnp.ones(8), jnp.int32(3)).compile().as_text()
    assert collectives.count(text, default_trip_count=7)["all-reduce"].calls == 7


@pytest.mark.parametrize(
    "operation, kind, size",
    [("(f32[8]{0}, f32[4,2]{1,0}) all-reduce-start(%a, %b)", "all-reduce", 32 + 32),
     ("f32[8]{0} all-reduce-start(%a)", "all-reduce", 32),
     ("(f32[8]{0}, f32[64]{0}) all-gather-start(%a)", "all-gather", 256),
     ("((f32[8]{0}, bf16[2]{0}), (f32[64]{0}, bf16[16]{0})) all-gather-start(%a, %b)", "all-gather", 256 + 32),
     ("(f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%a)", "collective-permute", 32)],
)  # fmt: skip
def test_an_asynchronous_collective_of_several_arrays_counts_all_its_results(operation, kind, size):
    text = f"ENTRY %main (p: f32[8]) -> f32[8] {{\n  %x = {operation}, channel_id=2\n}}"
    assert collectives.count(text) == {kind: collectives.CollectiveStats(calls=1, bytes=size)}
