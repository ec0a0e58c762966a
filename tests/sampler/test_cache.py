"""What the stores of keys and values take, against a count by hand and against what is allocated."""

import jax
import jax.numpy as jnp
import pytest
from helpers import one_device, tiny_config

from astro_jax.errors import AstroError
from astro_jax.mesh import decode_sharding, make_mesh
from astro_jax.sampler import cache, decode
from astro_jax.sampler.cache import Shape

CONFIG = tiny_config()


def test_rows_that_fit_a_budget_by_hand():
    # 2 layers, keys and values, 2 heads of 4, float32: 128 bytes a column. A row has 24; 4 rows share two prefixes.
    assert cache.row_bytes(CONFIG, 40, 24, 4, 4) == 128 * 24 + 128 * 80 // 4 == 5632
    assert cache.row_bytes(CONFIG, 40, 24, 1, 4) == 128 * 64
    assert cache.rows_that_fit(5632 * 12, CONFIG, 40, 24, 4, 4, one_device()) == 12
    assert cache.rows_that_fit(5632 * 12 - 1, CONFIG, 40, 24, 4, 4, one_device()) == 8
    mesh = decode_sharding(make_mesh(2, 1, 2))  # four devices, rows over two of them
    assert cache.rows_that_fit(5632 * 4, CONFIG, 40, 24, 4, 4, mesh) == 16
    with pytest.raises(AstroError, match="does not hold one lane of 4 rows with 40 \\+ 24 tokens"):
        cache.rows_that_fit(5632 * 4 - 1, CONFIG, 40, 24, 4, 4, one_device())


@pytest.mark.parametrize("lane", [1, 4])
def test_the_formula_is_what_is_allocated(lane):
    shape = Shape(16, lane, 5, 3, 8)
    stores = [make(shape) for make in decode.make_allocate(CONFIG, one_device(), jnp.float32)]
    assert sum(x.nbytes for x in jax.tree.leaves(stores)) == 16 * cache.row_bytes(CONFIG, 40, 24, lane, 4)
