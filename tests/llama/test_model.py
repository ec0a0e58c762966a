"""The model against NumPy, against golden logits of transformers, and against transformers itself where torch is."""

import functools
import importlib.util
import sys
import typing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from etils import epath
from helpers import LLAMA3, assert_trees_close, countdown_tokenizer, tiny_config, tiny_params

from astro_jax import config as cfg
from astro_jax import llama
from astro_jax.llama import attention, hf, model
from astro_jax.train.losses import cast

GOLDEN = Path(__file__).parents[1] / "golden" / "llama.npz"
GOLDEN_NAMES = [
    "every-head-its-own", "grouped-llama3", "one-shared-tied", "wide-heads", "llama-2", "llama-3", "llama-3.1",
    "llama-3.2-tied", "mistral",
]  # fmt: skip
# Every grouping of heads, both RoPEs, tied and untied, two depths.
VARIANTS = {
    "one-query-head-per-key-head": {"n_kv_heads": 4, "rope_scaling": LLAMA3, "rope_theta": 500.0},
    "grouped-tied-three-layers": {"n_kv_heads": 2, "tie_embeddings": True, "n_layers": 3, "norm_eps": 1e-2},
    "one-key-head": {"n_kv_heads": 1, "head_dim": 8},
}
CONFIG = tiny_config()
PARAMS = tiny_params(CONFIG)
SHALLOW = tiny_config(n_layers=1)
SHALLOW_PARAMS = tiny_params(SHALLOW)
forward = jax.jit(llama.forward, static_argnums=2)


def random_tokens(*shape, seed=0, vocab=20):
    return jnp.asarray(np.random.default_rng(seed).integers(0, vocab, shape), jnp.int32)


# ---- An independent forward pass in float64: one token and one head at a time


def numpy_angles(config):
    """Angle per position of each pair of elements, by wavelengths as in Llama 3.1's reference code."""
    s, frequencies = config.rope_scaling, []
    for i in range(config.head_dim // 2):
        freq = config.rope_theta ** (-2 * i / config.head_dim)
        wavelength = 2 * np.pi / freq
        if s and wavelength > s.original_max_positions / s.low_freq_factor:
            freq /= s.factor
        elif s and wavelength > s.original_max_positions / s.high_freq_factor:
            ramp = s.original_max_positions / wavelength - s.low_freq_factor
            ramp /= s.high_freq_factor - s.low_freq_factor
            freq = (1 - ramp) * freq / s.factor + ramp * freq
        frequencies.append(freq)
    return np.array(frequencies)


def numpy_forward(params, tokens, config):
    """Logits [S, V] of tokens [S]."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(x, weight):
        return x / np.sqrt(np.mean(x**2) + config.norm_eps) * weight

    def rotate(x, position):
        half = config.head_dim // 2
        z = (x[:half] + 1j * x[half:]) * np.exp(1j * position * numpy_angles(config))
        return np.concatenate([z.real, z.imag])

    xs = [p.embed[t] for t in tokens]
    for i in range(config.n_layers):
        layer = jax.tree.map(lambda x: x[i], p.layers)  # noqa: B023
        ys = [norm(x, layer.attn_norm) for x in xs]
        for head in range(config.n_heads):
            kv = head * config.n_kv_heads // config.n_heads
            qs = [rotate(y @ layer.wq[:, head], t) for t, y in enumerate(ys)]
            ks = [rotate(y @ layer.wk[:, kv], t) for t, y in enumerate(ys)]
            vs = [y @ layer.wv[:, kv] for y in ys]
            for t in range(len(tokens)):
                e = np.exp([qs[t] @ k / np.sqrt(config.head_dim) for k in ks[: t + 1]])
                xs[t] = xs[t] + (e / e.sum()) @ np.array(vs[: t + 1]) @ layer.wo[head]
        for t, x in enumerate(xs):
            y = norm(x, layer.mlp_norm)
            gate = y @ layer.w_gate
            xs[t] = x + (gate / (1 + np.exp(-gate)) * (y @ layer.w_up)) @ layer.w_down
    head = p.embed.T if config.tie_embeddings else p.lm_head
    return np.array([norm(x, p.final_norm) @ head for x in xs])


@pytest.mark.parametrize("name", VARIANTS)
def test_forward_equals_numpy(name):
    config = tiny_config(**VARIANTS[name])
    params = tiny_params(config)
    tokens = random_tokens(2, 24)  # RoPE scaling starts after 16 positions
    expected = [numpy_forward(params, row, config) for row in np.asarray(tokens)]
    np.testing.assert_allclose(forward(params, tokens, config), expected, atol=1e-4)


# ---- transformers


def read_transformers(folder, config, tensors):
    """(config, params) of a folder with this config.json and these tensors."""
    (folder / "config.json").write_text(config)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return hf.read(epath.Path(folder))


def read_golden(name, folder):
    """(config, params, tokens, positions, logits) of one golden model, read from a Hugging Face folder."""
    data = np.load(GOLDEN)
    prefix = f"{name}/weights/"
    tensors = {key.removeprefix(prefix): data[key].astype(np.float32) for key in data if key.startswith(prefix)}
    config_and_params = read_transformers(folder, str(data[f"{name}/config"]), tensors)
    return *config_and_params, *(data[f"{name}/{array}"] for array in ("tokens", "positions", "logits"))


@functools.partial(jax.jit, static_argnums=3)
def forward_at(params, tokens, positions, config):
    """Logits of tokens at these positions."""
    return model.lm_head(params, model.hidden_states(params, tokens, config, positions=positions))


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_forward_equals_golden_logits_of_transformers(name, tmp_path):
    config, params, tokens, positions, logits = read_golden(name, tmp_path)
    np.testing.assert_allclose(forward_at(params, tokens, positions, config), logits, atol=1e-4)


@pytest.fixture
def without_verification(monkeypatch):
    """Skip the comparison of logits in `hf.write`, which compiles a forward pass; the test compares more."""
    monkeypatch.setattr(hf, "_verify", lambda *_: None)


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_exported_tensors_equal_those_of_transformers_bit_for_bit(name, tmp_path, without_verification):
    config, params, *_ = read_golden(name, tmp_path)
    hf.write(epath.Path(tmp_path / "again"), config, params, countdown_tokenizer(9))
    before, after = (safetensors.numpy.load_file(f / "model.safetensors") for f in (tmp_path, tmp_path / "again"))
    assert before.keys() == after.keys()
    for key, value in before.items():
        np.testing.assert_array_equal(after[key], value, err_msg=key)


def make_llama():
    """The script that made the golden data."""
    pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location("make_llama", GOLDEN.with_name("make_llama.py"))
    maker = sys.modules["make_llama"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    return maker


def check_against_transformers(changes, seed, folder):
    config, tensors, tokens, positions, logits = make_llama().make(changes, seed)
    config, params = read_transformers(folder, config, tensors)
    np.testing.assert_allclose(forward_at(params, tokens, positions, config), logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_forward_equals_transformers(name, tmp_path):
    check_against_transformers(make_llama().VARIANTS[name], 100, tmp_path)


# All pairs of values of (key-value heads, RoPE, tied embeddings): half of the full grid.
GRID = [(k, rope, i % 2 == 0) for i, k in enumerate((8, 4, 2, 1)) for rope in ("llama-2", "llama-3.1")]
GRID += [(k, rope, i % 2 == 1) for i, k in enumerate((8, 4, 2, 1)) for rope in ("llama-3", "llama-3.2")]


@pytest.mark.parametrize("kv_heads, rope, tied", GRID)
def test_forward_equals_transformers_for_every_grouping_and_rope(kv_heads, rope, tied, tmp_path):
    changes = {
        "num_attention_heads": 8, "num_key_value_heads": kv_heads, "rope_parameters": make_llama().ROPES[rope],
        "tie_word_embeddings": tied, "head_dim": 8, "num_hidden_layers": 1,
    }  # fmt: skip
    check_against_transformers(changes, kv_heads, tmp_path)


def test_rope_frequencies_equal_those_of_the_published_code_inside_jit_too():
    # Once XLA rounded the last bit of a frequency differently inside jit: logits differed by 7e-4 at position 24000.
    for theta in (1e4, 5e5, 1e6):
        config = tiny_config(head_dim=64, rope_theta=theta)
        power = np.array([np.float32(theta ** (i / 64)) for i in range(0, 64, 2)])
        inside = jax.jit(lambda c=config: jnp.asarray(model.rope_frequencies(c)))()
        np.testing.assert_array_equal(inside, np.float32(1) / power)


def test_transformers_computes_the_same_logits_from_an_export(tmp_path, without_verification):
    torch = pytest.importorskip("torch")
    from transformers import LlamaForCausalLM

    for name, changes in VARIANTS.items():
        config = tiny_config(**changes)
        params = tiny_params(config)
        hf.write(epath.Path(tmp_path / name), config, params, countdown_tokenizer(9))
        tokens = random_tokens(2, 24)
        with torch.no_grad():
            expected = LlamaForCausalLM.from_pretrained(tmp_path / name)(torch.tensor(np.asarray(tokens)).long()).logits
        np.testing.assert_allclose(forward(params, tokens, config), expected.numpy(), atol=1e-4)


# ---- Packed sequences


def packed():
    """Three documents of 5, 7 and 3 tokens and 5 of padding in one row; only the padding has token 19."""
    documents = [random_tokens(n, seed=n, vocab=19) for n in (5, 7, 3)]
    tokens = jnp.concatenate([*documents, jnp.full(5, 19)])[None]
    segment_ids = jnp.asarray([[1] * 5 + [2] * 7 + [3] * 3 + [0] * 5])
    positions = jnp.asarray([[*range(5), *range(7), *range(3), *range(5)]])
    return documents, tokens, dict(segment_ids=segment_ids, positions=positions)


@jax.jit
def packed_hidden(params, tokens):
    return model.hidden_states(params, tokens, CONFIG, **packed()[2])


def test_packed_documents_equal_separate_documents():
    documents, tokens, _ = packed()
    logits = model.lm_head(PARAMS, packed_hidden(PARAMS, tokens))
    alone = [forward(PARAMS, d[None], CONFIG)[0] for d in documents]
    np.testing.assert_allclose(logits[0, :15], np.concatenate(alone), atol=1e-5)
    assert np.isfinite(logits).all()


def test_no_gradient_flows_from_a_document_to_padding_or_to_another_document():
    @jax.jit
    @jax.grad
    def gradient(embedded):
        # Token i stands at position i, so that the gradient of row i of the table is the gradient at position i.
        x = packed_hidden(PARAMS.replace(embed=embedded), jnp.arange(20)[None])
        return jnp.sum(x[0, 5:12] ** 3)

    size = np.linalg.norm(gradient(PARAMS.embed[packed()[1][0]]), axis=-1)
    assert (size[5:12] > 0).all() and (size[:5] == 0).all() and (size[12:] == 0).all()


def test_padding_tokens_do_not_change_other_hidden_states():
    tokens = packed()[1]
    x, other = packed_hidden(PARAMS, tokens), packed_hidden(PARAMS, tokens.at[0, 15:].set(0))
    np.testing.assert_array_equal(x[:, :15], other[:, :15])


# ---- Variants of one computation


def test_chunked_attention_equals_attention_of_all_queries_at_once(monkeypatch):
    _, tokens, layout = packed()

    def run(params):
        x = model.hidden_states(params, tokens, SHALLOW, **layout)
        return jnp.mean(x[:, :15] ** 3)

    at_once = jax.jit(jax.value_and_grad(run)).trace(SHALLOW_PARAMS)
    monkeypatch.setattr(attention, "QUERY_CHUNK", 5)
    in_chunks = jax.jit(jax.value_and_grad(run)).trace(SHALLOW_PARAMS)
    scores = "[1,2,2,20,20]"  # of all queries: [B, K, H / K, S, S]
    assert scores in str(at_once.jaxpr) and scores not in str(in_chunks.jaxpr)
    assert "[1,2,2,5,10]" in str(in_chunks.jaxpr)  # the first group does not look at later keys
    a, b = (traced.lower().compile()(SHALLOW_PARAMS) for traced in (at_once, in_chunks))
    assert_trees_close(a, b, rtol=1e-5, atol=1e-5)


def test_rolled_scan_over_layers_equals_unrolled_scan(monkeypatch):
    tokens = random_tokens(2, 9)
    unrolled = forward(PARAMS, tokens, CONFIG)
    monkeypatch.setattr(model, "UNROLLED_LAYERS", 0)
    rolled = jax.jit(lambda p: llama.forward(p, tokens, CONFIG))(PARAMS)
    np.testing.assert_allclose(rolled, unrolled, atol=1e-5)


def test_remat_changes_neither_values_nor_gradients():
    tokens = random_tokens(2, 9)

    def run(params, remat_policy):
        return jnp.sum(model.hidden_states(params, tokens, SHALLOW, remat_policy=remat_policy) ** 3)

    both = jax.jit(jax.value_and_grad(run), static_argnums=1)
    plain = both(SHALLOW_PARAMS, "none")
    for policy in model.REMAT_POLICIES:
        assert_trees_close(both(SHALLOW_PARAMS, policy), plain, rtol=1e-6, atol=1e-6)
    policies = typing.get_args(cfg.Sft.model_fields["remat_policy"].annotation)
    assert policies == ("none", *reversed(model.REMAT_POLICIES))


def test_bfloat16_is_close_and_stays_bfloat16():
    tokens = random_tokens(2, 12)
    exact = forward(PARAMS, tokens, CONFIG)
    half = cast(PARAMS, "bfloat16")
    logits = forward(half, tokens, CONFIG)
    x = jax.eval_shape(lambda p: model.hidden_states(p, tokens, CONFIG), half)
    assert x.dtype == jnp.bfloat16 and logits.dtype == jnp.float32
    assert 1e-4 < jnp.abs(logits - exact).max() < 0.1 * jnp.abs(exact).max()


def test_forward_with_cache_equals_forward():
    tokens = random_tokens(2, 11)
    cache = jnp.zeros((2, CONFIG.n_layers, 2, 11, CONFIG.n_kv_heads, CONFIG.head_dim))  # keys, values

    def attend(layer, q, k, v, cache, position):
        k, v = (x[layer].at[:, position].set(y[:, 0]) for x, y in zip(cache, (k, v), strict=True))
        segment_ids = jnp.broadcast_to(jnp.arange(11) <= position, (2, 11)).astype(jnp.int32)
        q = jnp.broadcast_to(q, (2, 11, *q.shape[2:]))
        out = attention.xla(q, k, v, segment_ids)
        return jax.lax.dynamic_slice_in_dim(out, position, 1, axis=1)

    @jax.jit
    def decode_step(cache, token, position):
        attend_at = functools.partial(attend, cache=cache, position=position)
        x, *new = model.forward_with_cache(PARAMS, token, jnp.full((2, 1), position), attend_at, CONFIG)
        return x, jnp.stack([c.at[:, :, position].set(y[:, :, 0]) for c, y in zip(cache, new, strict=True)])

    for position in range(11):
        x, cache = decode_step(cache, tokens[:, position : position + 1], position)
    logits = model.lm_head(PARAMS, x)[:, 0]
    np.testing.assert_allclose(logits, forward(PARAMS, tokens, CONFIG)[:, -1], atol=1e-5)


def test_arrays_of_wrong_rank_or_shape_are_an_error():
    with pytest.raises(AssertionError, match="rank"):
        llama.forward(PARAMS, random_tokens(5), CONFIG)
    with pytest.raises(AssertionError, match="shape"):
        model.hidden_states(PARAMS, random_tokens(2, 5), CONFIG, positions=jnp.arange(5))
    q, segment_ids = jnp.zeros((2, 5, 4, 8)), jnp.ones((2, 5), jnp.int32)
    with pytest.raises(AssertionError, match="shape"):
        attention.xla(q, q[:, :4], q[:, :4], segment_ids)
