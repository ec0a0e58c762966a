"""The engine against an autoregressive loop without a cache, and against itself in other batches."""

import functools
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engines import (
    CONFIG,
    PARAMS,
    REQUESTS,
    SEED,
    STOP,
    as_lists,
    assert_same,
    engine,
    expected,
    make_requests,
    prompts,
    sampling,
    uniform,
)
from helpers import tiny_config, tiny_params

from astro_jax import llama
from astro_jax.mesh import decode_sharding, make_mesh
from astro_jax.policy import Policy
from astro_jax.sampler import Request, RequestError, attention, programs, write_buffer
from astro_jax.sampler.engine import completion_key

# ---- The reference: whole forward passes, one row at a time


@functools.partial(jax.jit, static_argnums=2)
def next_logprobs(tokens, length, config=CONFIG):
    """Log-probabilities of the token after the first `length` of tokens [S]."""
    logits = llama.forward(PARAMS, tokens[None], config)[0]
    return jax.nn.log_softmax(logits[length - 1])


def padded(tokens):
    return np.pad(np.asarray(tokens, np.int32), (0, 96 - len(tokens)))


def reference(request, index, temperature, max_tokens=40, stop=STOP, seed=SEED):
    """(tokens, log-probabilities, stopped) by inverting the distribution function of logits without a cache."""
    key = jnp.asarray(completion_key(seed, request.request_id, index))
    prompt = request.prompt_token_ids
    tokens, logprobs = list(prompt), []
    while len(tokens) < len(prompt) + max_tokens:
        logp = np.asarray(next_logprobs(padded(tokens), len(tokens)), np.float64)
        if temperature:
            p = np.exp(logp / temperature)
            u = float(uniform(key, len(tokens) - 1))  # named by the position of the token before
            tokens.append(int(np.searchsorted(np.cumsum(p) / p.sum(), u)))
        else:
            tokens.append(int(np.argmax(logp)))
        logprobs.append(logp[tokens[-1]])
        if tokens[-1] in stop:
            break
    return tokens[len(prompt) :], logprobs, tokens[-1] in stop


def assert_equals_reference(completions, requests, temperature):
    for request, group in zip(requests, completions, strict=True):
        assert len(group) == request.n
        for i, completion in enumerate(group):
            tokens, logprobs, stopped = reference(request, i, temperature)
            assert completion.token_ids.tolist() == tokens and completion.stopped == stopped
            np.testing.assert_allclose(completion.logprobs, logprobs, atol=1e-5)


def test_greedy_equals_a_loop_without_a_cache():
    requests = make_requests(1, 17, 8, 12, n=1)
    assert_equals_reference(engine().generate(PARAMS, requests, sampling(temperature=0.0)), requests, 0.0)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampled_tokens_equal_those_of_a_loop_without_a_cache(temperature):
    completions = engine().generate(PARAMS, REQUESTS, sampling(temperature=temperature))
    assert_equals_reference(completions, REQUESTS, temperature)
    completions = [c for group in completions for c in group]
    assert len({tuple(c.token_ids) for c in completions}) > 10  # they are not all alike
    assert max(len(c.token_ids) for c in completions) == 40  # over several blocks, and round the ring buffer


def test_logprobs_are_those_of_the_model_and_sampling_logprobs_those_at_the_temperature():
    (group,) = engine().generate(PARAMS, REQUESTS[:1], sampling(temperature=3.0))
    assert_equals_reference([group], REQUESTS[:1], 3.0)
    for completion in group:
        tokens = list(REQUESTS[0].prompt_token_ids)
        for token, logprob in zip(completion.token_ids.tolist(), completion.sampling_logprobs, strict=True):
            scaled = jax.nn.log_softmax(next_logprobs(padded(tokens), len(tokens)) / 3)
            assert logprob == pytest.approx(float(scaled[token]), abs=1e-5)
            tokens.append(token)


def test_frequencies_at_temperature_one_match_the_softmax():
    n, prompt = 1200, (3, 1, 4)
    (completions,) = engine().generate(PARAMS, [Request(prompt, n, ("frequencies",))], sampling(1))
    counts = np.bincount([c.token_ids[0] for c in completions], minlength=20)
    p = np.exp(np.asarray(next_logprobs(padded(prompt), 3), np.float64))
    assert (abs(counts - n * p) < 4 * np.sqrt(n * p * (1 - p)) + 1).all()


# ---- A completion does not depend on its batch


@pytest.mark.slow
@pytest.mark.parametrize("max_num_seqs, steps, block_size", [(3, 16, 4), (16, 8, 32), (1, 40, 16)])
def test_other_batch_sizes_steps_and_blocks_give_the_same_completions(max_num_seqs, steps, block_size):
    other = engine(max_num_seqs, num_scheduler_steps=steps, block_size=block_size)
    assert_same(other.generate(PARAMS, REQUESTS, sampling()), expected())


@pytest.mark.slow
@pytest.mark.parametrize(
    "columns, max_num_seqs, block_size, mesh", [(4, 4, 8, (1, 1, 1)), (8, 16, 32, (1, 1, 1)), (4, 4, 8, (2, 1, 2))]
)
def test_a_write_buffer_as_on_a_tpu_gives_the_same_completions(
    monkeypatch, request, columns, max_num_seqs, block_size, mesh
):
    plain = expected()
    monkeypatch.setitem(write_buffer.WRITE_BUFFER_COLUMNS, "cpu", columns)
    programs.make_decode.cache_clear()
    request.addfinalizer(programs.make_decode.cache_clear)  # no other test gets a program with a write buffer
    sharding = decode_sharding(make_mesh(*mesh))
    params = jax.device_put(PARAMS, llama.params.shardings(CONFIG, sharding))
    buffered = engine(max_num_seqs, sharding, block_size=block_size)
    assert_same(buffered.generate(params, REQUESTS, sampling()), plain)


def programs_as_on_a_gpu(monkeypatch, request):
    """Build programs that read all blocks of the cache at once, on this platform; no other test gets them."""
    monkeypatch.setattr(attention, "LOOPLESS_PLATFORMS", {"cpu"})
    programs.make_decode.cache_clear()
    request.addfinalizer(programs.make_decode.cache_clear)


@pytest.mark.parametrize("quantized", [False, True])
def test_all_blocks_at_once_as_on_a_gpu_give_the_same_completions(monkeypatch, request, quantized):
    options = {"quantization": "int8", "kv_cache_dtype": "int8"} if quantized else {}
    requests = make_requests(9, 30, 17, n=6)

    def generate():
        # Four prompts of several blocks share a prefix group, and 16 columns go round the ring buffer.
        made = engine(max_num_seqs=8, block_size=8, **options)
        return made.generate(made.quantize(PARAMS), requests, sampling())

    loops = generate()
    programs_as_on_a_gpu(monkeypatch, request)
    assert_same(generate(), loops)


@pytest.mark.slow
@pytest.mark.parametrize("data, tp", [(2, 1), (1, 2)])
def test_all_blocks_at_once_on_a_mesh_give_the_same_completions(monkeypatch, request, data, tp):
    plain = expected()
    programs_as_on_a_gpu(monkeypatch, request)
    sharding = decode_sharding(make_mesh(data, 1, tp))
    params = jax.device_put(PARAMS, llama.params.shardings(CONFIG, sharding))
    assert_same(engine(4, sharding).generate(params, REQUESTS, sampling()), plain)


@pytest.mark.slow
@pytest.mark.parametrize("group_size", [2, 4, 16])
def test_shared_prefixes_or_not_give_the_same_completions(monkeypatch, group_size):
    requests = make_requests(9, 30, 17, n=18)
    monkeypatch.setattr("astro_jax.sampler.engine.GROUP_SIZES", (1,))
    alone = engine(max_num_seqs=32).generate(PARAMS, requests, sampling(9))
    monkeypatch.setattr("astro_jax.sampler.engine.GROUP_SIZES", (1, group_size))
    shared = engine(max_num_seqs=32)
    assert_same(shared.generate(PARAMS, requests, sampling(9)), alone)
    assert shared.choose_layout(3 * 18, 3, 30, 9, np.dtype("float32"))[0].group_size == group_size


def test_continuous_and_static_batching_give_the_same_completions():
    continuous = engine(max_num_seqs=4)
    static = continuous.static_batching()
    for batching in (continuous, static):
        assert_same(batching.generate(PARAMS, REQUESTS, sampling()), expected())
    assert continuous.stats.row_steps < static.stats.row_steps and continuous.stats.tokens == static.stats.tokens


def test_alone_or_in_another_order_gives_the_same_completions():
    alone = [engine().generate(PARAMS, [r], sampling())[0] for r in REQUESTS]
    assert as_lists(alone) == as_lists(expected())
    order = [3, 0, 4, 2, 1]
    shuffled = engine().generate(PARAMS, [REQUESTS[i] for i in order], sampling())
    assert as_lists(shuffled) == [as_lists(expected())[i] for i in order]


def test_fewer_completions_of_a_request_are_the_first_of_more():
    fewer = [Request(r.prompt_token_ids, 1, r.request_id) for r in REQUESTS]
    assert as_lists(engine().generate(PARAMS, fewer, sampling())) == [group[:1] for group in as_lists(expected())]


def test_the_seed_and_the_request_id_name_the_random_draws():
    r = REQUESTS[3]
    others = [Request(r.prompt_token_ids, 3, ("other",)), Request(r.prompt_token_ids, 3, r.request_id)]
    one, other_id, same = engine().generate(PARAMS, [r, *others], sampling())
    (other_seed,) = engine(seed=SEED + 1).generate(PARAMS, [r], sampling())
    assert as_lists([one]) == as_lists([same])
    assert len({str(as_lists([x])) for x in (one, other_id, other_seed)}) == 3
    assert len({tuple(c.token_ids) for c in one}) == 3


WIDE = tiny_config(max_positions=96, n_heads=8, n_kv_heads=4, d_ff=32)  # four key-value heads, over four devices
WIDE_PARAMS = tiny_params(WIDE)
UNEVEN = [
    Request(p, n, (i,)) for i, (p, n) in enumerate(zip(prompts(1, 3, 30, 17, 8, 50), (3, 1, 5, 4, 20, 2), strict=True))
]


@functools.cache
def of_one_device():
    return engine(16, config=WIDE, num_scheduler_steps=8).generate(WIDE_PARAMS, UNEVEN, sampling())


@pytest.mark.slow
@pytest.mark.parametrize(
    "data, fsdp, tp",
    [(2, 1, 4), pytest.param(8, 1, 1, marks=pytest.mark.nightly), pytest.param(2, 2, 2, marks=pytest.mark.nightly)],
)
def test_a_mesh_gives_the_completions_of_one_device(data, fsdp, tp):
    sharding = decode_sharding(make_mesh(data, fsdp, tp))
    params = jax.device_put(WIDE_PARAMS, llama.params.shardings(WIDE, sharding))
    sharded = engine(16, sharding, config=WIDE, num_scheduler_steps=8)
    assert_same(sharded.generate(params, UNEVEN, sampling()), of_one_device())


# ---- Ends, limits, errors


def test_completions_end_at_the_first_stop_token_or_at_the_limit():
    completions = [c for group in expected() for c in group]
    for c in completions:
        assert not set(c.token_ids[:-1].tolist()) & set(STOP) and len(c.token_ids) == len(c.logprobs) <= 40
        assert c.stopped == (c.token_ids[-1] in STOP) and (c.stopped or len(c.token_ids) == 40)
    assert {c.finish_reason for c in completions} == {"stop", "length"}


@pytest.mark.parametrize("max_tokens", [1, 5])
def test_a_lower_limit_shortens_the_same_completions(max_tokens):
    shorter = engine().generate(PARAMS, REQUESTS, sampling(max_tokens))
    for a, b in zip(itertools.chain(*expected()), itertools.chain(*shorter), strict=True):
        assert b.token_ids.tolist() == a.token_ids[:max_tokens].tolist()
        assert b.stopped == (a.stopped and len(a.token_ids) <= max_tokens)


def test_more_completions_than_rows_all_end_and_report_progress():
    counts = []
    requests = make_requests(*range(1, 8), n=3)
    completions = engine(max_num_seqs=4).generate(PARAMS, requests, sampling(6), progress=counts.append)
    assert sum(counts) == 21 and as_lists(completions) == as_lists(engine().generate(PARAMS, requests, sampling(6)))


def test_each_completion_is_passed_on_when_it_ends():
    small, passed = engine(max_num_seqs=4), []
    found = small.generate(
        PARAMS, REQUESTS, sampling(), on_completion=lambda r, j, c: passed.append(((r, j), c, small.stats.tokens))
    )
    places = [(r, j) for r, completions in enumerate(found) for j in range(len(completions))]
    assert sorted(place for place, _, _ in passed) == places
    for (r, j), completion, _ in passed:
        np.testing.assert_array_equal(completion.token_ids, found[r][j].token_ids)
        np.testing.assert_array_equal(completion.logprobs, found[r][j].logprobs)
        assert completion.finish_reason == found[r][j].finish_reason
    assert passed[0][2] < passed[-1][2]  # the first one while others are still sampled


def test_no_requests_and_no_completions_give_empty_lists():
    assert engine().generate(PARAMS, [], sampling()) == []
    assert engine().generate(PARAMS, [Request((1, 2), 0, ("none",))], sampling()) == [[]]


BAD = [
    ((), "a prompt of 0 tokens .*'bad'.*96 positions"),
    ((1,) * 57, "a prompt of 57 tokens .*'bad'.*lower max_tokens"),
]


@pytest.mark.parametrize("prompt, message", BAD)
def test_a_request_that_cannot_be_served_is_named_and_the_others_finish(prompt, message):
    with pytest.raises(RequestError, match=message) as error:
        engine().generate(PARAMS, [*REQUESTS[:2], Request(prompt, 2, ("bad",)), *REQUESTS[2:]], sampling())
    completions = error.value.completions
    assert completions.pop(2) == []
    assert_same(completions, expected())
    fitting = Request((1,) * 56, 1, ("long",)), Request((1,) * 90, 1, ("longer",), (6,))
    (completion,), (short,) = engine().generate(PARAMS, fitting, sampling())
    assert len(completion.token_ids) and 0 < len(short.token_ids) <= 6


def test_logits_that_are_not_numbers_end_their_request_and_the_others_finish():
    """Token 19 embeds as NaN and ends a completion, so that only prompts hold it. Its rows are used again."""
    head = PARAMS.embed.T if PARAMS.lm_head is None else PARAMS.lm_head
    whole = PARAMS.replace(lm_head=head)
    damaged = whole.replace(embed=PARAMS.embed.at[19].set(jnp.nan))
    good = [Request(tuple(t % 18 + 1 for t in r.prompt_token_ids), r.n, r.request_id) for r in REQUESTS]
    requests = [Request((2, 19, 3), 3, ("bad", 1)), *good, Request((19,) * 20, 2, ("bad", 2)), *good]
    settings = sampling(20, stop_token_ids=(12, 19))
    completions = engine(max_num_seqs=4).generate(whole, good, settings)
    with pytest.raises(RequestError, match=r"logits are not numbers .*'bad'.*1 more of 12 requests") as error:
        engine(max_num_seqs=4).generate(damaged, requests, settings)
    results = error.value.completions
    assert results[0] == results[6] == []
    assert_same(results[1:6] + results[7:], completions + completions)


# ---- Stop strings


LETTERS = types.SimpleNamespace(
    stop_token_ids=STOP, decode=lambda tokens: "".join("abcdefghijklmnopqrst"[t] * (1 + t % 2) for t in tokens)
)


def test_a_stop_string_ends_a_completion_with_the_token_that_completes_it():
    plain = expected()
    texts = [LETTERS.decode(c.token_ids) for c in itertools.chain(*plain)]
    string = next(t[i : i + 3] for t in texts if len(t) > 12 for i in range(5, len(t) - 3))
    policy = Policy(engine(), PARAMS, LETTERS)
    stopped = policy.generate(REQUESTS, sampling(stop_token_ids=None, stop=("no such", string)))
    count = 0
    for a, b in zip(itertools.chain(*plain), itertools.chain(*stopped), strict=True):
        np.testing.assert_array_equal(a.token_ids[: len(b.token_ids)], b.token_ids)
        assert len(b.token_ids) == len(b.logprobs) == len(b.sampling_logprobs)
        if string in LETTERS.decode(a.token_ids):
            count += 1
            assert b.stopped
            assert string in LETTERS.decode(b.token_ids) and string not in LETTERS.decode(b.token_ids[:-1])
        else:
            assert len(a.token_ids) == len(b.token_ids) and a.stopped == b.stopped
    assert count


def test_a_stop_string_that_never_comes_changes_nothing():
    policy = Policy(engine(), PARAMS, LETTERS)
    assert_same(policy.generate(REQUESTS, sampling(stop=("xyz",))), expected())
