"""The prefix cache: which prefixes it finds and drops, and when it allocates its buffer."""

import numpy as np
from engines import PARAMS, engine, make_requests, sampling
from helpers import one_device, tiny_config

from astro_jax.sampler.kv_cache import CacheLayout
from astro_jax.sampler.model_runner import ModelRunner
from astro_jax.sampler.prefix_cache import PrefixCache, PrefixIndex

FLOAT32 = np.dtype("float32")


def test_the_index_evicts_the_least_recently_used_prefix():
    index = PrefixIndex(2, block_size=4)
    a, b, c = (1,) * 9, (1,) * 4 + (2,) * 6, (3,) * 4
    assert index.find(a) == (0, 0)
    first, second = index.add(a), index.add(b)
    assert {first, second} == {0, 1} and index.add((1,) * 8) is None and index.add((1, 2)) is None
    assert index.find((1,) * 11) == (first, 2) and index.find((1, 1, 1, 1, 2, 2, 2)) == (second, 1)
    assert index.find(a) == (first, 2)
    assert index.add(c) == second  # b was used before a
    assert index.find(b)[1] in (0, 1) and index.find(c) == (second, 1) and index.find(a) == (first, 2)


def test_the_buffer_is_allocated_once_and_anew_for_longer_caches():
    config, cache = tiny_config(), PrefixCache(gib=10 * 128 * 16 / 2**30)  # 128 bytes a column
    assert cache.buffer is None and cache.index is None
    cache.prepare(config, one_device(), FLOAT32, CacheLayout(8, 4, 2, 1, 8))
    buffer, index = cache.buffer, cache.index
    assert buffer.k.shape == (2, 2, 10, 2, 4, 8)  # ten entries of two blocks
    cache.prepare(config, one_device(), FLOAT32, CacheLayout(16, 1, 2, 1, 8))
    assert cache.buffer is buffer and cache.index is index
    index.add((1,) * 8)
    cache.prepare(config, one_device(), FLOAT32, CacheLayout(8, 4, 4, 1, 8))
    assert cache.buffer.k.shape == (2, 4, 5, 2, 4, 8) and cache.index.find((1,) * 8) == (0, 0)


def test_a_prefix_cache_without_memory_keeps_nothing():
    cache = PrefixCache(gib=0.0)
    cache.prepare(tiny_config(), one_device(), FLOAT32, CacheLayout(8, 4, 2, 1, 8))
    assert cache.buffer is None and cache.index is None


def test_a_cache_with_few_entries_writes_each_entry_once_in_a_copy(monkeypatch):
    """The order of writes to one place is undefined: the index could name another prompt than the entry holds."""
    copies = []
    copy = ModelRunner.copy

    def record(self, to, from_, what):
        copies.append([c.target for c in what])
        return copy(self, to, from_, what)

    monkeypatch.setattr(ModelRunner, "copy", record)
    small = engine(max_num_seqs=8, prefix_cache_gib=2e-5)
    prefix_cache = small.new_prefix_cache()
    small.generate(PARAMS, make_requests(*range(9, 21), n=1), sampling(2), prefix_cache=prefix_cache)
    assert 0 < prefix_cache.buffer.keys.shape[2] < 8
    assert any(copies) and all(len(set(targets)) == len(targets) for targets in copies)
