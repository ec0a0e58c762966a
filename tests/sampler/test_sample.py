"""Sampled tokens and their probabilities, against NumPy in float64 with a sort where the program bisects."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from astro_jax.sampler import SamplingParams
from astro_jax.sampler.sample import SamplingInputs, sample

uniform = jax.jit(jax.vmap(lambda key, position: jax.random.uniform(jax.random.fold_in(key, position))))
program = functools.partial(jax.jit, static_argnums=4)(sample)


def call(logits, n=None, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=0):
    """Sample one token of each row, or n tokens of a single row of logits [V]; return them and their keys."""
    logits = jnp.asarray(logits, jnp.float32)
    if n is not None:
        logits = jnp.broadcast_to(logits, (n, *logits.shape))
    rows = len(logits)
    keys = np.random.default_rng(seed).integers(0, 2**32, (rows, 2), dtype=np.uint32)
    params = SamplingParams(1, temperature, top_k, top_p, min_p)
    position = np.arange(rows, dtype=np.int32)
    return program(logits, keys, position, SamplingInputs.of(params), params.filtered), keys


def distribution(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """Probabilities [V] in float64: sort, filter by top_k, top_p and min_p, normalize."""
    p = np.exp((logits - logits.max()).astype(np.float64) / temperature)
    if top_k:
        p[logits < np.sort(logits)[::-1][min(top_k, len(logits)) - 1]] = 0
    p /= p.sum()
    if top_p < 1:
        order = np.argsort(-p, kind="stable")
        enough = np.searchsorted(np.cumsum(p[order]), top_p) + 1
        p[logits < logits[order[:enough]].min()] = 0
    p[p < min_p * p.max()] = 0
    return p / p.sum()


SETTINGS = [
    dict(), dict(temperature=0.5), dict(temperature=2.0), dict(top_k=1), dict(top_k=5), dict(top_k=10**6),
    dict(top_p=0.3), dict(top_p=0.9), dict(min_p=0.1), dict(temperature=0.7, top_k=20, top_p=0.8, min_p=0.02),
]  # fmt: skip


@pytest.mark.parametrize("size", [7, 1536, 2051])  # one slice of the vocabulary, several slices, padding
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_sampled_token_inverts_the_distribution_function(size, settings):
    rng = np.random.default_rng(size)
    logits = (3 * rng.standard_normal((64, size))).astype(np.float32)
    got, keys = call(logits, **settings)
    uniforms = uniform(keys, np.arange(64))
    for row, token in enumerate(np.asarray(got.token)):
        p = distribution(logits[row], **settings)
        u = float(uniforms[row])
        assert p[token] > 0
        before = p[:token].sum()
        assert before - 1e-5 <= u <= before + p[token] + 1e-5
        plain = distribution(logits[row])
        np.testing.assert_allclose(got.logprob[row], np.log(plain[token]), atol=2e-5)
        np.testing.assert_allclose(got.sampling_logprob[row], np.log(p[token]), atol=2e-5)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_frequencies_match_the_distribution(settings):
    logits = np.random.default_rng(1).standard_normal(30).astype(np.float32) * 2
    n = 20000
    counts = np.bincount(np.asarray(call(logits, n, **settings)[0].token), minlength=30)
    p = distribution(logits, **settings)
    assert (counts[p == 0] == 0).all()
    assert (abs(counts - n * p) < 4.5 * np.sqrt(n * p * (1 - p)) + 1).all()


def test_transformers_keeps_the_same_tokens():
    torch = pytest.importorskip("torch")
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = (3 * np.random.default_rng(3).standard_normal((1, 300))).astype(np.float32)
    scores = torch.from_numpy(logits)
    for warper in (TemperatureLogitsWarper(0.7), TopKLogitsWarper(40), TopPLogitsWarper(0.8), MinPLogitsWarper(0.05)):
        scores = warper(None, scores)
    expected = torch.softmax(scores.double(), -1).numpy()[0]
    tokens = np.asarray(call(logits[0], 4000, temperature=0.7, top_k=40, top_p=0.8, min_p=0.05)[0].token)
    assert set(tokens) <= set(np.flatnonzero(expected)) and set(np.flatnonzero(expected > 0.01)) <= set(tokens)
    np.testing.assert_allclose(
        distribution(logits[0], temperature=0.7, top_k=40, top_p=0.8, min_p=0.05), expected, atol=1e-6
    )


def test_temperature_zero_is_the_most_likely_token_with_probability_one():
    logits = np.random.default_rng(2).standard_normal((5, 600)).astype(np.float32)
    got, _ = call(logits, temperature=0.0)
    assert np.asarray(got.token).tolist() == logits.argmax(1).tolist() and (got.sampling_logprob == 0).all()


def test_tokens_as_likely_as_the_last_of_top_k_are_kept():
    got, _ = call([2.0, 1.0, 1.0, 1.0, 0.0], 2000, top_k=2)
    assert set(np.asarray(got.token).tolist()) == {0, 1, 2, 3}


def test_a_token_without_probability_is_never_drawn():
    logits = np.full(2000, -np.inf, np.float32)
    logits[[255, 256, 1999]] = 0.0
    got, _ = call(logits, 3000)
    assert set(np.asarray(got.token).tolist()) == {255, 256, 1999}


@pytest.mark.parametrize("damage", [np.nan, np.inf])
def test_logits_that_are_not_numbers_give_no_token_and_leave_other_rows_alone(damage):
    logits = np.zeros((3, 10), np.float32)
    logits[1, 4] = damage
    token = np.asarray(call(logits)[0].token)
    assert token[1] == -1 and (token[[0, 2]] >= 0).all()
