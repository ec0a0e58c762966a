"""int8 weights and an int8 cache: against a loop of whole forward passes, in other batches, and against float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engines import CONFIG, PARAMS, REQUESTS, SEED, STOP, assert_same, engine, prompts, sampling, uniform
from helpers import one_device, tiny_config

from astro_jax import llama
from astro_jax.llama import model
from astro_jax.llama.quantized import QuantizedArray
from astro_jax.mesh import decode_sharding, make_mesh
from astro_jax.policy import Policy
from astro_jax.sampler import Request, SamplingParams, kv_cache, write_buffer
from astro_jax.sampler.engine import completion_key
from astro_jax.sampler.kv_cache import CacheLayout

INT8 = dict(quantization="int8", kv_cache_dtype="int8")
# Two rows, which share prefixes, are refilled, and shrink to one: each number of rows is a program that takes seconds.
int8_engine = functools.partial(engine, max_num_seqs=2, **INT8)
int8_params = functools.cache(lambda: int8_engine().quantize(PARAMS))


@functools.cache
def int8_completions():
    return int8_engine().generate(int8_params(), REQUESTS, sampling())


# ---- The reference: whole forward passes, with weights and keys and values rounded by the formula


def by_formula(x, axis):
    scale = jnp.max(jnp.abs(x), axis=axis, keepdims=True) / 127
    return jnp.round(x / scale) * scale


@jax.jit
def rounded_weights(params):
    layers = params.layers
    summed = {"wq": 1, "wk": 1, "wv": 1, "wo": (1, 2), "w_gate": 1, "w_up": 1, "w_down": 1}
    new = {name: by_formula(getattr(layers, name), axis) for name, axis in summed.items()}
    return params.replace(
        embed=by_formula(params.embed, 1), lm_head=by_formula(params.lm_head, 0), layers=layers.replace(**new)
    )


@jax.jit
def next_logprobs(params, tokens):
    """Log-probabilities [S, V] of the token after each of tokens [S]."""
    s, heads = len(tokens), CONFIG.n_heads // CONFIG.n_kv_heads

    def attend(layer, q, k, v):
        k, v = (jnp.repeat(by_formula(x, -1), heads, axis=2) for x in (k, v))
        scores = jnp.einsum("bsnh,btnh->bnst", q, k) / np.sqrt(CONFIG.head_dim)
        weights = jax.nn.softmax(jnp.where(jnp.tri(s, dtype=bool)[None, None], scores, -jnp.inf), axis=-1)
        return jnp.einsum("bnst,btnh->bsnh", weights, v)

    x, _, _ = model.forward_with_cache(params, tokens[None], jnp.arange(s)[None], attend, CONFIG)
    return jax.nn.log_softmax(model.lm_head(params, x)[0])


def test_completions_are_those_of_whole_forward_passes_with_rounded_numbers():
    weights = rounded_weights(PARAMS)
    for request, group in zip(REQUESTS, int8_completions(), strict=True):
        for j, completion in enumerate(group):
            new, n = completion.token_ids.tolist(), len(request.prompt_token_ids)
            tokens = np.pad([*request.prompt_token_ids, *new], (0, 96 - n - len(new)))
            logp = np.asarray(next_logprobs(weights, tokens.astype(np.int32)), np.float64)
            key = jnp.asarray(completion_key(SEED, request.request_id, j))
            for i, token in enumerate(new):
                p = np.exp(logp[n - 1 + i])
                assert token == int(np.searchsorted(np.cumsum(p) / p.sum(), float(uniform(key, n - 1 + i))))
                assert completion.logprobs[i] == pytest.approx(logp[n - 1 + i, token], abs=1e-4)
            assert completion.stopped == (new[-1] in STOP)


# ---- The same completions in other batches


def test_a_mesh_other_blocks_and_a_write_buffer_as_on_a_tpu_give_the_same_completions(monkeypatch):
    monkeypatch.setattr(write_buffer, "WRITE_BUFFER_COLUMNS", {"cpu": 4})
    sharding = decode_sharding(make_mesh(2, 1, 2))
    made = int8_engine(sharding=sharding, num_scheduler_steps=5, block_size=16)  # no other test has these programs
    params = made.quantize(jax.device_put(PARAMS, llama.params.shardings(CONFIG, sharding)))
    # Another order of sums may round a number the other way, if it lies in the middle between two int8 numbers.
    assert_same(made.generate(params, REQUESTS, sampling()), int8_completions(), atol=5e-3)


def test_a_prefix_cache_gives_the_same_completions():
    cached, plain = int8_engine(prefix_cache_gib=1e-3), int8_engine()
    prefix_cache = cached.new_prefix_cache()
    for length in (20, 33):
        requests = [Request(prompts(33)[0][:length], 3, ("prefix", length))]
        completions = cached.generate(int8_params(), requests, sampling(), prefix_cache=prefix_cache)
        assert_same(completions, plain.generate(int8_params(), requests, sampling()))
    assert prefix_cache.buffer.quantized and cached.stats.prefilled < plain.stats.prefilled


# ---- Memory


@pytest.mark.parametrize("group_size", [1, 4])
def test_allocated_bytes_equal_a_count_by_hand(group_size):
    layout = CacheLayout(16, group_size, 5, 3, 8, quantized=True)
    column = kv_cache.bytes_per_column(CONFIG, 4, quantized=True)
    assert column == 2 * 2 * 2 * (4 + 4)  # keys and values, 2 layers, 2 heads: 4 numbers of one byte, a float32 scale
    cache = kv_cache.allocate(CONFIG, one_device(), jnp.dtype("float32"), layout)
    expected = 16 * kv_cache.bytes_per_sequence(column, 40, 24, group_size)
    assert sum(x.nbytes for x in jax.tree.leaves(cache)) == expected
    abstract = kv_cache.abstract(CONFIG, one_device(), jnp.dtype("float32"), layout)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), abstract) == jax.tree.map(lambda x: (x.shape, x.dtype), cache)
    assert cache.completion.k.values.shape == (2, 3, 4, 4, 2, 4, 8) and cache.completion.k.scale.shape[-2:] == (2, 8)


def test_kv_cache_gib_holds_nearly_twice_the_rows():
    """In bfloat16 with heads of 128 numbers: 256 bytes a head and token, or 128 and a scale of 2."""
    config = tiny_config(head_dim=128)
    rows = []
    for dtype in (None, "int8"):
        made = engine(max_num_seqs=10_000, config=config, kv_cache_gib=0.01, kv_cache_dtype=dtype)
        rows.append(made.choose_layout(10_000, 10_000, 33, 40, jnp.dtype("bfloat16"))[0].num_seqs)
    assert rows[1] / rows[0] == pytest.approx(256 / 130, rel=0.01)


# ---- The error, on a trained model


def test_a_trained_model_keeps_its_probabilities_and_nearly_all_greedy_tokens():
    """The shipped model of Countdown, greedily with int8 weights and an int8 cache, against float32 on the text."""
    texts = [f"Let us make {n} from {a} {b} {c}.\n" for n, a, b, c in
             ((29, 11, 6, 3), (24, 4, 6, 1), (17, 9, 5, 3), (40, 8, 4, 8))]  # fmt: skip
    policy = Policy.load("countdown-base", max_num_seqs=4, **INT8)
    assert isinstance(policy.params.embed, QuantizedArray)
    requests = [policy.request(text, 1, "greedy", i) for i, text in enumerate(texts)]
    greedy = SamplingParams(max_tokens=32, temperature=0.0, stop_token_ids=())
    completions = [completion for (completion,) in policy.generate(requests, greedy)]
    new, logprobs = (np.stack([getattr(c, name) for c in completions]) for name in ("token_ids", "logprobs"))
    prompt = np.asarray([r.prompt_token_ids for r in requests], np.int32)  # all have the same length
    config, params = llama.load("countdown-base")
    logits = jax.jit(model.forward, static_argnums=2)(params, np.concatenate([prompt, new], 1), config)
    logp = np.asarray(jax.nn.log_softmax(logits))[:, prompt.shape[1] - 1 : -1]
    assert np.mean(logp.argmax(-1) == new) > 0.97
    assert 0 < np.abs(np.take_along_axis(logp, new[..., None], -1)[..., 0] - logprobs).mean() < 0.02
