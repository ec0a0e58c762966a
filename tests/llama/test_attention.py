"""Attention over whole sequences: splash attention in interpret mode against plain XLA, and the choice of one."""

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
from astro_jax.sampler import Engine, Request, SamplingParams, model_runner
from astro_jax.train import grpo, sft
from astro_jax.train.losses import Batch
from astro_jax.train.policy_loss import RolloutBatch


@pytest.fixture
def on_tpu(monkeypatch):
    """The platform of every mesh reads "tpu"."""
    monkeypatch.setattr(Sharding, "platform", "tpu")


@pytest.fixture
def interpreted(on_tpu, monkeypatch):
    """Splash attention runs without a TPU; a list with (shape of q, shape of k) of each call."""
    shapes = []

    def interpret(splash):
        def call(q, k, v, segment_ids, sharding):
            shapes.append((q.shape, k.shape))
            return splash(q, k, v, segment_ids, sharding, interpret=True)

        return call

    for splash in (attention.splash, attention.splash_with_logsumexp):
        monkeypatch.setattr(attention, splash.__name__, interpret(splash))
    return shapes


def packed(rows, *lengths):
    """(segment_ids, positions), int32 [rows, S], of documents with these lengths; the last length is padding."""
    segment_ids = np.repeat([*range(1, len(lengths)), 0], lengths)
    positions = np.concatenate([np.arange(n) for n in lengths])
    return tuple(jnp.asarray(np.tile(x, (rows, 1)), jnp.int32) for x in (segment_ids, positions))


@pytest.mark.parametrize(
    "heads, kv_heads, block, mesh",
    [
        (4, 2, 128, {"data": 2, "tp": 2}),  # two blocks a row, one key-value head a device
        (4, 4, 256, {"fsdp": 2}),
        (6, 2, 128, {}),
    ],
)
def test_splash_attention_and_its_gradients_equal_xla(heads, kv_heads, block, mesh, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK_SIZES", (block,))
    sharding = train_sharding(make_mesh(**mesh))
    rng = np.random.default_rng(0)
    q, out, k, v = (
        jnp.asarray(rng.standard_normal((2, 256, n, 8)), jnp.float32) for n in (heads, heads, kv_heads, kv_heads)
    )
    segment_ids, _ = packed(2, 50, 130, 56, 20)

    def both(attend):
        value, pull = jax.vjp(jax.jit(lambda q, k, v: attend(q, k, v, segment_ids)), q, k, v)
        return value, *pull(out)

    splash = functools.partial(attention.splash, sharding=sharding, interpret=True)
    assert_trees_close(both(splash), both(attention.xla), atol=1e-5, rtol=1e-5)


CONFIG = tiny_config(n_layers=1, head_dim=64)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_loss_and_gradient_with_splash_attention_equal_xla(stage, interpreted):
    rng = np.random.default_rng(0)
    segments, positions = packed(2, 40, 60, 28)
    weights = jnp.asarray((segments > 0) & (positions > 0), jnp.float32)
    batch = Batch(jnp.asarray(rng.integers(0, 20, (2, 128)), jnp.int32), segments, positions, weights)
    if stage == "grpo":
        advantages = jnp.asarray(rng.standard_normal((2, 128)), jnp.float32)
        batch = RolloutBatch(
            batch.replace(loss_weights=weights / weights.sum()), advantages=advantages, sampler_logprobs=advantages - 3
        )
    module, c = (sft, cfg.Sft(remat_policy="full")) if stage == "sft" else (grpo, cfg.Grpo(remat_policy="full"))

    def run(kernel):
        loss = module.make_loss(c, CONFIG, train_sharding(make_mesh(tp=2), kernel))
        return jax.jit(jax.value_and_grad(loss, has_aux=True))(tiny_params(CONFIG), batch)

    xla = run("xla")
    assert interpreted == []
    splash = run("auto")
    assert set(interpreted) == {((2, 128, 4, 64), (2, 128, 2, 64))}  # keys and values are not repeated
    assert_trees_close(splash, xla, atol=1e-5, rtol=1e-5)


def test_prefill_with_splash_attention_equals_xla(interpreted, monkeypatch):
    """Prompts of three blocks: the later blocks also attend to the earlier blocks, which are in the cache."""
    monkeypatch.setattr(model_runner, "PREFILL_BLOCKS", (1,))  # one block a call
    config = tiny_config(n_layers=1, head_dim=64, max_positions=512)
    prompts = np.random.default_rng(0).integers(0, 20, (2, 300)).tolist()
    requests = [Request(tuple(prompt), 1, (i,)) for i, prompt in enumerate(prompts)]

    def generate(kernel):
        engine = Engine(config, decode_sharding(make_mesh(tp=2), kernel), 0, max_num_seqs=2, block_size=128)
        sampling_params = SamplingParams(max_tokens=2, temperature=0.0, stop_token_ids=())
        completions = engine.generate(tiny_params(config), requests, sampling_params)
        return [(c.token_ids, c.logprobs) for (c,) in completions]

    xla = generate("xla")
    assert interpreted == []
    assert_trees_close(generate("auto"), xla, atol=1e-5, rtol=1e-5)
    # keys and values of the 2 key-value heads are not repeated for the 4 query heads
    assert {(q[1:], k[1:]) for q, k in interpreted} == {((128, 4, 64), (128, 2, 64))}


def test_splash_attention_returns_the_logsumexp_of_the_scores(monkeypatch):
    monkeypatch.setattr(attention, "BLOCK_SIZES", (128,))
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((2, 128, n, 8)), jnp.float32) for n in (4, 2, 2))
    segment_ids, _ = packed(2, 50, 70, 8)
    out, logsumexp = attention.splash_with_logsumexp(q, k, v, segment_ids, decode_sharding(make_mesh()), interpret=True)
    scores = np.einsum("bsnh,btnh->bsnt", q, np.repeat(k, 2, axis=2)) / np.sqrt(8)
    allowed = np.asarray(segment_ids[:, :, None] == segment_ids[:, None, :]) & np.tri(128, dtype=bool)
    exponentials = np.where(allowed[:, :, None], np.exp(scores), 0)
    np.testing.assert_allclose(logsumexp, np.log(exponentials.sum(-1)), atol=1e-5)
    np.testing.assert_allclose(out, attention.xla(q, k, v, segment_ids), atol=1e-5)


# ---- cuDNN's attention, which runs on GPUs alone


@pytest.fixture
def on_gpu(monkeypatch):
    """Every mesh is one of GPUs, and JAX's own implementation stands in for cuDNN's."""
    monkeypatch.setattr(Sharding, "platform", "gpu")
    monkeypatch.setattr(Sharding, "compute_capability", 8.0)
    monkeypatch.setattr(attention, "IMPLEMENTATION", "xla")


@pytest.mark.parametrize("heads, kv_heads, mesh", [(4, 2, {"data": 2, "tp": 2}), (6, 2, {})])
def test_cudnn_attention_gets_segments_heads_and_scale_as_xla_does(heads, kv_heads, mesh, on_gpu):
    sharding = train_sharding(make_mesh(**mesh), "cudnn")
    rng = np.random.default_rng(0)
    q, out, k, v = (
        jnp.asarray(rng.standard_normal((2, 64, n, 16)), jnp.bfloat16) for n in (heads, heads, kv_heads, kv_heads)
    )
    segment_ids, _ = packed(2, 20, 30, 14)

    def both(sharding):
        value, pull = jax.vjp(jax.jit(lambda q, k, v: attention.attend(q, k, v, segment_ids, sharding)), q, k, v)
        return [x.astype(jnp.float32) for x in (value, *pull(out))]

    assert_trees_close(both(sharding), both(None), atol=0.06, rtol=0.06)


def test_cudnn_attention_and_its_gradient_lower_for_cuda(on_gpu, monkeypatch):
    """JAX checks shapes and types and writes cuDNN's calls. Its questions to the card are answered here."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(attention, "IMPLEMENTATION", "cudnn")
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: capability == "8.0")
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda capability: False)
    sharding = train_sharding(make_mesh(), "cudnn")
    q, k = (jax.ShapeDtypeStruct((2, 64, n, 64), jnp.bfloat16) for n in (4, 2))
    segment_ids = jax.ShapeDtypeStruct((2, 64), jnp.int32)

    def loss(q, k, v, segment_ids):
        return attention.attend(q, k, v, segment_ids, sharding).astype(jnp.float32).sum()

    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(q, k, k, segment_ids)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmhaScaleBiasSoftmax(" in text and "__cudnn$fmhaScaleBiasSoftmaxBackward(" in text


# ---- The choice of the kernel


def chosen(setting="auto", length=8192, head_dim=128, dtype=jnp.bfloat16):
    return attention.choose_kernel(train_sharding(make_mesh(), setting), length, head_dim, dtype)


def test_cpu_uses_xla():
    assert chosen() == chosen("xla") == "xla"


def test_tpu_uses_splash_attention_for_supported_shapes(on_tpu):
    assert chosen() == chosen("splash") == chosen(length=1152, head_dim=64) == "splash"
    assert chosen("xla") == chosen(length=8000) == chosen(head_dim=80) == "xla"


@pytest.mark.parametrize(
    "shape, message",
    [
        ({"length": 8000}, "multiple of 128, but a length is 8000"),
        ({"head_dim": 80}, "multiple of 64, but the model's is 80"),
    ],
)
def test_splash_attention_for_unsupported_shapes_is_an_error(shape, message, on_tpu):
    with pytest.raises(AstroError, match=f"attention=splash .*{message}; set attention=auto or xla"):
        chosen("splash", **shape)


def test_gpu_uses_cudnn_for_supported_shapes(on_gpu):
    assert chosen() == chosen("cudnn") == chosen(length=80, head_dim=40) == "cudnn"
    assert chosen("xla") == chosen(length=81) == chosen(head_dim=256) == chosen(dtype=jnp.float32) == "xla"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"length": 81}, "an even sequence length, but a length is 81"),
        ({"head_dim": 256}, "up to 128, but the model's is 256"),
        ({"dtype": jnp.float32}, "bfloat16, but computes in float32"),
    ],
)
def test_cudnn_attention_for_what_it_lacks_is_an_error(changes, message, on_gpu):
    with pytest.raises(AstroError, match=f"attention=cudnn .*{message}; set attention=auto or xla"):
        chosen("cudnn", **changes)


def test_old_gpu_uses_xla(on_gpu, monkeypatch):
    monkeypatch.setattr(Sharding, "compute_capability", 7.5)
    assert chosen() == "xla"
    with pytest.raises(AstroError, match=r"compute capability 8\.0 or higher, but the GPU's is 7\.5"):
        chosen("cudnn")


def test_compute_capability_of_a_cpu_is_0():
    assert train_sharding(make_mesh()).compute_capability == 0


def test_splash_attention_on_a_cpu_is_an_error_before_the_run_starts(tmp_path, capsys):
    out = tmp_path / "run"
    assert cli.main(["run", "configs/quickstart.yaml", "attention=splash", f"out={out}"]) == 2
    err = capsys.readouterr().err
    assert "attention=splash needs TPUs, but the platform is cpu" in err and err.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize("length, block", [(8192, 1024), (1536, 512), (1280, 256), (1152, 128), (128, 128)])
def test_splash_attention_uses_the_largest_block_size_that_divides_the_length(length, block):
    assert attention.block_size(length) == block


def test_computed_share_has_no_blocks_above_the_diagonal():
    # 8192 tokens make 8 x 8 blocks, of which 36 are computed. Plain XLA has 4 groups for 1024 tokens: 10 of 16 blocks.
    assert attention.computed_share("splash", 8192) == attention.computed_share("xla", 8192) == 36 / 64
    assert attention.computed_share("splash", 1024) == attention.computed_share("xla", 300) == 1
    assert attention.computed_share("xla", 1024) == 10 / 16
    groups = {256: 1, 512: 2, 640: 1, 768: 2, 1024: 4, 1536: 4, 2048: 8, 4096: 8}
    assert {length: attention.query_groups(length) for length in groups} == groups
