"""The sampler against an autoregressive loop without a cache, and against itself in other batches."""

import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import count_compilations, one_device, tiny_config, tiny_params

from astro_jax import llama
from astro_jax.errors import AstroError
from astro_jax.llama import model
from astro_jax.llama.model import Cache
from astro_jax.mesh import decode_sharding, make_mesh
from astro_jax.sampler import Request, Sampler
from astro_jax.sampler.decode import Rows, make_decode
from astro_jax.sampler.engine import power_of_two, sample_key

CONFIG = tiny_config(max_positions=96)
PARAMS = tiny_params(CONFIG)
SEED, STOP = 11, (12,)
SETTINGS = dict(max_tokens=40, stop=STOP)


def make(slots=8, sharding=None, chunk=4, seed=SEED):
    return Sampler(CONFIG, sharding or one_device(), seed, slots=slots, chunk=chunk)


def prefixes(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [tuple(rng.integers(1, 20, n).tolist()) for n in lengths]


def requests(*lengths, n=2):
    return [Request(prefix, n, ("test", i)) for i, prefix in enumerate(prefixes(*lengths))]


REQUESTS = requests(1, 3, 3, 17, 8, n=3)


@pytest.fixture(autouse=True, scope="module")
def rolled_layers():
    """Rolled layers compile faster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "UNROLLED_LAYERS", 0)
        yield


# ---- The reference: whole forward passes, one row at a time


@functools.partial(jax.jit, static_argnums=2)
def next_logprobs(tokens, length, config=CONFIG):
    """Log-probabilities of the token after the first `length` of tokens [S]; what follows is not seen."""
    logits = llama.forward(PARAMS, tokens[None], config)[0]
    return jax.nn.log_softmax(logits[length - 1])


gumbel = jax.jit(lambda key, position: jax.random.gumbel(jax.random.fold_in(key, position), (20,)))


def reference(request, sample, temperature, max_tokens=40, stop=STOP, seed=SEED):
    """(tokens, log-probabilities, stopped) by the Gumbel-max trick on logits without a cache."""
    key = jnp.asarray(sample_key(seed, request.name, sample))
    tokens, logprobs = list(request.prefix), []
    while len(tokens) < len(request.prefix) + max_tokens:
        padded = np.zeros(96, np.int32)
        padded[: len(tokens)] = tokens
        logp = np.asarray(next_logprobs(padded, len(tokens)))
        noise = np.asarray(gumbel(key, len(tokens) - 1))  # named by the position of the token before
        tokens.append(int(np.argmax(logp + temperature * noise)))
        logprobs.append(logp[tokens[-1]])
        if tokens[-1] in stop:
            break
    return tokens[len(request.prefix) :], logprobs, tokens[-1] in stop


def check(samples, asked, temperature, **settings):
    for request, group in zip(asked, samples, strict=True):
        assert len(group) == request.n
        for j, sample in enumerate(group):
            tokens, logprobs, stopped = reference(request, j, temperature, **settings)
            assert sample.tokens.tolist() == tokens and sample.stopped == stopped
            np.testing.assert_allclose(sample.logprobs, logprobs, atol=1e-5)


def as_lists(samples):
    return [[(s.tokens.tolist(), s.stopped) for s in group] for group in samples]


def test_greedy_equals_a_loop_without_a_cache():
    asked = requests(1, 17, 8, 12, n=1)
    samples = make().generate(PARAMS, asked, **SETTINGS, temperature=0.0)
    check(samples, asked, 0.0)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampled_tokens_equal_the_gumbel_trick_on_logits_without_a_cache(temperature):
    samples = make().generate(PARAMS, REQUESTS, **SETTINGS, temperature=temperature)
    check(samples, REQUESTS, temperature)
    samples = [s for group in samples for s in group]
    assert len({tuple(s.tokens) for s in samples}) > 10  # they are not all alike
    assert max(len(s.tokens) for s in samples) == 40  # past column 32, where the cache has grown


def test_log_probabilities_are_the_policys_at_any_temperature():
    hot = make().generate(PARAMS, REQUESTS[:1], **SETTINGS, temperature=3.0)
    check(hot, REQUESTS[:1], 3.0)


# ---- A sample does not depend on what it is drawn with


@pytest.mark.parametrize("slots, chunk", [(3, 4), (8, 16)])
def test_other_slots_and_chunks_give_the_same_samples(slots, chunk):
    expected = make().generate(PARAMS, REQUESTS, **SETTINGS)
    samples = make(slots=slots, chunk=chunk).generate(PARAMS, REQUESTS, **SETTINGS)
    assert as_lists(samples) == as_lists(expected)


def test_alone_or_in_another_order_gives_the_same_samples():
    expected = as_lists(make().generate(PARAMS, REQUESTS, **SETTINGS))
    alone = [make().generate(PARAMS, [r], **SETTINGS)[0] for r in REQUESTS]
    assert as_lists(alone) == expected
    order = [3, 0, 4, 2, 1]
    shuffled = make().generate(PARAMS, [REQUESTS[i] for i in order], **SETTINGS)
    assert as_lists(shuffled) == [expected[i] for i in order]


def test_fewer_samples_of_a_request_are_the_first_of_more():
    expected = as_lists(make().generate(PARAMS, REQUESTS, **SETTINGS))
    fewer = [Request(r.prefix, 1, r.name) for r in REQUESTS]
    assert as_lists(make().generate(PARAMS, fewer, **SETTINGS)) == [group[:1] for group in expected]


def test_the_seed_and_the_name_give_other_samples_and_equal_names_the_same():
    r = REQUESTS[3]
    one, other_name, same = make().generate(
        PARAMS, [r, Request(r.prefix, 3, ("other",)), Request(r.prefix, 3, r.name)], **SETTINGS
    )
    (other_seed,) = make(seed=SEED + 1).generate(PARAMS, [r], **SETTINGS)
    assert as_lists([one]) == as_lists([same])
    assert len({str(as_lists([x])) for x in (one, other_name, other_seed)}) == 3
    assert len({tuple(s.tokens) for s in one}) == 3


def test_a_mesh_gives_the_samples_of_one_device():
    expected = make().generate(PARAMS, REQUESTS, **SETTINGS)
    sharding = decode_sharding(make_mesh(data=2, tp=2))
    params = jax.device_put(PARAMS, llama.params.shardings(CONFIG, sharding))
    samples = make(slots=2, sharding=sharding).generate(params, REQUESTS, **SETTINGS)
    assert as_lists(samples) == as_lists(expected)
    for a, b in zip(samples, expected, strict=True):
        np.testing.assert_allclose(a[0].logprobs, b[0].logprobs, atol=1e-5)


# ---- Ends, limits, errors


def test_samples_end_at_the_first_stop_token_or_at_the_limit():
    samples = [s for group in make().generate(PARAMS, REQUESTS, **SETTINGS) for s in group]
    for s in samples:
        assert not set(s.tokens[:-1].tolist()) & set(STOP) and len(s.tokens) == len(s.logprobs) <= 40
        assert s.stopped == (s.tokens[-1] in STOP) and (s.stopped or len(s.tokens) == 40)
    assert {s.stopped for s in samples} == {True, False}


@pytest.mark.parametrize("max_tokens", [1, 4, 5])
def test_a_lower_limit_cuts_the_same_samples_shorter(max_tokens):
    longer = make().generate(PARAMS, REQUESTS, **SETTINGS)
    cut = make().generate(PARAMS, REQUESTS, max_tokens=max_tokens, stop=STOP)
    for a, b in zip(itertools.chain(*longer), itertools.chain(*cut), strict=True):
        assert b.tokens.tolist() == a.tokens[:max_tokens].tolist()
        assert b.stopped == (a.stopped and len(a.tokens) <= max_tokens)


def test_more_rows_than_slots_and_progress():
    seen = []
    asked = requests(*range(1, 8), n=3)
    samples = make(slots=4).generate(PARAMS, asked, max_tokens=6, stop=STOP, progress=seen.append)
    assert sum(seen) == 21 and as_lists(samples) == as_lists(make().generate(PARAMS, asked, max_tokens=6, stop=STOP))


def test_nothing_asked_for_gives_nothing():
    assert make().generate(PARAMS, [], **SETTINGS) == []
    assert make().generate(PARAMS, [Request((1, 2), 0, ("none",))], **SETTINGS) == [[]]


@pytest.mark.parametrize("prefix, max_tokens", [((), 4), ((1,) * 93, 4)])
def test_a_prefix_without_tokens_or_without_room_is_an_error(prefix, max_tokens):
    with pytest.raises(AstroError, match=f"a prefix of {len(prefix)} tokens .*'long'.*96 positions"):
        make().generate(PARAMS, [Request(prefix, 1, ("long",))], max_tokens=max_tokens, stop=STOP)
    make()._check([Request((1,) * 92, 1, ("long",))], max_tokens=4)


# ---- Distribution, programs


def test_frequencies_at_temperature_one_match_the_softmax():
    n = 1200
    request = Request((3, 1, 4), n, ("frequencies",))
    (samples,) = make().generate(PARAMS, [request], max_tokens=1, stop=STOP)
    counts = np.bincount([s.tokens[0] for s in samples], minlength=20)
    padded = np.zeros(96, np.int32)
    padded[:3] = request.prefix
    p = np.exp(np.asarray(next_logprobs(padded, 3), np.float64))
    assert (abs(counts - n * p) < 4 * np.sqrt(n * p * (1 - p)) + 1).all()


def test_requests_of_the_same_sizes_compile_nothing_again():
    def run(seed):
        asked = [Request(p, 3, (seed, i)) for i, p in enumerate(prefixes(2, 5, 9, 30, seed=seed))]
        return make(slots=4, seed=seed).generate(PARAMS, asked, max_tokens=24, stop=(), temperature=1.0 + seed)

    first = run(0)
    with count_compilations() as compiled:
        jax.jit(lambda x: x * 3)(jnp.ones(3))
        assert len(compiled) > 0  # the counter counts
        compiled.clear()
        second = run(1)
    assert compiled == [] and as_lists(first) != as_lists(second)


def test_a_decode_step_does_not_copy_the_whole_cache():
    # It did, twice: the cache was written before XLA could know that its last reader was done.
    b, t = 6, 48
    row = jnp.zeros(b, jnp.int32)
    k = jnp.zeros((CONFIG.n_layers, b, CONFIG.n_kv_heads, CONFIG.head_dim, t))
    rows = Rows(
        cache=Cache(k, k.swapaxes(-1, -2)), token=row, start=row, key=jnp.zeros((b, 2), jnp.uint32), left=row + 9
    )
    program = make_decode(CONFIG, one_device(), 4, STOP).lower(PARAMS, rows, np.int32(16), np.float32(1)).compile()
    arrays = re.findall(r"= f32\[([\d,]+)\]\S* ([\w-]+)\(", program.as_text())
    made_by = {operation for shape, operation in arrays if math.prod(map(int, shape.split(","))) == k.size}
    assert "fusion" in made_by and "copy" not in made_by  # it is written, in place


def test_rows_that_have_ended_leave_the_batch():
    # 1 of 8 rows goes on, so its batch shrinks; the shapes come from the sampler's short list.
    sampler, shapes = make(), set()
    spread = sampler._spread
    sampler._spread = lambda rows, index, columns: shapes.add((len(index), columns)) or spread(rows, index, columns)
    sampler.generate(PARAMS, REQUESTS, **SETTINGS)
    assert {b for b, _ in shapes} == {1, 2, 4, 8} == set(sampler.sizes)
    assert {columns for _, columns in shapes} == {32, 64}


@pytest.mark.parametrize("n, columns", [(0, 16), (1, 16), (16, 16), (17, 32), (32, 32), (33, 64), (1000, 1024)])
def test_power_of_two(n, columns):
    assert power_of_two(n) == columns


def test_keys_are_named_by_seed_name_and_sample():
    names = [(0, ("a", 1), 0), (1, ("a", 1), 0), (0, ("a", 2), 0), (0, ("a", "1"), 0), (0, ("a", 1), 1)]
    assert len({tuple(sample_key(*name)) for name in names}) == len(names)
    assert sample_key(0, ("a", 1), 0).dtype == np.uint32
