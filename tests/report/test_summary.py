"""The sentences about a run, and the statistics behind its charts."""

import math

import pytest
from fake_run import score

from astro_jax.report import summary
from astro_jax.report.run_folder import Results


def make_results(n=100, **pass_at_1):
    """Results whose models have these pass@1: base=0.5, astro_rl=0.6."""
    means = {"mean_tokens": 1, "mean_backtracks": 0, "valid_rate": 1, "truncated_rate": 0}
    models = {
        name.replace("_", "-"): {"pass@1": score(mean, n), "greedy": score(mean, n)} | means
        for name, mean in pass_at_1.items()
    }
    return Results.model_validate({"seed": 0, "wall_s": 1, "models": models})


def test_headline_says_whether_intervals_overlap_and_which_model_is_behind():
    assert "is 2.0 points ahead, but the intervals overlap" in summary.headline(
        make_results(astro_rl=0.52, direct_rl=0.5)
    )
    behind = summary.headline(make_results(1000, astro_rl=0.3, direct_rl=0.6))
    assert "is 30.0 points behind, and the intervals do not" in behind
    assert "level to within 0.1 point" in summary.headline(make_results(astro_rl=0.5, direct_rl=0.5))
    assert "cannot be compared" in summary.headline(make_results(9, base=0.5))


def test_headline_compares_sft_models_before_rl():
    assert summary.headline(make_results(base=0.2, astro_sft=0.5, direct_sft=0.4)).startswith("ASTRO-SFT solves 50.0%")


def test_pearson_equals_closed_form():
    assert summary.pearson([1, 2, 3], [2, 4, 6]) == pytest.approx(1)
    assert summary.pearson([1, 2, 3], [1, 0, 1]) == pytest.approx(0)
    assert summary.pearson([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8)


def test_pearson_has_no_value_without_variation_or_for_two_points():
    assert summary.pearson([1, 1, 1], [1, 2, 3]) is None
    assert summary.pearson([1, 2, 3], [0.1 + 0.2, 0.3, 0.3]) is None  # equal but for rounding
    assert summary.pearson([1, 2], [1, 2]) is None


def test_correlation_leaves_out_steps_without_both_values():
    rows = [{"mean_backtracks": x, "solve_rate": 2 * x} for x in range(3)]
    held_out = [{"eval_mean_backtracks": x, "eval_solve_rate": -x, **rows[0]} for x in range(4)]
    assert summary.correlation([*held_out, *rows], "eval_") == {"r": pytest.approx(-1), "n": 4}
    assert summary.correlation([*rows, {"mean_backtracks": 5, "solve_rate": math.nan}, {"solve_rate": 1}])["n"] == 3


def test_thinned_curves_keep_means():
    thin = summary.thin([{"step": i, "loss": float(i)} for i in range(10)], max_rows=5)
    assert thin == {"every": 2, "columns": {"step": [0.5, 2.5, 4.5, 6.5, 8.5], "loss": [0.5, 2.5, 4.5, 6.5, 8.5]}}
