"""The tokens that Clip-Cov and KL-Cov choose, against the equations of arXiv 2505.22617 and cases by hand."""

import numpy as np
import pytest
from grpo_fixtures import fresh, make, make_shared, random_rollouts, trainer
from helpers import assert_trees_equal

from astro_jax import config as cfg
from astro_jax.train.covariance import choose, clip_cov, kl_cov, token_covariance


def test_covariance_of_tokens_averages_to_that_of_numpy():
    rng = np.random.default_rng(0)
    p, a = rng.normal(-1, 1, 50), rng.normal(0, 1, 50)
    assert token_covariance(p, a).mean() == pytest.approx(np.cov(p, a, bias=True)[0, 1])
    # By hand: the mean of p is -2, that of a is 1.
    np.testing.assert_allclose(token_covariance(np.array([-1.0, -3.0]), np.array([3.0, -1.0])), [2, 2])


def test_clip_cov_draws_inside_the_bounds():
    covariance, drawn = np.array([0.5, 1.0, 2.0, 5.0, 5.1, -3.0, 4.0, 0.0, 3.0, 1.5]), []
    for seed in range(40):
        chosen = clip_cov(covariance, 0.25, (1.0, 5.0), np.random.default_rng(seed))
        assert chosen.sum() == 2  # floor(0.25 * 10)
        drawn += np.flatnonzero(chosen).tolist()
    assert set(drawn) == {1, 2, 3, 6, 8, 9}
    assert clip_cov(covariance, 0.001, (1.0, 5.0), np.random.default_rng(0)).sum() == 1
    assert clip_cov(covariance, 0.9, (1.0, 5.0), np.random.default_rng(0)).sum() == 6  # no more candidates
    assert clip_cov(covariance, 0.9, (9.0, 10.0), np.random.default_rng(0)).sum() == 0


def test_kl_cov_takes_the_highest():
    covariance = np.array([0.5, 9.0, -2.0, 5.0, 5.1])
    assert kl_cov(covariance, 0.5).tolist() == [False, True, False, False, True]  # floor(0.5 * 5)
    assert kl_cov(covariance, 0.01).tolist() == [False, True, False, False, False]


def test_tokens_of_an_update_are_chosen_over_all_its_completions():
    logprobs = [np.array([-0.1, -2.0]), np.array([-0.2]), np.array([-3.0, -0.3, -1.0])]
    advantages = np.array([2.0, -1.0, -1.0])
    found = choose(cfg.Grpo(kl_cov_ratio=0.4, steps_per_generation=2), logprobs, advantages, np.random.default_rng(0))
    p, a = np.concatenate(logprobs), np.array([2.0, 2, -1, -1, -1, -1])
    highest = np.argsort((p - p.mean()) * (a - a.mean()))[-2:]
    assert [len(x) for x in found] == [2, 1, 3]
    assert np.flatnonzero(np.concatenate(found)).tolist() == sorted(highest)
    assert choose(cfg.Grpo(), logprobs, advantages, np.random.default_rng(0)) == [None] * 3


@pytest.mark.slow
def test_clip_cov_in_a_step_leaves_out_its_tokens_and_repeats_bitwise():
    """With bounds that all tokens meet and a share of all of them, nothing is left to learn."""
    all_tokens = make(clip_cov_ratio=0.999999, clip_cov_bounds=(-1e9, 1e9))
    rollouts, advantages = random_rollouts()
    update = all_tokens._pack(rollouts, advantages)
    tokens = sum(len(r.completion_ids) for r in rollouts)
    packed = sum(len(r.completion_ids) for r, a in zip(rollouts, advantages, strict=True) if a)
    chosen = sum(float(m.chosen.sum()) for m in update.micro_batches)
    assert packed - 1 <= chosen <= packed  # floor(0.999999 N) = N - 1
    _, metrics = all_tokens._update(fresh(), update)
    assert metrics["cov_rate"] == pytest.approx(chosen / tokens)
    some = make_shared(clip_cov_ratio=0.3, clip_cov_bounds=(-1e9, 1e9))
    some._accumulate = all_tokens._accumulate  # its loss depends on no ratio
    (a, x), (b, y), (c, _) = some.step(fresh(), 0), some.step(fresh(), 0), trainer().step(fresh(), 0)
    assert_trees_equal(a, b)
    assert x["cov_rate"] == y["cov_rate"] > 0
    assert not np.array_equal(a.params.embed, c.params.embed)


@pytest.mark.parametrize("options", [{"clip_cov_ratio": 0.2}, {"kl_cov_ratio": 0.2}, {}])
def test_an_update_without_rollouts_learns_nothing(options):
    assert make_shared(**options)._pack([], np.ones(0)) == ([], 0)
