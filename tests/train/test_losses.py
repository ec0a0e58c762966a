"""Losses against NumPy, from the formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_close, one_device_train, tiny_config, tiny_params

from astro_jax import config as cfg
from astro_jax import llama
from astro_jax.llama import params as llama_params
from astro_jax.mesh import make_mesh, train_sharding
from astro_jax.train import losses, sft
from astro_jax.train.losses import Batch, token_logprobs

CONFIG = tiny_config(n_layers=1)
PARAMS = tiny_params(CONFIG)
LENGTHS = [[5, 7], [3, 4, 4]]  # of the documents in two rows of 12; the second row ends with padding


def make_batch():
    """A Batch of random documents with random weights, and the documents as (row, first column, tokens)."""
    rows, documents = [], []
    rng = np.random.default_rng(1)
    for lengths in LENGTHS:
        row = np.zeros((4, 12), np.float32)
        start = 0
        for segment_id, n in enumerate(lengths, 1):
            tokens, weights = rng.integers(0, 20, n), rng.random(n)
            weights[0] = 0
            row[:, start : start + n] = tokens, np.full(n, segment_id), np.arange(n), weights
            documents.append((len(rows), start, tokens))
            start += n
        rows.append(row)
    tokens, segment_ids, positions, weights = np.stack(rows, axis=1)
    return Batch(tokens.astype(int), segment_ids.astype(int), positions.astype(int), weights), documents


BATCH, DOCUMENTS = make_batch()


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@functools.cache
def expected():
    """Log-probabilities and entropies from a forward pass of each document; NaN on padding and on first tokens."""
    logprobs, entropy = np.full((2, 2, 12), np.nan)
    rows = np.stack([np.pad(tokens, (0, 12 - len(tokens))) for _, _, tokens in DOCUMENTS])
    all_logprobs = log_softmax(jax.jit(llama.forward, static_argnums=2)(PARAMS, rows, CONFIG))
    for (row, start, tokens), after in zip(DOCUMENTS, all_logprobs, strict=True):
        for i in range(1, len(tokens)):
            logprobs[row, start + i] = after[i - 1, tokens[i]]
            entropy[row, start + i] = -(np.exp(after[i - 1]) * after[i - 1]).sum()
    return logprobs, entropy


@pytest.mark.parametrize("chunk", [24, 8, 7], ids=["one chunk", "even chunks", "a padded chunk"])
def test_token_logprobs_and_entropy_equal_numpy(chunk, monkeypatch):
    monkeypatch.setattr(losses, "LIVE_LOGITS", 20 * chunk)
    compiled = jax.jit(lambda p, b: token_logprobs(p, b, CONFIG)).trace(PARAMS, BATCH)
    # With chunks, the logits of all 24 tokens are never live.
    assert ("[2,12,20]" in str(compiled.jaxpr)) == (chunk == 24) and "[1,24,20]" not in str(compiled.jaxpr)
    logprobs, entropy = compiled.lower().compile()(PARAMS, BATCH)
    mask = ~np.isnan(expected()[0])
    assert (mask == (np.asarray(BATCH.positions) > 0) & (np.asarray(BATCH.segment_ids) > 0)).all()
    for actual, desired in zip((logprobs, entropy), expected(), strict=True):
        np.testing.assert_allclose(np.asarray(actual)[mask], desired[mask], atol=1e-5)
    assert np.isfinite(logprobs).all() and np.isfinite(entropy).all()


def test_temperature_divides_the_logits():
    logprobs, entropy = token_logprobs(PARAMS, BATCH, CONFIG, temperature=0.5)
    for row, start, tokens in DOCUMENTS:
        after = log_softmax(2 * np.asarray(llama.forward(PARAMS, tokens[None], CONFIG))[0])
        columns = np.arange(1, len(tokens))
        np.testing.assert_allclose(logprobs[row, start + columns], after[columns - 1, tokens[columns]], atol=1e-4)
        plain = -(np.exp(after) * after).sum(-1)[:-1]
        np.testing.assert_allclose(entropy[row, start + columns], plain, atol=1e-4)


def test_arrays_of_different_shapes_are_refused():
    with pytest.raises(AssertionError, match="shape"):
        token_logprobs(PARAMS, BATCH.replace(positions=BATCH.positions[:, :-1]), CONFIG)


# ---- SFT


def make_sft_gradient(sharding=None, **settings):
    """(params, batch) -> (loss, gradient), compiled."""
    loss = sft.make_loss(cfg.Sft(**settings), CONFIG, sharding or one_device_train())
    return jax.jit(jax.value_and_grad(lambda p, b: loss(p, b)[0]))


sft_gradient = functools.cache(make_sft_gradient)


def test_sft_loss_is_weighted_mean_over_documents():
    logprobs, weights = expected()[0], BATCH.loss_weights
    loss = sft_gradient()(PARAMS, BATCH)[0]
    assert loss == pytest.approx(-np.nansum(logprobs * weights) / weights.sum(), abs=1e-5)


def test_chunks_remat_and_mesh_change_neither_loss_nor_gradient(monkeypatch):
    one_device = sft_gradient()(PARAMS, BATCH)
    monkeypatch.setattr(losses, "LIVE_LOGITS", 4 * 20)
    on_mesh = make_sft_gradient(train_sharding(make_mesh(data=2, tp=2)), remat_policy="full")(PARAMS, BATCH)
    assert_trees_close(on_mesh, one_device, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 12), (3, 1000)], ids=["short rows", "rows that no chunk divides"])
def test_short_or_odd_rows_are_chunked_too(shape, monkeypatch):
    """The LM head was not chunked for S <= 1024 or S % 1024 != 0. Loss and gradients equal those without chunks."""
    tokens = np.random.default_rng(0).integers(0, 20, shape)
    positions = np.broadcast_to(np.arange(shape[1]), shape)
    batch = Batch(tokens, np.ones_like(tokens), positions, (positions > 0).astype(np.float32))
    whole, whole_gradient = make_sft_gradient()(PARAMS, batch)
    monkeypatch.setattr(losses, "LIVE_LOGITS", tokens.size * 20 // 4 - 1)  # five chunks
    value, gradient = make_sft_gradient()(PARAMS, batch)
    assert value == pytest.approx(float(whole), rel=1e-5)
    for chunked, unchunked in zip(jax.tree.leaves(gradient), jax.tree.leaves(whole_gradient), strict=True):
        np.testing.assert_allclose(chunked, unchunked, rtol=1e-5, atol=1e-5 * np.abs(unchunked).max())


@pytest.mark.parametrize("chunk", [24, 8], ids=["one chunk", "three chunks"])
def test_one_device_runs_no_collective(chunk, monkeypatch):
    """Gathers and sums over mesh axes of one device copied the embedding, the LM head and their gradients."""
    monkeypatch.setattr(losses, "LIVE_LOGITS", 20 * chunk)
    program = make_sft_gradient().lower(PARAMS, BATCH).compile().as_text()
    assert [name for name in ("all-gather", "all-reduce", "reduce-scatter") if name in program] == []


def test_chunks_take_a_quarter_of_the_memory_at_a_vocabulary_of_128k(monkeypatch):
    config = tiny_config(n_layers=1, vocab_size=128_256)
    loss = sft.make_loss(cfg.Sft(), config, one_device_train())
    ints, floats = (jax.ShapeDtypeStruct((8, 1024), dtype) for dtype in (jnp.int32, jnp.float32))

    def peak_bytes():
        gradient = jax.jit(jax.grad(lambda p, b: loss(p, b)[0]))
        compiled = gradient.lower(llama_params.abstract(config), Batch(ints, ints, ints, floats)).compile()
        memory = compiled.memory_analysis()
        return memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes

    chunked = peak_bytes()
    monkeypatch.setattr(losses, "LIVE_LOGITS", 2**40)
    assert chunked < 0.25 * peak_bytes()


def test_bfloat16_changes_computation_but_gradients_stay_float32():
    value, gradient = make_sft_gradient(dtype="bfloat16")(PARAMS, BATCH)
    float32_value = sft_gradient()(PARAMS, BATCH)[0]
    assert 0 < abs(value - float32_value) < 0.05 * float32_value
    assert {x.dtype for x in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}


@pytest.mark.slow
@pytest.mark.parametrize("sizes, chunk", [({}, 4096), ({"data": 2, "tp": 2}, 256)], ids=["one device", "mesh, chunks"])
def test_gradient_in_bfloat16_is_near_the_one_in_float32(sizes, chunk, monkeypatch):
    """Half of the tokens are equal. Their rows of the embedding's gradient, summed in bfloat16, were off by 31%."""
    rng = np.random.default_rng(0)
    tokens = np.where(rng.random((4, 1024)) < 0.5, 7, rng.integers(0, 20, (4, 1024)))
    positions = np.broadcast_to(np.arange(1024) % 128, tokens.shape)
    segment_ids = np.broadcast_to(1 + np.arange(1024) // 128, tokens.shape)
    batch = Batch(tokens, segment_ids, positions, (positions > 0).astype(np.float32))
    _, expected = make_sft_gradient()(PARAMS, batch)
    monkeypatch.setattr(losses, "LIVE_LOGITS", 20 * chunk)
    _, gradient = make_sft_gradient(train_sharding(make_mesh(**sizes)), dtype="bfloat16")(PARAMS, batch)

    def relative_error(x, y):
        return float(np.linalg.norm(x - y) / np.linalg.norm(y))

    gradient, expected = jax.device_get((gradient, expected))
    errors = jax.tree_util.tree_leaves_with_path(jax.tree.map(relative_error, gradient, expected))
    assert {jax.tree_util.keystr(path): error for path, error in errors if error > 0.02} == {}


def test_token_of_weight_zero_does_not_matter():
    tokens = np.array(BATCH.tokens)
    assert BATCH.loss_weights[1, 11] == 0  # padding
    tokens[1, 11] = 19
    changed = sft_gradient()(PARAMS, BATCH.replace(tokens=tokens))
    assert_trees_close(changed, sft_gradient()(PARAMS, BATCH), rtol=1e-6, atol=1e-7)


def test_batch_without_weights_has_no_loss_and_no_gradient():
    value, gradient = sft_gradient()(PARAMS, BATCH.replace(loss_weights=np.zeros((2, 12), np.float32)))
    assert value == 0 and not any(x.any() for x in jax.tree.leaves(gradient))
