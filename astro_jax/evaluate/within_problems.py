"""Are longer answers right more often, or answers that go back more often? A regression within problems.

Hard problems get long answers, with many backtracks, and are solved less often. So answers are compared with the other
answers to the same problem alone: right or wrong (1 or 0) is regressed on backtracks and tokens with an intercept for
each problem, by least squares on the deviations from the mean of the problem (the within estimator of fixed effects).
Each slope is a function of sums over problems, as `statistics.estimate` takes them.
"""

from __future__ import annotations

import numpy as np

_COLLINEAR = 1e-9  # of the variances: what is left of one regressor beside the other counts as none


def sums(backtracks: np.ndarray, tokens: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Sum the products of the deviations of the answers to one problem from their means.

    Args:
      backtracks, tokens, right: [N] of each answer. One answer alone has no deviation.

    Returns:
      [5] backtracks^2, backtracks * tokens, tokens^2, backtracks * right, tokens * right.
    """
    b, t, y = (np.asarray(x, float) - np.mean(x) for x in (backtracks, tokens, right))
    return np.asarray([b @ b, b @ t, t @ t, b @ y, t @ y])


def of_backtracks(s: np.ndarray) -> np.ndarray:
    """[..., 5] sums to [...] the slope of `right` on backtracks alone; NaN where they do not vary."""
    return np.asarray(s[..., 3] / s[..., 0])


def of_tokens(s: np.ndarray) -> np.ndarray:
    """[..., 5] sums to [...] the slope of `right` on tokens alone; NaN where they do not vary."""
    return np.asarray(s[..., 4] / s[..., 2])


def of_backtracks_at_equal_tokens(s: np.ndarray) -> np.ndarray:
    """[..., 5] sums to [...] the slope on backtracks beside tokens; NaN where one follows from the other."""
    return (s[..., 2] * s[..., 3] - s[..., 1] * s[..., 4]) / _determinant(s)


def of_tokens_at_equal_backtracks(s: np.ndarray) -> np.ndarray:
    """[..., 5] sums to [...] the slope on tokens beside backtracks; NaN where one follows from the other."""
    return (s[..., 0] * s[..., 4] - s[..., 1] * s[..., 3]) / _determinant(s)


def _determinant(s: np.ndarray) -> np.ndarray:
    determinant = s[..., 0] * s[..., 2] - s[..., 1] ** 2
    return np.where(determinant > _COLLINEAR * s[..., 0] * s[..., 2], determinant, np.nan)
