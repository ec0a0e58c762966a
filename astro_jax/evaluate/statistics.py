"""Estimators of an evaluation with n samples a problem: pass@k, maj@k, and intervals over problems.

The problems are the unit: an interval says how a figure varies with the draw of problems (and of samples). All
functions take one value or one row a problem, and work on several evaluations at once along leading axes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.special
import scipy.stats

from astro_jax.verify.same_answer import value_key

LEVEL = 0.95
RESAMPLES = 2000  # of the bootstrap
_SEED = 0  # of the resamples, which are the same for all figures of as many problems


def pass_at_k(correct: np.ndarray, n: int, k: int) -> np.ndarray:
    """Estimate pass@k without bias: the chance that one of k samples is correct (arXiv 2107.03374, equation 1).

    Args:
      correct: [..., P] how many of the n samples of each problem are correct.
      n: samples of a problem.
      k: from 1 to n.

    Returns:
      [..., P] `1 - C(n - c, k) / C(n, k)` for c correct samples. For k = 1 it is c / n.

    Raises:
      ValueError: when k is not within 1 and n.
    """
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs {k} samples of a problem, and there are {n}")
    misses = np.asarray([scipy.special.comb(n - c, k, exact=True) / scipy.special.comb(n, k, exact=True)
                         for c in range(n + 1)])  # fmt: skip
    return 1 - misses[np.asarray(correct, int)]


def elect(answers: Sequence[str | None], correct: Sequence[bool]) -> tuple[float, bool]:
    """Take the majority vote of some answers to a problem (arXiv 2203.11171).

    Answers of equal value are one answer. An answer that did not parse (None) has no vote. In a tie the answer that
    came first wins. The vote is correct if an answer of the winning value is correct.

    Example: `["3", "\\\\sqrt{8}", "2\\\\sqrt{2}", None]` elects the second answer, with a share of 0.5.

    Returns:
      the winner's share of all answers, and whether the vote is correct; (0, False) if no answer has a vote.
    """
    votes: dict[str, list[bool]] = {}
    for answer, right in zip(answers, correct, strict=True):
        if answer is not None:
            votes.setdefault(value_key(answer), []).append(right)
    if not votes:
        return 0.0, False
    winner = max(votes.values(), key=len)  # the first of those with most votes
    return len(winner) / len(answers), any(winner)


def majority_is_correct(answers: Sequence[str | None], correct: Sequence[bool]) -> bool:
    """Whether the majority vote (`elect`) is correct."""
    return elect(answers, correct)[1]


def calibration(shares: Sequence[float], correct: Sequence[bool]) -> list[dict[str, Any]]:
    """Compare how sure the vote on a problem is with how often it is right.

    Args:
      shares, correct: [P] of the vote on each problem (`elect`).

    Returns:
      for each quarter of the shares that has problems, 0 to 0.25 and so on: `confidence`, the mean share, and `mean`,
      `low`, `high`, `n` of the right votes (`summarize`). A calibrated vote has `mean` near `confidence`.
    """
    quarters = np.clip(np.ceil(np.asarray(shares, float) * 4) - 1, 0, 3)
    values = np.asarray(correct, float)
    return [
        {"confidence": round(float(np.asarray(shares)[quarters == q].mean()), 4)} | summarize(values[quarters == q])
        for q in range(4)
        if (quarters == q).any()
    ]


def majority_at_k(answers: Sequence[str | None], correct: Sequence[bool], k: int) -> float:
    """Estimate maj@k of one problem: the mean over the n // k blocks of k samples in a row.

    Raises:
      ValueError: when k is not within 1 and n.
    """
    if not 1 <= k <= len(answers):
        raise ValueError(f"maj@{k} needs {k} samples of a problem, and there are {len(answers)}")
    starts = range(0, len(answers) - k + 1, k)
    return float(np.mean([majority_is_correct(answers[i : i + k], correct[i : i + k]) for i in starts]))


def bootstrap(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the 95% interval of a mean over problems, by a bootstrap over the problems.

    It is the expanded percentile interval (Hesterberg, arXiv 1411.5279, section 5.2): the plain percentile interval is
    too short for few problems, such as AIME's 30.

    Args:
      values: [..., P] one value a problem, P of at least 2.

    Returns:
      (low, high), each [...].
    """
    values = np.asarray(values, float)
    p = values.shape[-1]
    low, high = np.quantile(values @ _resamples(p).T, _quantiles(p), axis=-1)
    return low, high


def _quantiles(p: int) -> tuple[float, float]:
    """The quantiles of resampled figures between which the interval lies, for p problems."""
    alpha = float(scipy.stats.norm.cdf(scipy.stats.t.ppf((1 - LEVEL) / 2, p - 1) * np.sqrt(p / (p - 1))))
    return alpha, 1 - alpha


def estimate(values: np.ndarray, figure: Callable[[np.ndarray], np.ndarray]) -> dict[str, Any] | None:
    """Compute a figure of several seeds on the same problems, with its 95% interval over seeds and problems.

    The bootstrap draws seeds and problems with replacement, independently of each other (the pigeonhole bootstrap,
    Annals of Applied Statistics 1(2), 2007). It draws S - 1 of S seeds, which makes up for few seeds (Rao and Wu,
    Journal of the American Statistical Association 83, 1988). With one seed the interval is that of `bootstrap`.

    Args:
      values: [S, P, K] of each seed and problem, K sums over its answers. P is at least 2.
      figure: computes the figure from sums over seeds and problems, [..., K] to [...], whatever the scale of the sums.
        NaN is no figure.

    Returns:
      `value`, `low`, `high`, and `seeds`, the figure of each seed, None for a seed without it; None if there is no
      figure. Example: with K = 2, right answers and all answers, `lambda s: s[..., 0] / s[..., 1]` is their share.
    """
    s, p, _ = values.shape
    seed_weights = np.random.default_rng(_SEED).multinomial(max(1, s - 1), np.full(s, 1 / s), RESAMPLES)
    sums = sum(seed_weights[:, i, None] * (_resamples(p) @ values[i]) for i in range(s))
    with np.errstate(divide="ignore", invalid="ignore"):
        value, seeds, draws = (figure(x) for x in (values.sum((0, 1)), values.sum(1), np.asarray(sums)))
    draws = draws[np.isfinite(draws)]
    if not np.isfinite(value) or not len(draws):
        return None
    low, high = np.quantile(draws, _quantiles(p))
    return {
        "value": round(float(value), 5), "low": round(float(low), 5), "high": round(float(high), 5),
        "seeds": [round(float(x), 5) if np.isfinite(x) else None for x in seeds],
    }  # fmt: skip


def share(values: np.ndarray) -> dict[str, Any] | None:
    """Compute a share by `estimate`, or with Wilson's interval where it is 0 or 1 in all seeds.

    Args:
      values: [S, P, 2] the parts and the wholes. The share is the sum of the parts over the sum of the wholes.
    """
    row = estimate(values, lambda sums: sums[..., 0] / sums[..., 1])
    if row and row["value"] in (0.0, 1.0):
        low, high = _wilson(np.asarray(row["value"]), int((values[..., 1].sum(0) > 0).sum()))
        row |= {"low": round(float(low), 5), "high": round(float(high), 5)}
    return row


def interval(rates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the 95% interval of a mean of rates: `bootstrap`, or Wilson's interval where all are 0 or all are 1.

    There the bootstrap shows no variation: 0 of 30 problems would have the interval 0 to 0.

    Args:
      rates: [..., P] a rate from 0 to 1 for each problem.

    Returns:
      (low, high), each [...].
    """
    rates = np.asarray(rates, float)
    p, mean = rates.shape[-1], rates.mean(-1)
    low, high = bootstrap(rates) if p > 1 else (mean, mean)
    wilson_low, wilson_high = _wilson(mean, p)
    constant = (p == 1) | np.isin(mean, (0.0, 1.0))
    return np.where(constant, wilson_low, low), np.where(constant, wilson_high, high)


@functools.lru_cache(maxsize=8)
def _resamples(p: int) -> np.ndarray:
    """[RESAMPLES, P] weights: how often each resample draws each problem, over P."""
    return np.random.default_rng(_SEED).multinomial(p, np.full(p, 1 / p), RESAMPLES) / p


def _wilson(share: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    z = scipy.stats.norm.ppf((1 + LEVEL) / 2)
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return np.clip(center - half, 0, 1), np.clip(center + half, 0, 1)


def summarize(rates: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """The mean rate over problems with its 95% interval: `mean`, `low`, `high` to 4 digits, and `n`, the problems."""
    array = np.asarray(rates, float)
    low, high = interval(array)
    return {
        "mean": round(float(array.mean()), 4), "low": round(float(low), 4), "high": round(float(high), 4),
        "n": len(array),
    }  # fmt: skip


def mean_over_problems(ids: Sequence[str], holds: np.ndarray, among: np.ndarray) -> dict[str, Any] | None:
    """The mean over problems of a share among some of their answers; None without such answers.

    Args:
      ids: the problem of each answer.
      holds, among: [A] of each answer.
    """
    by_problem: dict[str, list[bool]] = {}
    for i in np.flatnonzero(among).tolist():
        by_problem.setdefault(ids[i], []).append(bool(holds[i]))
    return summarize([float(np.mean(x)) for x in by_problem.values()]) if by_problem else None


def paired_difference(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """The mean of b - a over the same problems, with its 95% interval.

    The problems are drawn in pairs, so the interval is shorter than those of a and b where the two models find the same
    problems hard. Where all differences are equal, and not 0, the bootstrap shows no variation: then each end is as far
    away as that of Wilson's interval for 0 of as many problems.

    Args:
      a, b: [P] one value a problem, in the same order.
    """
    differences = np.asarray(b, float) - np.asarray(a, float)
    p = len(differences)
    low, high = bootstrap(differences) if p > 1 else (-1.0, 1.0)  # one problem tells nothing about others
    if p > 1 and low == high != 0:
        margin = float(_wilson(np.asarray(0.0), p)[1])
        low, high = max(-1.0, low - margin), min(1.0, high + margin)
    return {
        "difference": round(float(differences.mean()), 4), "low": round(float(low), 4), "high": round(float(high), 4),
        "n": p,
    }  # fmt: skip


def powers_of_two(n: int) -> list[int]:
    """The k of pass@k and maj@k that are reported: 1, 2, 4, ... up to n, and n itself."""
    return sorted({n, *(2**i for i in range(n.bit_length()) if 2**i <= n)})
