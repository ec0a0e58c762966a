"""The size of the key-value cache: against a count by hand, and against the arrays that are allocated."""

import jax
import jax.numpy as jnp
import pytest
from helpers import one_device, tiny_config

from astro_jax.errors import AstroError
from astro_jax.mesh import decode_sharding, make_mesh
from astro_jax.sampler import kv_cache
from astro_jax.sampler.kv_cache import CacheLayout

CONFIG = tiny_config()


def test_sequences_that_fit_equal_a_count_by_hand():
    # 2 layers, keys and values, 2 heads of 4, float32: 128 bytes a column. A row has 24; 4 rows share two prefixes.
    assert kv_cache.bytes_per_column(CONFIG, 4) == 128
    assert kv_cache.bytes_per_sequence(128, 40, 24, 4) == 128 * 24 + 128 * 80 // 4 == 5632
    assert kv_cache.bytes_per_sequence(128, 40, 24, 1) == 128 * 64
    assert kv_cache.sequences_that_fit(5632 * 12, 128, 40, 24, 4, one_device()) == 12
    assert kv_cache.sequences_that_fit(5632 * 12 - 1, 128, 40, 24, 4, one_device()) == 8
    mesh = decode_sharding(make_mesh(2, 1, 2))  # four devices, rows over two of them
    assert kv_cache.sequences_that_fit(5632 * 4, 128, 40, 24, 4, mesh) == 16
    with pytest.raises(AstroError, match="does not hold one prefix group of 4 rows with 40 \\+ 24 tokens"):
        kv_cache.sequences_that_fit(5632 * 4 - 1, 128, 40, 24, 4, one_device())


@pytest.mark.parametrize("group_size", [1, 4])
def test_allocated_bytes_equal_bytes_per_sequence(group_size):
    layout = CacheLayout(16, group_size, 5, 3, 8)
    cache = kv_cache.abstract(CONFIG, one_device(), jnp.dtype("float32"), layout)
    expected = 16 * kv_cache.bytes_per_sequence(128, 40, 24, group_size)
    assert sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache)) == expected
    if group_size == 4:
        allocated = kv_cache.allocate(CONFIG, one_device(), jnp.dtype("float32"), layout)
        assert sum(x.nbytes for x in jax.tree.leaves(allocated)) == expected
        assert jax.tree.map(lambda x: x.shape, allocated) == jax.tree.map(lambda x: x.shape, cache)


def test_shapes_of_the_cache_are_those_of_the_layout():
    layout = CacheLayout(num_seqs=8, group_size=4, prefix_blocks=2, completion_blocks=3, block_size=16)
    assert (layout.num_groups, layout.prefixes_per_group, layout.num_prefixes, layout.row_groups) == (2, 2, 4, 4)
    cache = kv_cache.abstract(CONFIG, one_device(), jnp.dtype("float32"), layout)
    assert cache.prefix.k.shape == (2, 2, 4, 2, 4, 16) and cache.prefix.v.shape == (2, 2, 4, 2, 16, 4)
    assert cache.completion.k.shape == (2, 3, 4, 2, 2, 4, 16) and cache.completion.v.shape == (2, 3, 4, 2, 2, 16, 4)
