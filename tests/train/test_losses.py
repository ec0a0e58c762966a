"""Losses against NumPy, from the formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_close, one_device_train, tiny_config, tiny_params

from astro_jax import config as cfg
from astro_jax import llama
from astro_jax.mesh import make_mesh, train_sharding
from astro_jax.train import losses, sft
from astro_jax.train.losses import Batch, cross_entropy, policy_loss, token_logprobs

CONFIG = tiny_config(n_layers=1)
PARAMS = tiny_params(CONFIG)
RNG = np.random.default_rng(0)
LENGTHS = [[5, 7], [3, 4, 4]]  # of the documents in two rows of 12; the second ends with padding


def packed():
    """A Batch of random documents with random weights, and the documents."""
    rows, documents = [], []
    rng = np.random.default_rng(1)
    for lengths in LENGTHS:
        row = np.zeros((4, 12), np.float32)
        at = 0
        for segment, n in enumerate(lengths, 1):
            tokens, weights = rng.integers(0, 20, n), rng.random(n)
            weights[0] = 0
            row[:, at : at + n] = tokens, np.full(n, segment), np.arange(n), weights
            documents.append((len(rows), at, tokens))
            at += n
        rows.append(row)
    tokens, segments, positions, weights = np.stack(rows, axis=1)
    return Batch(tokens.astype(int), segments.astype(int), positions.astype(int), weights), documents


BATCH, DOCUMENTS = packed()


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@functools.cache
def expected():
    """Log-probabilities and entropies from each document's own forward pass; NaN on padding and on first tokens."""
    logp, entropy = np.full((2, 2, 12), np.nan)
    forward = jax.jit(llama.forward, static_argnums=2)
    for row, at, tokens in DOCUMENTS:
        padded = np.pad(tokens, (0, 12 - len(tokens)))[None]
        every = log_softmax(forward(PARAMS, padded, CONFIG)[0])
        for i in range(1, len(tokens)):
            logp[row, at + i] = every[i - 1, tokens[i]]
            entropy[row, at + i] = -(np.exp(every[i - 1]) * every[i - 1]).sum()
    return logp, entropy


@pytest.mark.parametrize("chunk", [1024, 4], ids=["at once", "in chunks"])
def test_token_logprobs_and_entropy_equal_numpy(chunk, monkeypatch):
    monkeypatch.setattr(losses, "LOGITS_CHUNK", chunk)
    compiled = jax.jit(lambda p, b: token_logprobs(p, b, CONFIG)).trace(PARAMS, BATCH)
    assert ("[2,12,20]" in str(compiled.jaxpr)) == (chunk == 1024)  # in chunks, logits of all positions never live
    logp, entropy = compiled.lower().compile()(PARAMS, BATCH)
    told = ~np.isnan(expected()[0])
    assert (told == (np.asarray(BATCH.positions) > 0) & (np.asarray(BATCH.segments) > 0)).all()
    for got, want in zip((logp, entropy), expected(), strict=True):
        np.testing.assert_allclose(np.asarray(got)[told], want[told], atol=1e-5)
    assert np.isfinite(logp).all() and np.isfinite(entropy).all()


def sft_loss(batch, sharding=None, **settings):
    """(loss, gradient)"""
    loss = sft.make_loss(cfg.Sft(**settings), CONFIG, sharding or one_device_train())
    return jax.jit(jax.value_and_grad(lambda p, b: loss(p, b)[0]))(PARAMS, batch)


@functools.cache
def plain():
    return sft_loss(BATCH)


def test_sft_loss_is_the_weighted_mean_of_the_documents():
    logp, weights = expected()[0], BATCH.weights
    assert plain()[0] == pytest.approx(-np.nansum(logp * weights) / weights.sum(), abs=1e-5)


def test_chunks_remat_and_the_mesh_change_neither_the_loss_nor_its_gradient(monkeypatch):
    expected = plain()
    monkeypatch.setattr(losses, "LOGITS_CHUNK", 4)
    other = sft_loss(BATCH, train_sharding(make_mesh(data=2, tp=2)), remat=True)
    assert_trees_close(other, expected, rtol=1e-4, atol=1e-5)


def test_bfloat16_computes_in_it_and_gives_gradients_in_float32():
    value, gradient = sft_loss(BATCH, dtype="bfloat16")
    assert 0 < abs(value - plain()[0]) < 0.05 * plain()[0]
    assert {x.dtype for x in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}


def test_a_token_of_weight_zero_does_not_matter():
    tokens = np.array(BATCH.tokens)
    assert BATCH.weights[1, 11] == 0  # padding
    tokens[1, 11] = 19
    assert_trees_close(sft_loss(BATCH.replace(tokens=tokens)), plain(), rtol=1e-6, atol=1e-7)


def test_cross_entropy_by_hand():
    # (0.5 * 1 + 2 * 3) / (1 + 3); the second token has no weight, however unlikely it is
    loss = cross_entropy(jnp.asarray([[-0.5, -9e9, -2.0]]), jnp.asarray([[1.0, 0.0, 3.0]]))
    assert loss == pytest.approx(6.5 / 4)
    assert cross_entropy(jnp.asarray([[-1.0]]), jnp.asarray([[0.0]])) == 0


# ---- GRPO


def rollouts(n=40):
    """logp, old_logp, advantages, weights [2, n]; some weights are zero, ratios lie on both sides of the clip."""
    logp, old = RNG.uniform(-3, -0.1, (2, 2, n))
    old = logp + RNG.normal(0, 0.3, (2, n))
    weights = RNG.random((2, n)) * (RNG.random((2, n)) < 0.7)
    return logp, old, RNG.normal(0, 1, (2, n)), weights / weights.sum()


def numpy_grpo(logp, old, advantages, weights, clip):
    """arXiv 2402.03300, equation 3, without the KL term, one token at a time; and the share that is clipped."""
    objective = clipped = 0.0
    for new, was, a, w in zip(*(x.ravel() for x in (logp, old, advantages, weights)), strict=True):
        ratio = np.exp(new) / np.exp(was)
        objective += w * min(ratio * a, min(max(ratio, 1 - clip), 1 + clip) * a)
        clipped += w * ((a > 0 and ratio > 1 + clip) or (a < 0 and ratio < 1 - clip))
    return -objective, clipped / weights.sum()


@pytest.mark.parametrize("clip", [0.05, 0.2, 10.0])
def test_policy_loss_equals_the_formula(clip):
    data = rollouts()
    got = policy_loss(*[jnp.asarray(x, jnp.float32) for x in data], clip)
    np.testing.assert_allclose(got, numpy_grpo(*data, clip), rtol=1e-4, atol=1e-6)
    assert (got[1] > 0) == (clip < 10)


def test_gradient_at_the_old_policy_is_that_of_the_plain_policy_gradient():
    logp, _, advantages, weights = (jnp.asarray(x, jnp.float32) for x in rollouts())
    # d/d logp of -sum w min(r A, clip(r) A) at r = 1 equals d/d logp of -sum w A logp, which is -w A.
    grpo = jax.grad(lambda x: policy_loss(x, logp, advantages, weights, 0.2)[0])(logp)
    plain = jax.grad(lambda x: -jnp.sum(weights * advantages * x))(logp)
    np.testing.assert_allclose(grpo, plain, rtol=1e-6)


def test_the_same_equation_through_the_model():
    advantages = np.sign(np.random.default_rng(2).normal(size=(2, 12))).astype(np.float32)

    @jax.jit
    def both(params):
        logp, pull = jax.vjp(lambda p: token_logprobs(p, BATCH, CONFIG)[0], params)
        grpo = jax.grad(lambda x: policy_loss(x, logp, advantages, BATCH.weights, 0.2)[0])(logp)
        return pull(grpo)[0], pull(-BATCH.weights * advantages)[0]

    assert_trees_close(*both(PARAMS), rtol=1e-4, atol=1e-5)


def test_clipped_tokens_give_no_gradient():
    # A > 0: only a ratio above 1 + clip is cut off; A < 0: only one below 1 - clip.
    old, new = jnp.zeros((1, 4)), jnp.log(jnp.asarray([[1.5, 0.5, 1.5, 0.5]]))
    advantages, weights = jnp.asarray([[1.0, 1.0, -1.0, -1.0]]), jnp.full((1, 4), 0.25)
    gradient = jax.grad(lambda x: policy_loss(x, old, advantages, weights, 0.2)[0])(new)
    np.testing.assert_allclose(gradient, [[0, -0.125, 0.375, 0]], atol=1e-7)


def test_what_stands_where_the_weight_is_zero_cannot_overflow():
    logp, old = jnp.asarray([[-1.0, 0.0]]), jnp.asarray([[-1.0, -1e4]])
    weights = jnp.asarray([[1.0, 0.0]])
    value, gradient = jax.value_and_grad(lambda x: policy_loss(x, old, jnp.ones((1, 2)), weights, 0.2)[0])(logp)
    assert value == -1 and gradient.tolist() == [[-1, 0]]
