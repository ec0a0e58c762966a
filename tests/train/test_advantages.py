"""Advantages over groups, also where some completions have no reward, against NumPy."""

import numpy as np
import pytest
from grpo_fixtures import reference_advantages

from astro_jax.train import advantages
from astro_jax.train.advantages import group_advantages, length_penalty


def test_group_advantages_by_hand():
    rewards = np.array([[1, -1, -1, -1], [1, 1, -1, -1], [1, 1, 1, 1], [-1, -1, -1, -1.0]])
    # Row 1: mean -0.5, deviations 1.5 and -0.5, standard deviation sqrt((2.25 + 3 * 0.25) / 4) = 0.866.
    centered = np.array([[1.5, -0.5, -0.5, -0.5], [1, 1, -1, -1], [0, 0, 0, 0], [0, 0, 0, 0]])
    scaled = centered / np.array([[np.sqrt(0.75)], [1], [1], [1]])
    np.testing.assert_array_equal(group_advantages(rewards, False), centered)
    np.testing.assert_allclose(group_advantages(rewards, True), scaled, rtol=2e-6)
    assert not group_advantages(rewards, True)[2:].any()


@pytest.mark.parametrize("scale", [True, False])
def test_completions_without_a_reward_are_left_out_of_their_group(scale):
    rng = np.random.default_rng(0)
    rewards = rng.normal(3, 10, (200, 5))
    rewards[rng.random(rewards.shape) < np.linspace(0, 1, 200)[:, None]] = np.nan
    rewards[:3] = [np.nan] * 5, [np.nan, 2, np.nan, np.nan, np.nan], [np.nan, 4, 4, np.nan, 4]
    expected = [reference_advantages(group, scale) for group in rewards.tolist()]
    np.testing.assert_allclose(group_advantages(rewards, scale), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(
        advantages.comparable(rewards),
        [[r == r and sum(x == x for x in group) >= 2 for r in group] for group in rewards],
    )


def test_advantages_without_masks_keep_every_bit():
    """The formula over whole arrays, as before rewards could be missing."""
    rng = np.random.default_rng(0)
    for m in (2, 3, 4, 8, 9, 16, 129):
        for rewards in (rng.normal(size=(64, m)), rng.choice([1.0, -1.0], (64, m))):
            centered = rewards - rewards.mean(axis=1, keepdims=True)
            scaled = centered / (rewards.std(axis=1, keepdims=True) + 1e-6)
            np.testing.assert_array_equal(group_advantages(rewards, False), centered, strict=True)
            np.testing.assert_array_equal(group_advantages(rewards, True), scaled, strict=True)


def test_equal_rewards_of_any_value_have_no_advantage():
    """The mean of three times 0.1 is rounded to another number."""
    assert np.mean([0.1] * 3) != 0.1
    assert not group_advantages(np.full((2, 3), 0.1), True).any()


def test_group_advantages_refuse_rewards_without_groups():
    with pytest.raises(AssertionError, match="rank"):
        group_advantages(np.ones(4), True)


def test_length_penalty_by_hand():
    """DAPO, equation 13, at a limit of 20 with the last 8 tokens: 0 up to 12 tokens, then 1/8 more for each token."""
    lengths = np.array([[1, 12, 13], [16, 19, 20]])
    np.testing.assert_allclose(length_penalty(lengths, 20, 8), [[0, 0, -0.125], [-0.5, -0.875, -1]])
    assert not length_penalty(lengths, 20, 0).any()
