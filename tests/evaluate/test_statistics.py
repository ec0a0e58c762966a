"""Estimators and intervals: against enumeration, hand-worked cases, and simulations with a known truth."""

import itertools
import math

import numpy as np
import pytest

from astro_jax.evaluate import statistics
from astro_jax.evaluate.metrics import success_rate


def test_pass_at_k_equals_the_share_of_subsets_with_a_correct_sample():
    for n, k in ((1, 1), (5, 1), (5, 3), (6, 6), (8, 4)):
        for c in range(n + 1):
            samples = [True] * c + [False] * (n - c)
            subsets = list(itertools.combinations(samples, k))
            expected = sum(map(any, subsets)) / len(subsets)
            assert statistics.pass_at_k(np.asarray([c]), n, k)[0] == pytest.approx(expected)


def test_pass_at_k_is_unbiased():
    rng = np.random.default_rng(1)
    for p, k in ((0.1, 4), (0.4, 2)):
        correct = rng.binomial(8, p, size=200_000)
        assert statistics.pass_at_k(correct, 8, k).mean() == pytest.approx(1 - (1 - p) ** k, abs=0.003)


@pytest.mark.parametrize("k", [0, 5])
def test_k_beyond_the_samples_is_refused(k):
    with pytest.raises(ValueError, match=f"pass@{k} needs"):
        statistics.pass_at_k(np.asarray([1]), 4, k)
    with pytest.raises(ValueError, match=f"maj@{k} needs"):
        statistics.majority_at_k(["1"] * 4, [True] * 4, k)


@pytest.mark.parametrize(
    "answers, winner",
    [
        (["3", "\\sqrt{8}", "2\\sqrt{2}", None], "2\\sqrt{2}"),
        (["1", "2"], "1"),  # a tie: the first
        (["2", "1", "1", "2"], "2"),
        ([None, "7"], "7"),
        (["0.5", "4", "1/2"], "1/2"),
        (["3", "\\sqrt{8}", "3", "2\\sqrt{2}", "\\sqrt{8}"], "\\sqrt{8}"),
        (["5", "3", "3", "5"], "5"),
    ],
)
def test_votes_are_by_value_and_the_first_wins_a_tie(answers, winner):
    correct = [a == winner for a in answers]
    assert statistics.majority_is_correct(answers, correct)
    assert not statistics.majority_is_correct(answers, [False] * len(answers))


def test_vote_without_a_parsed_answer_is_wrong():
    assert not statistics.majority_is_correct([None, None], [False, False])
    assert not statistics.majority_is_correct([], [])


def test_majority_at_k_is_the_mean_over_blocks():
    answers, correct = ["1", "2", "2", "1", "1", "9"], [True, False, False, True, True, False]
    assert statistics.majority_at_k(answers, correct, 1) == 0.5
    assert statistics.majority_at_k(answers, correct, 3) == 0.5  # 2 2 against 1, then 1 1 against 9
    assert statistics.majority_at_k(answers, correct, 4) == 1.0  # one block, a tie that "1" wins


def simulate(rng, problems, n, simulations=2000):
    """Correct samples of problems of random difficulty: [simulations, problems]."""
    return rng.binomial(n, rng.beta(0.6, 0.9, size=(simulations, problems)))


@pytest.mark.parametrize("problems, n, k", [(30, 4, 1), (100, 1, 1), (200, 8, 4)])
def test_interval_covers_the_truth_in_93_to_97_of_100_simulations(problems, n, k):
    rng = np.random.default_rng(problems + n)
    truth = 1 - math.prod((0.9 + i) / (0.6 + 0.9 + i) for i in range(k))  # the moments of a beta distribution
    low, high = statistics.interval(statistics.pass_at_k(simulate(rng, problems, n), n, k))
    coverage = ((low <= truth) & (truth <= high)).mean()
    assert 0.93 <= coverage <= 0.97, coverage


def test_paired_interval_covers_the_difference_and_is_shorter_than_an_unpaired_one():
    rng = np.random.default_rng(7)
    covered, widths = 0, []
    for _ in range(200):
        difficulty = rng.beta(0.6, 0.9, size=100)
        a, b = (rng.binomial(8, x) / 8 for x in (difficulty, np.clip(difficulty + 0.05, 0, 1)))
        truth = 0.05 - np.clip(difficulty - 0.95, 0, None).mean()
        d = statistics.paired_difference(a, b)
        covered += d["low"] <= truth <= d["high"]
        single = statistics.summarize(a)
        widths.append((d["high"] - d["low"]) / (single["high"] - single["low"]))
    assert 0.92 <= covered / 200 <= 1.0 and np.mean(widths) < 0.7


def test_interval_of_equal_values_is_wilsons():
    z2 = 1.959964**2
    nothing = statistics.summarize([0.0] * 30)
    assert (nothing["low"], nothing["high"]) == (0.0, round(z2 / (30 + z2), 4))
    everything = statistics.summarize([1.0] * 30)
    assert (everything["low"], everything["high"]) == (round(30 / (30 + z2), 4), 1.0)
    assert statistics.summarize([0.5] * 30) == {"mean": 0.5, "low": 0.5, "high": 0.5, "n": 30}
    assert statistics.summarize([1.0])["n"] == 1


def test_difference_of_equal_models_is_zero():
    assert statistics.paired_difference([1, 0, 0.5], [1, 0, 0.5]) == {"difference": 0, "low": 0, "high": 0, "n": 3}
    d = statistics.paired_difference([0, 0, 0], [1, 1, 1])  # three problems decide little
    assert d == {"difference": 1, "low": pytest.approx(1 - 0.5615, abs=1e-3), "high": 1, "n": 3}
    assert statistics.paired_difference([1], [0]) == {"difference": -1, "low": -1, "high": 1, "n": 1}


def test_reported_k_are_powers_of_two_and_n():
    assert [statistics.powers_of_two(n) for n in (1, 4, 6, 16)] == [[1], [1, 2, 4], [1, 2, 4, 6], [1, 2, 4, 8, 16]]


def test_calibration_compares_the_winners_share_with_how_often_it_is_right():
    elections = [(["7", "7.0", "8", None], [True, True, False, False]), (["1", "2", "3", "4"], [False] * 4)]
    assert [statistics.elect(*x) for x in elections] == [(0.5, True), (0.25, False)]
    quarters = statistics.calibration([0.25, 0.5, 0.5, 0.4, 1.0], [False, True, True, False, True])
    assert [(q["confidence"], q["mean"], q["n"]) for q in quarters] == [
        (0.25, 0.0, 1), (round(1.4 / 3, 4), round(2 / 3, 4), 3), (1.0, 1.0, 1),
    ]  # fmt: skip


def crossed(rng, seeds, problems, of_seed, of_problem=0.2, noise=0.2):
    """[S, P, 2] values and ones, with effects of seeds and of problems around the mean 0.5."""
    effects = rng.normal(0, of_seed, (seeds, 1)) + rng.normal(0, of_problem, (1, problems))
    values = 0.5 + effects + rng.normal(0, noise, (seeds, problems))
    return np.stack([values, np.ones_like(values)], -1)


def ratio(sums):
    return sums[..., 0] / sums[..., 1]


def test_an_estimate_of_one_seed_is_the_bootstrap_over_problems():
    values = crossed(np.random.default_rng(0), 1, 40, 0.0)
    low, high = statistics.bootstrap(values[0, :, 0])
    row = statistics.estimate(values, ratio)
    assert row["seeds"] == [row["value"]] and row["value"] == pytest.approx(values[0, :, 0].mean(), abs=1e-5)
    assert (row["low"], row["high"]) == (pytest.approx(low, abs=1e-5), pytest.approx(high, abs=1e-5))


@pytest.mark.parametrize("seeds, of_seed, least", [(3, 0.0, 0.94), (3, 0.05, 0.86), (5, 0.1, 0.92)])
def test_an_estimate_covers_the_mean_over_seeds_and_problems(seeds, of_seed, least):
    rng, covered = np.random.default_rng(1), 0
    for _ in range(200):
        row = statistics.estimate(crossed(rng, seeds, 40, of_seed), ratio)
        covered += row["low"] <= 0.5 <= row["high"]
    assert covered / 200 >= least, covered


def test_a_share_that_never_varies_has_wilsons_interval():
    values = np.zeros((3, 30, 2))
    values[..., 1] = 4
    row = statistics.share(values)
    wilson = success_rate([False] * 30)
    assert row["value"] == 0 and row["high"] == pytest.approx(wilson["high"], abs=1e-3) and row["seeds"] == [0, 0, 0]
    assert statistics.share(np.zeros((3, 30, 2))) is None  # nothing to share
