"""The regression within problems, against least squares with a dummy variable for each problem, and known slopes."""

import numpy as np
import pytest

from astro_jax.evaluate import statistics, within_problems

PROBLEMS, N = 100, 8


def simulate(seed, of_backtracks=0.04, of_tokens=-0.003):
    """Answers [PROBLEMS, N] whose expected `right` has these slopes. Hard problems get long answers, and are missed."""
    rng = np.random.default_rng(seed)
    difficulty = rng.uniform(0, 1, (PROBLEMS, 1))
    backtracks = rng.poisson(1 + 4 * difficulty, (PROBLEMS, N)).astype(float)
    tokens = 20 + 10 * backtracks + rng.normal(0, 30, (PROBLEMS, N))
    right = 0.9 - 0.8 * difficulty + of_backtracks * backtracks + of_tokens * tokens + rng.normal(0, 0.2, (PROBLEMS, N))
    return backtracks, tokens, right


def sums(backtracks, tokens, right):
    return np.asarray([within_problems.sums(*cell) for cell in zip(backtracks, tokens, right, strict=True)])


def dummies(right, *regressors):
    """Least squares with a dummy variable for each problem."""
    columns = np.stack([x.ravel() for x in regressors], -1)
    of_problem = np.repeat(np.eye(PROBLEMS), N, axis=0)
    return np.linalg.lstsq(np.hstack([columns, of_problem]), right.ravel(), rcond=None)[0][: len(regressors)]


def test_slopes_equal_least_squares_with_dummy_variables():
    b, t, y = simulate(0)
    total = sums(b, t, y).sum(0)
    assert within_problems.of_backtracks(total) == pytest.approx(dummies(y, b)[0])
    assert within_problems.of_tokens(total) == pytest.approx(dummies(y, t)[0])
    both = [f(total) for f in (within_problems.of_backtracks_at_equal_tokens,
                               within_problems.of_tokens_at_equal_backtracks)]  # fmt: skip
    np.testing.assert_allclose(both, dummies(y, b, t))


def test_slopes_are_found_where_hard_problems_hide_them():
    b, t, y = simulate(1)
    assert np.polyfit(b.ravel(), y.ravel(), 1)[0] < -0.02  # over all answers, backtracks seem to harm
    values = sums(b, t, y)[None]
    slopes = [statistics.estimate(values, f) for f in (within_problems.of_backtracks_at_equal_tokens,
                                                       within_problems.of_tokens_at_equal_backtracks)]  # fmt: skip
    for slope, truth in zip(slopes, (0.04, -0.003), strict=True):
        assert slope["low"] < truth < slope["high"]
    assert slopes[0]["low"] > 0 > slopes[1]["high"]


def test_intervals_cover_the_slope_in_95_percent_of_simulations():
    covered = 0
    for seed in range(100):
        row = statistics.estimate(sums(*simulate(seed))[None], within_problems.of_backtracks_at_equal_tokens)
        covered += row["low"] <= 0.04 <= row["high"]
    assert 89 <= covered <= 99


def test_what_does_not_vary_or_follows_from_the_other_has_no_slope():
    b, t, y = simulate(2)
    assert statistics.estimate(sums(0 * b, t, y)[None], within_problems.of_backtracks) is None
    values = sums(b, 10 * b + 3, y)[None]
    assert statistics.estimate(values, within_problems.of_backtracks_at_equal_tokens) is None
    assert statistics.estimate(values, within_problems.of_backtracks) is not None
    np.testing.assert_array_equal(within_problems.sums([2], [30], [1]), np.zeros(5))  # one answer has no deviation
