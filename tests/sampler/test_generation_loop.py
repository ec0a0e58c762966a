"""What a call computes: rows, prefixes, memory and compiled programs."""

import math
import re

import jax
import numpy as np
import pytest
from engines import (
    CONFIG,
    FLOAT32,
    PARAMS,
    REQUESTS,
    as_lists,
    assert_same,
    engine,
    expected,
    make_requests,
    prompts,
    sampling,
)
from helpers import count_compilations, one_device, tiny_config, tiny_params

from astro_jax import llama
from astro_jax.errors import AstroError
from astro_jax.mesh import decode_sharding, make_mesh
from astro_jax.sampler import Request, attention, kv_cache, programs
from astro_jax.sampler.engine import completion_key, power_of_two
from astro_jax.sampler.kv_cache import CacheLayout
from astro_jax.sampler.sample import SamplingInputs


def record_decode_inputs(engine):
    """Make an engine record the inputs of its decode programs; return the list."""
    inputs, make_programs = [], engine._programs

    def recorded_programs(*args):
        made = make_programs(*args)

        def decode(params, prefix, completion, decode_inputs, *rest):
            inputs.append(jax.tree.map(np.copy, decode_inputs))
            return made.decode(params, prefix, completion, decode_inputs, *rest)

        return made._replace(decode=decode)

    engine._programs = recorded_programs
    return inputs


def test_the_worked_example_of_the_documentation():
    """docs/sampler.md: prompts of 3 and 5 tokens with 2 completions each, and a third that waits for a row."""
    small = engine(max_num_seqs=4, block_size=4, num_scheduler_steps=16, reserve=False)
    a, b, c = prompts(5, 3, 5)
    requests = [
        Request(a, 2, ("A",), (8, 8)),
        Request(b, 2, ("B",), (8, 2)),
        Request(c, 1, ("C",), (8,)),
    ]
    layout, sizes = small.choose_layout(5, 3, 5, 8, FLOAT32)
    assert layout.group_size == 2 and sizes == [1, 2, 4]
    assert small.prefill_batches == {4: [16, 128], 1: [64, 512]}
    inputs = record_decode_inputs(small)
    small.generate(PARAMS, requests, sampling(8, stop_token_ids=()))
    assert small.reserved == (1, 2)
    layout = CacheLayout(num_seqs=4, group_size=2, prefix_blocks=1, completion_blocks=2, block_size=4)
    cache = kv_cache.abstract(CONFIG, one_device(), FLOAT32, layout)
    assert cache.prefix.k.shape == (2, 1, 4, 2, 4, 4) and cache.completion.k.shape == (2, 2, 4, 1, 2, 4, 4)

    first, second, third = inputs[:3]
    assert first.token.tolist() == [b[2], b[2], a[4], a[4]]
    assert first.position.tolist() == first.length.tolist() == [2, 2, 4, 4]
    assert first.prefix_slot.tolist() == [0, 0, 0, 0] and first.left.tolist() == [8, 2, 8, 8]
    assert first.prefix_blocks.tolist() == [1, 0] and first.oldest.tolist() == [0, 0, 0, 0]
    assert (first.step, first.min_live) == (0, 3)

    assert second.token[1] == c[4] and second.position.tolist() == [4, 4, 6, 6]
    assert second.length.tolist() == [2, 4, 4, 4] and second.prefix_slot.tolist() == [0, 1, 0, 0]
    assert second.left.tolist() == [6, 8, 6, 6]
    assert second.prefix_blocks.tolist() == [1, 1] and second.oldest.tolist() == [0, 2, 0, 0]
    assert (second.step, second.min_live) == (2, 2)

    assert third.step == 8 and third.left.tolist() == [2]  # only C is left, alone in a batch of one row


def test_a_long_completion_does_not_hold_up_the_short_ones():
    """One of 40 tokens among 30 of 4: three rows decode the short ones in the steps that the long one takes alone."""
    long, short = Request((1, 2), 1, ("long",), (40,)), Request((3, 4), 30, ("short",), (4,) * 30)
    small = engine(max_num_seqs=4)
    completions = small.generate(PARAMS, [long, short], sampling(stop_token_ids=()))
    assert [len(c.token_ids) for c in completions[0]] == [40] and {len(c.token_ids) for c in completions[1]} == {4}
    assert small.stats.row_steps <= 4 * 45


def test_the_last_completions_go_on_in_smaller_batches():
    shrinking = engine()
    inputs = record_decode_inputs(shrinking)
    request = Request((1, 2, 3), 8, ("x",), (4, 4, 4, 4, 8, 8, 16, 40))
    settings = sampling(stop_token_ids=())
    (completions,) = shrinking.generate(PARAMS, [request], settings)
    assert [len(c.token_ids) for c in completions] == [4, 4, 4, 4, 8, 8, 16, 40]
    assert sorted({len(i.token) for i in inputs}, reverse=True) == [8, 4, 2, 1]
    ((alone,),) = engine().generate(PARAMS, [Request((1, 2, 3), 1, ("x",))], settings)
    (whole,) = engine().generate(PARAMS, [Request((1, 2, 3), 8, ("x",))], settings)
    assert as_lists([[alone]]) == as_lists([whole[:1]])
    np.testing.assert_array_equal(completions[7].token_ids, whole[7].token_ids)


# ---- Prefixes


def test_a_prompt_is_computed_once_for_all_its_completions():
    counted = engine()
    counted.generate(PARAMS, make_requests(9, 17, n=6), sampling())
    assert counted.stats.prefilled == 8 + 16 and counted.stats.prompt_tokens == 6 * (8 + 16)
    assert counted.stats.prefix_reuse == pytest.approx(5 / 6)


@pytest.mark.slow
def test_a_prefix_cache_gives_the_same_completions_and_computes_less():
    parents = make_requests(20, 33, n=3)
    cached, plain = engine(prefix_cache_gib=1e-3), engine()
    for either in (cached, plain):
        either.reserve(60, 40)  # longer caches would drop the prefixes
    prefix_cache = cached.new_prefix_cache()
    for i in range(3):
        completions = cached.generate(PARAMS, parents, sampling(20), prefix_cache=prefix_cache)
        assert_same(completions, plain.generate(PARAMS, parents, sampling(20)))
        more = prompts(7, 9, seed=i)
        parents = [
            Request(r.prompt_token_ids + new, 3, (i, *r.request_id)) for r, new in zip(parents, more, strict=True)
        ]
    # Whole blocks of 8: the first call computes all; then each child computes what its parent's prompt does not hold.
    lengths = [[19 + 7 * i, 32 + 9 * i] for i in range(3)]
    whole = [[n // 8 * 8 for n in pair] for pair in lengths]
    computed = sum(lengths[0]) + sum(lengths[1]) - sum(whole[0]) + sum(lengths[2]) - sum(whole[1])
    assert cached.stats.prefilled == computed < plain.stats.prefilled == sum(map(sum, lengths))
    before = cached.stats.prefilled
    last = [Request(r.prompt_token_ids[: n + 1], r.n, r.request_id) for r, n in zip(parents, lengths[2], strict=True)]
    cached.generate(PARAMS, last, sampling(20))  # a call without the prefix cache
    assert cached.stats.prefilled == before + sum(lengths[2])


# ---- Memory


def test_kv_cache_gib_gives_fewer_rows_and_the_same_completions():
    small = engine(max_num_seqs=64, kv_cache_gib=60000 / 2**30, reserve=False)
    assert_same(small.generate(PARAMS, REQUESTS, sampling()), expected())
    for layout in small.layouts(FLOAT32):
        columns = (8 * layout.prefix_blocks, 8 * layout.completion_blocks)
        size = kv_cache.bytes_per_sequence(kv_cache.bytes_per_column(CONFIG, 4), *columns, layout.group_size)
        assert layout.num_seqs * size <= 60000
    assert max(layout.num_seqs for layout in small.layouts(FLOAT32)) > 4


def test_kv_cache_gib_too_small_for_one_sequence_is_an_error():
    with pytest.raises(AstroError, match=r"kv_cache_gib=9.54e-07 .*one prefix group of 1 rows"):
        engine(kv_cache_gib=2**-20).generate(PARAMS, REQUESTS, sampling())


# ---- Programs


@pytest.mark.slow
def test_nothing_compiles_after_precompile():
    """Prompts of 1 to 32 blocks, 1 to 64 completions, 1 to 16 blocks of new tokens."""
    config, rng = tiny_config(max_positions=512), np.random.default_rng(0)
    params = tiny_params(config)
    small = engine(max_num_seqs=4, num_scheduler_steps=16, config=config, prefix_cache_gib=1e-2, reserve=False)
    prefix_cache = small.new_prefix_cache()
    with count_compilations() as compiled:
        small.precompile(params, prompt=250, new=125, prefix_cache=prefix_cache)
        assert len(compiled) > len(small.layouts(FLOAT32)) > 5  # the counter counts
        compiled.clear()
        ends = [(1, 1, 1), (250, 64, 125), (1, 64, 125), (250, 1, 1)]
        others = [(rng.integers(1, 251), rng.integers(1, 65), rng.integers(1, 126)) for _ in range(8)]
        for i, (length, n, new) in enumerate(ends + others):
            more = prompts(int(length), *rng.integers(1, 251, i % 3), seed=i)
            requests = [Request(p, int(n) if j == 0 else int(rng.integers(1, 65)), (i, j)) for j, p in enumerate(more)]
            settings = sampling(int(new), temperature=float(i % 3))
            small.generate(params, requests, settings, prefix_cache=prefix_cache)
    assert compiled == []


def compiled_decode(config, sharding, layout):
    """The text of the compiled decode program of a layout."""
    cache = kv_cache.abstract(config, sharding, FLOAT32, layout)
    n, zero = np.zeros(layout.num_seqs, np.int32), np.int32(0)
    key, blocks = np.zeros((layout.num_seqs, 2), np.uint32), np.zeros(layout.prefixes_per_group, np.int32)
    inputs = programs.DecodeInputs(n, n, n, n, key, n, zero, blocks, np.zeros(layout.row_groups, np.int32), zero)
    program = programs.make_decode(config, sharding, 4, False)
    params, stop_tokens = llama.params.abstract(config, sharding), np.zeros(config.vocab_size, bool)
    lowered = program.lower(params, cache.prefix, cache.completion, inputs, SamplingInputs.of(sampling()), stop_tokens)
    return lowered.compile({"xla_cpu_use_fusion_emitters": True}).as_text()  # as outside of the tests


@pytest.mark.parametrize("group_size", [1, 4])  # a copy for each layer in groups of one row was ten times slower
def test_a_decode_step_does_not_copy_the_cache(group_size):
    layout = CacheLayout(8, group_size, 6, 12, 8)
    arrays = re.findall(r"= f32\[([\d,]+)\]\S* ([\w-]+)\(", compiled_decode(CONFIG, one_device(), layout))
    for axes in (kv_cache.prefix_axes(CONFIG, layout), kv_cache.completion_axes(CONFIG, layout)):
        size = math.prod(axes) * CONFIG.n_kv_heads * CONFIG.head_dim * layout.block_size
        operations = {operation for dims, operation in arrays if math.prod(map(int, dims.split(","))) == size}
        assert operations and "copy" not in operations  # the ring buffer is written in place, prefixes are only read


@pytest.mark.parametrize("loopless", [False, True])
def test_on_a_gpu_decode_has_no_loop_of_unknown_length_but_that_over_tokens(monkeypatch, request, loopless):
    """The card waits for the host before each turn of such a loop; the loop over layers has a known length."""
    monkeypatch.setattr(attention, "LOOPLESS_PLATFORMS", {"cpu"} if loopless else set())
    programs.make_decode.cache_clear()
    request.addfinalizer(programs.make_decode.cache_clear)
    text = compiled_decode(CONFIG, one_device(), CacheLayout(8, 4, 6, 12, 8))
    loops = [line for line in text.splitlines() if " while(" in line and "known_trip_count" not in line]
    assert (len(loops) == 1) == loopless


def test_a_decode_step_moves_no_cache_between_devices():
    """Devices of tp exchange sums of activations; devices of data exchange only the number of live rows."""
    wide = tiny_config(max_positions=96, n_heads=8, n_kv_heads=4, d_ff=32)
    text = compiled_decode(wide, decode_sharding(make_mesh(4, 1, 2)), CacheLayout(16, 4, 2, 2, 8, 4))
    moved = re.findall(r"= \(?([a-z0-9]+)\[([\d,]*)\]\S* (all-gather|all-to-all|collective-permute|all-reduce)\(", text)
    assert moved
    logits = 16 // 4 * wide.vocab_size  # of a device's rows
    assert max(math.prod(map(int, filter(None, shape.split(",")))) for _, shape, _ in moved) <= logits


@pytest.mark.parametrize("n, rounded", [(0, 1), (1, 1), (2, 2), (3, 4), (16, 16), (17, 32), (1000, 1024)])
def test_power_of_two(n, rounded):
    assert power_of_two(n) == rounded


def test_completion_keys_differ_by_seed_request_id_and_index():
    names = [(0, ("a", 1), 0), (1, ("a", 1), 0), (0, ("a", 2), 0), (0, ("a", "1"), 0), (0, ("a", 1), 1)]
    assert len({tuple(completion_key(*name)) for name in names}) == len(names)
    assert completion_key(0, ("a", 1), 0).dtype == np.uint32
