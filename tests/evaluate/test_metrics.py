"""Rates and majority votes against closed formulas."""

import math

import pytest

from astro_jax.evaluate.metrics import majority, success_rate


@pytest.mark.parametrize("right, n", [(0, 5), (5, 5), (1, 30), (300, 1024), (1, 1)])
def test_success_rate_has_wilson_interval(right, n):
    z, p = 1.959963984540054, right / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert success_rate([True] * right + [False] * (n - right)) == {
        "mean": round(p, 4), "low": pytest.approx(middle - half, abs=6e-5),
        "high": pytest.approx(middle + half, abs=6e-5), "n": n,
    }  # fmt: skip


@pytest.mark.parametrize(
    "answers, winner",
    [
        (["3", "5", "5"], "5"),
        (["3", "5"], "3"),  # a tie: the first
        (["5", "3", "3", "5"], "5"),
        ([None, None, "7"], "7"),  # an unparsed answer has no vote
        ([None], None),
        ([], None),
    ],
)
def test_majority_is_first_most_common_parsed_answer(answers, winner):
    assert majority(answers) == winner


def test_votes_are_counted_by_value():
    assert majority(["3", r"\sqrt{8}", "3", r"2\sqrt{2}", r"\sqrt{8}"]) == r"\sqrt{8}"
