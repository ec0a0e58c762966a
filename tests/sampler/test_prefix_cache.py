"""The prefix cache: which prefixes it finds and drops, and when it allocates its buffer."""

import numpy as np
from helpers import one_device, tiny_config

from astro_jax.sampler.kv_cache import CacheLayout
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
