"""The sampler against an autoregressive loop without a cache, and against itself in other batches."""

import dataclasses
import functools
import itertools
import math
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import count_compilations, one_device, tiny_config, tiny_params

from astro_jax import llama
from astro_jax.errors import AstroError
from astro_jax.mesh import decode_sharding, make_mesh
from astro_jax.policy import Policy
from astro_jax.sampler import Engine, Request, RequestError, cache, decode
from astro_jax.sampler.cache import Shape
from astro_jax.sampler.draw import Filters
from astro_jax.sampler.engine import power_of_two, sample_key

CONFIG = tiny_config(max_positions=96)
PARAMS = tiny_params(CONFIG)
SEED, STOP = 11, (12,)
SETTINGS = dict(max_tokens=40, stop=STOP)


def make(max_num_seqs=8, sharding=None, chunk=4, seed=SEED, block=8, **how):
    return Engine(CONFIG, sharding or one_device(), seed, max_num_seqs=slots, num_scheduler_steps=chunk, block_size=block, **how)


def prefixes(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [tuple(rng.integers(1, 20, n).tolist()) for n in lengths]


def requests(*lengths, n=2):
    return [Request(prefix, n, ("test", i)) for i, prefix in enumerate(prefixes(*lengths))]


REQUESTS = requests(1, 3, 3, 17, 8, n=3)


# ---- The reference: whole forward passes, one row at a time


@functools.partial(jax.jit, static_argnums=2)
def next_logprobs(tokens, length, config=CONFIG):
    """Log-probabilities of the token after the first `length` of tokens [S]; what follows is not seen."""
    logits = llama.forward(PARAMS, tokens[None], config)[0]
    return jax.nn.log_softmax(logits[length - 1])


uniform = jax.jit(lambda key, position: jax.random.uniform(jax.random.fold_in(key, position)))


def reference(request, sample, temperature, max_tokens=40, stop=STOP, seed=SEED):
    """(tokens, log-probabilities, stopped) by inverting the distribution function of logits without a cache."""
    key = jnp.asarray(sample_key(seed, request.name, sample))
    tokens, logprobs = list(request.prefix), []
    while len(tokens) < len(request.prefix) + max_tokens:
        padded = np.zeros(96, np.int32)
        padded[: len(tokens)] = tokens
        logp = np.asarray(next_logprobs(padded, len(tokens)), np.float64)
        if temperature:
            p = np.exp(logp / temperature)
            u = float(uniform(key, len(tokens) - 1))  # named by the position of the token before
            tokens.append(int(np.searchsorted(np.cumsum(p) / p.sum(), u)))
        else:
            tokens.append(int(np.argmax(logp)))
        logprobs.append(logp[tokens[-1]])
        if tokens[-1] in stop:
            break
    return tokens[len(request.prefix) :], logprobs, tokens[-1] in stop


def check(samples, asked, temperature, **settings):
    for request, group in zip(asked, samples, strict=True):
        assert len(group) == request.n
        for j, sample in enumerate(group):
            tokens, logprobs, stopped = reference(request, j, temperature, **settings)
            assert sample.token_ids.tolist() == tokens and sample.stopped == stopped
            np.testing.assert_allclose(sample.logprobs, logprobs, atol=1e-5)


def as_lists(samples):
    return [[(s.token_ids.tolist(), s.stopped) for s in group] for group in samples]


def test_greedy_equals_a_loop_without_a_cache():
    asked = requests(1, 17, 8, 12, n=1)
    samples = make().generate(PARAMS, asked, **SETTINGS, temperature=0.0)
    check(samples, asked, 0.0)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampled_tokens_equal_the_draws_from_logits_without_a_cache(temperature):
    samples = make().generate(PARAMS, REQUESTS, **SETTINGS, temperature=temperature)
    check(samples, REQUESTS, temperature)
    samples = [s for group in samples for s in group]
    assert len({tuple(s.tokens) for s in samples}) > 10  # they are not all alike
    assert max(len(s.tokens) for s in samples) == 40  # over several blocks, and round the ring


def test_log_probabilities_are_the_policys_at_any_temperature():
    hot = make().generate(PARAMS, REQUESTS[:1], **SETTINGS, temperature=3.0)
    check(hot, REQUESTS[:1], 3.0)
    for sample in hot[0]:  # and what it was drawn from is told beside
        tokens = list(REQUESTS[0].prefix)
        for token, drawn in zip(sample.token_ids.tolist(), sample.sampling_logprobs, strict=True):
            padded = np.zeros(96, np.int32)
            padded[: len(tokens)] = tokens
            assert drawn == pytest.approx(
                float(jax.nn.log_softmax(next_logprobs(padded, len(tokens)) / 3)[token]), abs=1e-5
            )
            tokens.append(token)


# ---- A sample does not depend on what it is drawn with


def assert_same(samples, expected):
    assert as_lists(samples) == as_lists(expected)
    for a, b in zip(itertools.chain(*samples), itertools.chain(*expected), strict=True):
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)


@functools.cache
def expected():
    return make().generate(PARAMS, REQUESTS, **SETTINGS)


@pytest.mark.parametrize("slots, chunk, block", [(3, 4, 8), (8, 16, 4), (16, 8, 32), (1, 40, 16)])
def test_other_slots_chunks_and_blocks_give_the_same_samples(slots, chunk, block):
    assert_same(make(max_num_seqs=slots, chunk=chunk, block=block).generate(PARAMS, REQUESTS, **SETTINGS), expected())


@pytest.mark.parametrize("staged, slots, block", [(4, 3, 8), (8, 16, 32)])
def test_columns_staged_as_on_a_tpu_give_the_same_samples(monkeypatch, request, staged, slots, block):
    plain = expected()
    monkeypatch.setitem(cache.STAGE, "cpu", staged)
    decode.make_decode.cache_clear()
    request.addfinalizer(decode.make_decode.cache_clear)  # no other test gets a program with a stage
    assert_same(make(max_num_seqs=slots, block=block).generate(PARAMS, REQUESTS, **SETTINGS), plain)
    sharding = decode_sharding(make_mesh(2, 1, 2))
    params = jax.device_put(PARAMS, llama.params.shardings(CONFIG, sharding))
    assert_same(make(slots, sharding, block=block).generate(params, REQUESTS, **SETTINGS), plain)


@pytest.mark.parametrize("lane", [2, 4, 8, 16])
def test_shared_prefixes_or_not_give_the_same_samples(monkeypatch, lane):
    asked, how = requests(9, 30, 17, n=18), dict(max_tokens=9, stop=STOP)
    monkeypatch.setattr("astro_jax.sampler.engine.LANES", (1,))
    alone = make(max_num_seqs=32).generate(PARAMS, asked, **how)
    monkeypatch.setattr("astro_jax.sampler.engine.LANES", (1, lane))
    sampler = make(max_num_seqs=32)
    assert_same(sampler.generate(PARAMS, asked, **how), alone)
    assert sampler.shape(3 * 18, 3, 30, 9, np.float32)[0].lane == lane


def test_rows_that_are_refilled_or_not_give_the_same_samples():
    busy, idle = make(max_num_seqs=4), make(max_num_seqs=4).static_batching()
    for sampler in (busy, idle):
        assert_same(sampler.generate(PARAMS, REQUESTS, **SETTINGS), expected())
    assert busy.stats.row_steps < idle.stats.row_steps and busy.stats.tokens == idle.stats.tokens


def test_a_long_sample_does_not_hold_up_the_short_ones():
    """One of 80 tokens among 60 of 4: three rows do the rest meanwhile, in the steps that the long one takes alone."""
    long, short = Request((1, 2), 1, ("long",), (80,)), Request((3, 4), 60, ("short",), (4,) * 60)
    sampler = make(max_num_seqs=4, chunk=16)
    samples = sampler.generate(PARAMS, [long, short], max_tokens=80, stop=())
    assert [len(s.tokens) for s in samples[0]] == [80] and {len(s.tokens) for s in samples[1]} == {4}
    assert sampler.stats.row_steps <= 4 * 90


def test_a_prefix_is_computed_once_for_all_its_samples():
    sampler = make(max_num_seqs=8)
    asked = requests(9, 17, n=6)
    sampler.generate(PARAMS, asked, **SETTINGS)
    assert sampler.stats.prefilled == 8 + 16 and sampler.stats.prompt_tokens == 6 * (8 + 16)
    assert sampler.stats.prefix_reuse == pytest.approx(5 / 6)


def test_prefixes_kept_from_call_to_call_give_the_same_samples():
    parents = requests(20, 33, n=3)
    sampler, plain = make(prefix_cache_gib=1e-3), make()
    sampler.reserve(60, 40)  # nothing is kept from before the stores have grown
    with sampler.keeping():
        for round_ in range(3):
            assert_same(*(s.generate(PARAMS, parents, max_tokens=20, stop=STOP) for s in (sampler, plain)))
            more = prefixes(7, 9, seed=round_)
            parents = [Request(r.prefix + new, 3, (round_, *r.name)) for r, new in zip(parents, more, strict=True)]
    # Whole blocks of 8: round 0 computes all, then each child only what is beyond its parent's.
    lengths = [[19 + 7 * i, 32 + 9 * i] for i in range(3)]
    whole = [[n // 8 * 8 for n in each] for each in lengths]
    computed = sum(lengths[0]) + sum(lengths[1]) - sum(whole[0]) + sum(lengths[2]) - sum(whole[1])
    assert sampler.stats.prefilled == computed < plain.stats.prefilled == sum(map(sum, lengths))
    before = sampler.stats.prefilled
    last = [Request(r.prefix[: n + 1], r.n, r.name) for r, n in zip(parents, lengths[2], strict=True)]
    sampler.generate(PARAMS, last, max_tokens=20, stop=STOP)  # outside nothing is kept
    assert sampler.stats.prefilled == before + sum(lengths[2])


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


WIDE = tiny_config(max_positions=96, n_heads=8, n_kv_heads=4, d_ff=32)  # four key-value heads, over four devices
WIDE_PARAMS = tiny_params(WIDE)


@functools.cache
def of_one_device():
    return Engine(WIDE, one_device(), SEED, max_num_seqs=16, num_scheduler_steps=8, block_size=8).generate(WIDE_PARAMS, UNEVEN, **SETTINGS)


UNEVEN = [
    Request(p, n, (i,)) for i, (p, n) in enumerate(zip(prefixes(1, 3, 30, 17, 8, 50), (3, 1, 5, 4, 20, 2), strict=True))
]


@pytest.mark.parametrize("data, fsdp, tp", [(2, 1, 4), (4, 1, 2), (8, 1, 1), (2, 2, 2)])
def test_a_mesh_gives_the_samples_of_one_device(data, fsdp, tp):
    sharding = decode_sharding(make_mesh(data, fsdp, tp))
    params = jax.device_put(WIDE_PARAMS, llama.params.shardings(WIDE, sharding))
    sampler = Engine(WIDE, sharding, SEED, max_num_seqs=16, num_scheduler_steps=8, block_size=8)
    assert_same(sampler.generate(params, UNEVEN, **SETTINGS), of_one_device())


def test_a_decode_step_moves_no_cache_between_devices():
    """Between the devices of tp, sums of activations; between those of data, nothing but the count of live rows."""
    sharding = decode_sharding(make_mesh(4, 1, 2))
    text = decode_program(WIDE, sharding, Shape(16, 4, 2, 2, 8, 4)).as_text()
    moved = re.findall(r"= \(?([a-z0-9]+)\[([\d,]*)\]\S* (all-gather|all-to-all|collective-permute|all-reduce)\(", text)
    assert moved
    rows = 16 // 4
    most = rows * WIDE.vocab_size  # the logits of a device's rows
    assert max(math.prod(map(int, filter(None, shape.split(",")))) for _, shape, _ in moved) <= most


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
    samples = make(max_num_seqs=4).generate(PARAMS, asked, max_tokens=6, stop=STOP, progress=seen.append)
    assert sum(seen) == 21 and as_lists(samples) == as_lists(make().generate(PARAMS, asked, max_tokens=6, stop=STOP))


def test_nothing_asked_for_gives_nothing():
    assert make().generate(PARAMS, [], **SETTINGS) == []
    assert make().generate(PARAMS, [Request((1, 2), 0, ("none",))], **SETTINGS) == [[]]


BAD = [
    ((), "a prefix of 0 tokens .*'bad'.*96 positions"),
    ((1,) * 57, "a prefix of 57 tokens .*'bad'.*lower max_tokens"),
]


@pytest.mark.parametrize("prefix, message", BAD)
def test_a_request_that_cannot_be_served_is_named_and_the_others_finish(prefix, message):
    with pytest.raises(RequestError, match=message) as error:
        make().generate(PARAMS, [*REQUESTS[:2], Request(prefix, 2, ("bad",)), *REQUESTS[2:]], **SETTINGS)
    samples = error.value.samples
    assert samples.pop(2) == []
    assert_same(samples, expected())
    longest = Request((1,) * 56, 1, ("long",))
    ((sample,),) = make().generate(PARAMS, [longest], **SETTINGS)
    assert len(sample.tokens)


def test_logits_that_are_not_numbers_end_their_request_and_the_others_finish():
    """Token 19 embeds as NaN, and ends a sample, so that only prompts hold it; rows that it stood in are used again."""
    head = PARAMS.embed.T if PARAMS.lm_head is None else PARAMS.lm_head
    whole = PARAMS.replace(lm_head=head)
    damaged = whole.replace(embed=PARAMS.embed.at[19].set(jnp.nan))
    good = [Request(tuple(t % 18 + 1 for t in r.prefix), r.n, r.name) for r in REQUESTS]
    asked = [Request((2, 19, 3), 3, ("bad", 1)), *good, Request((19,) * 20, 2, ("bad", 2)), *good]
    how = dict(max_tokens=20, stop=(12, 19))
    samples = make(max_num_seqs=4).generate(whole, good, **how)
    with pytest.raises(RequestError, match=r"logits are not numbers .*'bad'.*1 more of 12 requests") as error:
        make(max_num_seqs=4).generate(damaged, asked, **how)
    assert error.value.samples[0] == error.value.samples[6] == []
    assert_same(error.value.samples[1:6] + error.value.samples[7:], samples + samples)


@pytest.mark.parametrize("max_tokens", [0, -1])
def test_no_new_tokens_is_an_error(max_tokens):
    with pytest.raises(AstroError, match=r"max_tokens is .*at least 1"):
        make().generate(PARAMS, REQUESTS, max_tokens=max_tokens, stop=STOP)


# ---- Stop strings


LETTERS = types.SimpleNamespace(
    ends=STOP, decode=lambda tokens: "".join("abcdefghijklmnopqrst"[t] * (1 + t % 2) for t in tokens)
)


def policy():
    return Policy(make(), PARAMS, LETTERS)


def test_a_stop_string_ends_a_sample_with_the_token_that_completes_it():
    plain = expected()
    texts = [LETTERS.decode(s.tokens) for s in itertools.chain(*plain)]
    string = next(t[i : i + 3] for t in texts if len(t) > 12 for i in range(5, len(t) - 3))
    cut = policy().generate(REQUESTS, stop_strings=["no such", string], **SETTINGS)
    some = 0
    for a, b in zip(itertools.chain(*plain), itertools.chain(*cut), strict=True):
        np.testing.assert_array_equal(a.tokens[: len(b.tokens)], b.tokens)
        assert len(b.tokens) == len(b.logprobs) == len(b.sampling_logprobs)
        if string in LETTERS.decode(a.tokens):
            some += 1
            assert b.stopped and string in LETTERS.decode(b.tokens) and string not in LETTERS.decode(b.tokens[:-1])
        else:
            assert len(a.tokens) == len(b.tokens) and a.stopped == b.stopped
    assert some


def test_a_stop_string_that_never_comes_leaves_the_limit():
    assert_same(policy().generate(REQUESTS, stop_strings=["xyz"], **SETTINGS), expected())


def test_an_empty_stop_string_is_an_error():
    with pytest.raises(AstroError, match="a stop string is not empty"):
        policy().generate(REQUESTS, stop_strings=[""], **SETTINGS)


# ---- Memory


def test_a_budget_gives_fewer_rows_and_the_same_samples():
    sampler = make(max_num_seqs=64, memory=60000 / 2**30)
    assert_same(sampler.generate(PARAMS, REQUESTS, **SETTINGS), expected())
    for shape in sampler.shapes(np.float32):
        assert (
            shape.rows * cache.row_bytes(CONFIG, 8 * shape.prefix_blocks, 8 * shape.suffix_blocks, shape.lane, 4)
            <= 60000
        )
    assert max(shape.rows for shape in sampler.shapes(np.float32)) > 4


def test_a_budget_too_small_for_one_row_is_an_error():
    with pytest.raises(AstroError, match=r"a memory budget of 0.0 MiB .*one lane of 1 rows"):
        make(memory=1e-6).generate(PARAMS, REQUESTS, **SETTINGS)


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


LONG = tiny_config(max_positions=2048)


def test_nothing_compiles_after_warm_up():
    """Prompts of 1 to 1000 tokens, groups of 1 to 64 samples, 1 to 500 new tokens."""
    params, rng = tiny_params(LONG), np.random.default_rng(0)
    sampler = Engine(LONG, one_device(), 0, max_num_seqs=8, block_size=32, prefix_cache_gib=1e-2)
    with sampler.keeping():
        with count_compilations() as compiled:
            sampler.precompile(params, prefix=1000, new=500)
            assert len(compiled) > len(sampler.shapes(np.float32)) > 5  # the counter counts
            compiled.clear()
            ends = [(1, 1, 1), (1000, 64, 500), (1, 64, 500), (1000, 1, 1)]
            drawn = [(rng.integers(1, 1001), rng.integers(1, 65), rng.integers(1, 501)) for _ in range(12)]
            for i, (prompt, n, new) in enumerate(ends + drawn):
                more = prefixes(int(prompt), *rng.integers(1, 1001, i % 3), seed=i)
                asked = [Request(p, int(n) if j == 0 else int(rng.integers(1, 65)), (i, j)) for j, p in enumerate(more)]
                sampler.generate(params, asked, max_tokens=int(new), stop=STOP, temperature=float(i % 3))
    assert compiled == []


def decode_program(config, sharding, shape, chunk=4):
    """The compiled decode program of a shape."""
    stores = (jax.eval_shape(make, shape) for make in decode.make_allocate(config, sharding, jnp.float32))
    where = (cache.prefix_sharding(sharding), cache.suffix_sharding(sharding))
    prefix, suffix = (
        jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), *pair)
        for pair in zip(stores, where, strict=True)
    )
    ints = np.zeros(shape.rows, np.int32)
    rows = decode.Rows(*[ints] * 4, np.zeros((shape.rows, 2), np.uint32), ints)
    span = decode.Span(np.int32(0), np.zeros(shape.prefixes, np.int32), np.zeros(shape.tiles, np.int32), np.int32(0))
    how = Filters(np.float32(1), np.int32(0), np.float32(1), np.float32(0))
    program = decode.make_decode(config, sharding, chunk, False)
    params = llama.params.abstract(config, sharding)
    return program.lower(params, prefix, suffix, rows, span, how, np.zeros(config.vocab_size, bool)).compile()


@pytest.mark.parametrize("lane", [1, 4])  # it did for each layer where a row is a lane: ten times slower
def test_a_decode_step_does_not_copy_a_store(lane):
    shape = Shape(8, lane, 6, 12, 8)
    arrays = re.findall(r"= f32\[([\d,]+)\]\S* ([\w-]+)\(", decode_program(CONFIG, one_device(), shape).as_text())
    for axes in cache.shapes(CONFIG, shape):
        size = math.prod(axes) * CONFIG.n_kv_heads * CONFIG.head_dim * shape.block
        made_by = {operation for dims, operation in arrays if math.prod(map(int, dims.split(","))) == size}
        assert made_by and "copy" not in made_by  # the ring is written in place, the prefixes are only read


def test_the_last_samples_go_on_in_smaller_batches():
    sampler, shapes = make(), []
    asked = [Request((1, 2, 3), 8, ("x",), (4, 4, 4, 4, 8, 8, 16, 40))]
    programs = sampler._programs(jnp.dtype("float32"), False)

    def watched(*args):
        shapes.append(len(args[3].token))
        return programs.decode(*args)

    sampler._programs = lambda *_: dataclasses.replace(programs, decode=watched)
    (samples,) = sampler.generate(PARAMS, asked, max_tokens=40, stop=())
    assert [len(s.tokens) for s in samples] == [4, 4, 4, 4, 8, 8, 16, 40]
    assert sorted(set(shapes), reverse=True) == [8, 4, 2, 1]
    ((alone,),) = make().generate(PARAMS, [Request((1, 2, 3), 1, ("x",))], max_tokens=40, stop=())
    (first,) = make().generate(PARAMS, [Request((1, 2, 3), 8, ("x",))], max_tokens=40, stop=())
    assert as_lists([[alone]]) == as_lists([first[:1]])
    np.testing.assert_array_equal(samples[7].tokens, first[7].tokens)


@pytest.mark.parametrize("n, rounded", [(0, 1), (1, 1), (2, 2), (3, 4), (16, 16), (17, 32), (1000, 1024)])
def test_power_of_two(n, rounded):
    assert power_of_two(n) == rounded


def test_keys_are_named_by_seed_name_and_sample():
    names = [(0, ("a", 1), 0), (1, ("a", 1), 0), (0, ("a", 2), 0), (0, ("a", "1"), 0), (0, ("a", 1), 1)]
    assert len({tuple(sample_key(*name)) for name in names}) == len(names)
    assert sample_key(0, ("a", 1), 0).dtype == np.uint32
