"""Rates against closed formulas."""

import math

import pytest

from astro_jax.evaluate.metrics import success_rate


@pytest.mark.parametrize("right, n", [(0, 5), (5, 5), (1, 30), (300, 1024), (1, 1)])
def test_success_rate_has_wilson_interval(right, n):
    z, p = 1.959963984540054, right / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert success_rate([True] * right + [False] * (n - right)) == {
        "mean": round(p, 4), "low": pytest.approx(middle - half, abs=6e-5),
        "high": pytest.approx(middle + half, abs=6e-5), "n": n,
    }  # fmt: skip
