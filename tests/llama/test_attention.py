"""The attention of whole sequences: splash attention, in interpret mode, against plain XLA; which of them is taken."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_close, tiny_config, tiny_params

from astro_jax import cli
from astro_jax import config as cfg
from astro_jax.errors import AstroError
from astro_jax.llama import attention
from astro_jax.mesh import Sharding, decode_sharding, make_mesh, train_sharding
from astro_jax.sampler import decode
from astro_jax.sampler.cache import Shape
from astro_jax.train import grpo, sft
from astro_jax.train.losses import Batch, RolloutBatch


@pytest.fixture
def on_tpu(monkeypatch):
    """The devices say that they are TPUs."""
    monkeypatch.setattr(Sharding, "platform", "tpu")


@pytest.fixture
def interpreted(on_tpu, monkeypatch):
    """Splash attention runs without a TPU; each call of it, as (q's shape, k's shape)."""
    called, splash = [], attention.splash

    def call(q, k, v, segments, sharding, **how):
        called.append((q.shape, k.shape))
        return splash(q, k, v, segments, sharding, interpret=True, **how)

    monkeypatch.setattr(attention, "splash", call)
    return called


def packed(rows, *lengths):
    """Segments and positions int32 [rows, S] of documents of these lengths; the last is padding."""
    names = [*range(1, len(lengths)), 0]
    segments = np.repeat(names, lengths)
    positions = np.concatenate([np.arange(n) for n in lengths])
    return tuple(jnp.asarray(np.tile(x, (rows, 1)), jnp.int32) for x in (segments, positions))


@pytest.mark.parametrize(
    "heads, kv_heads, block, mesh",
    [
        (4, 2, 128, {"data": 2, "tp": 2}),  # two blocks a row, one key-value head a device
        (4, 4, 256, {"fsdp": 2}),
        (6, 2, 128, {}),
    ],
)
def test_splash_attention_equals_xla_and_so_do_its_gradients(heads, kv_heads, block, mesh, monkeypatch):
    monkeypatch.setattr(attention, "BLOCKS", (block,))
    sharding = train_sharding(make_mesh(**mesh))
    rng = np.random.default_rng(0)
    q, out, k, v = (
        jnp.asarray(rng.standard_normal((2, 256, n, 8)), jnp.float32) for n in (heads, heads, kv_heads, kv_heads)
    )
    segments, _ = packed(2, 50, 130, 56, 20)

    def both(attend):
        value, pull = jax.vjp(jax.jit(lambda q, k, v: attend(q, k, v, segments)), q, k, v)
        return value, *pull(out)

    splash = functools.partial(attention.splash, sharding=sharding, interpret=True)
    assert_trees_close(both(splash), both(attention.xla), atol=1e-5, rtol=1e-5)


CONFIG = tiny_config(n_layers=1, head_dim=64)


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_training_by_splash_attention_has_the_loss_and_gradient_of_xla(stage, interpreted):
    rng = np.random.default_rng(0)
    segments, positions = packed(2, 40, 60, 28)
    weights = jnp.asarray((segments > 0) & (positions > 0), jnp.float32)
    batch = Batch(jnp.asarray(rng.integers(0, 20, (2, 128)), jnp.int32), segments, positions, weights)
    if stage == "grpo":
        some = jnp.asarray(rng.standard_normal((2, 128)), jnp.float32)
        batch = RolloutBatch(batch.replace(loss_weights=weights / weights.sum()), advantages=some, old_logprobs=some - 3)
    module, c = (sft, cfg.Sft(remat_policy="full")) if stage == "sft" else (grpo, cfg.Grpo(remat_policy="full"))

    def run(kernel):
        loss = module.make_loss(c, CONFIG, train_sharding(make_mesh(tp=2), kernel))
        return jax.jit(jax.value_and_grad(loss, has_aux=True))(tiny_params(CONFIG), batch)

    xla = run("xla")
    assert interpreted == []
    splash = run("auto")
    assert set(interpreted) == {((2, 128, 4, 64), (2, 128, 2, 64))}  # keys and values are not repeated
    assert_trees_close(splash, xla, atol=1e-5, rtol=1e-5)


def test_prefill_by_splash_attention_stores_what_xla_does(interpreted):
    """Two chunks of two prefixes: the second chunk also sees the first, which is in the store."""
    config = tiny_config(head_dim=64)
    params, tokens = tiny_params(config), jax.random.randint(jax.random.key(0), (2, 256), 0, 20)
    shape = Shape(rows=2, lane=1, prefix_blocks=2, suffix_blocks=1, block=128, devices=1)

    def run(kernel):
        sharding = decode_sharding(make_mesh(tp=2), kernel)
        store = decode.make_allocate(config, sharding, jnp.dtype("float32"))[0](shape)
        for block in range(2):
            chunk, at = tokens[:, block * 128 :][:, :128], jnp.full(2, block)
            store, sound = decode.make_prefill(config, sharding)(params, store, chunk, at, jnp.arange(2))
            assert sound.all()
        return jax.device_get(store)

    xla = run("xla")
    assert interpreted == []
    assert_trees_close(run("auto"), xla, atol=1e-5, rtol=1e-5)
    assert set(interpreted) == {((2, 128, 4, 64), (2, 128, 2, 64))}


# ---- Which is taken


def chosen(asked="auto", length=8192, head_dim=128):
    return attention.kernel(train_sharding(make_mesh(), asked), length, head_dim)


def test_a_cpu_has_xla_attention():
    assert chosen() == chosen("xla") == "xla"


def test_a_tpu_has_splash_attention_where_shapes_allow_it(on_tpu):
    assert chosen() == chosen("splash") == chosen(length=1152, head_dim=64) == "splash"
    assert chosen("xla") == chosen(length=8000) == chosen(head_dim=80) == "xla"


@pytest.mark.parametrize(
    "shape, says",
    [({"length": 8000}, "multiple of 128 tokens, and there are some of 8000"), ({"head_dim": 80}, "have 80")],
)
def test_splash_attention_where_it_cannot_be_is_an_error(shape, says, on_tpu):
    with pytest.raises(AstroError, match=f"attention=splash .*{says}; set attention=auto or xla"):
        chosen("splash", **shape)


def test_splash_attention_on_a_cpu_is_one_line_before_anything_is_run(tmp_path, capsys):
    out = tmp_path / "run"
    assert cli.main(["run", "configs/quickstart.yaml", "attention=splash", f"out={out}"]) == 2
    err = capsys.readouterr().err
    assert "attention=splash needs TPUs, and the devices are of cpu" in err and err.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize("length, block", [(8192, 1024), (1536, 512), (1280, 256), (1152, 128), (128, 128)])
def test_splash_attention_takes_the_largest_block_that_divides_a_row(length, block):
    assert attention.block_size(length) == block


def test_splash_attention_leaves_out_the_blocks_above_the_diagonal():
    # 8192 tokens are 8 blocks a side: of 64 squares 36 are computed; XLA computes every score
    assert attention.computed("splash", 8192) == 36 / 64
    assert attention.computed("splash", 1024) == attention.computed("xla", 8192) == 1
