"""Models side by side on the same problems: paired differences, and accuracy by the difficulty of a problem."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from astro_jax.evaluate import statistics

Rates = Mapping[str, float]  # pass@1 of each problem, by its id
# The difficulty of a problem for a model: by the share of right answers that the other models give to it.
DIFFICULTIES = ("none right", "less than half right", "half or more right", "all right")


def paired_differences(rates: Mapping[str, Rates]) -> dict[str, Any]:
    """Compare each model with the base, and ASTRO with Direct.

    Args:
      rates: by model.

    Returns:
      statistics.paired_difference by "MODEL - OTHER", over the problems that both answered, where they share any.
    """
    pairs = [(name, "base") for name in rates if name != "base"]
    pairs += [(name, name.replace("astro", "direct")) for name in rates if name.startswith("astro-")]
    return {f"{a} - {b}": d for a, b in pairs if b in rates and (d := difference(rates[a], rates[b]))}


def difference(a: Rates, b: Rates) -> dict[str, Any]:
    """The paired difference a - b (statistics.paired_difference) over the problems of both; {} if they share none."""
    common = sorted(a.keys() & b.keys())
    return statistics.paired_difference([b[i] for i in common], [a[i] for i in common]) if common else {}


def by_difficulty(rates: Mapping[str, Rates]) -> dict[str, list[dict[str, Any]]]:
    """The accuracy of each model on easy and on hard problems.

    A model's own answers do not count for the difficulty: a problem would else be hard because the model failed.

    Args:
      rates: by model, at least three; with fewer the result is {}.

    Returns:
      for each model, the groups of DIFFICULTIES that have problems: `difficulty`, and `mean`, `low`, `high`, `n`
      (statistics.summarize).
    """
    if len(rates) < 3:
        return {}
    common = sorted(set.intersection(*(set(r) for r in rates.values())))
    table = np.asarray([[r[i] for i in common] for r in rates.values()]).reshape(len(rates), len(common))
    found: dict[str, list[dict[str, Any]]] = {}
    for row, name in enumerate(rates):
        others = np.delete(table, row, axis=0).mean(axis=0)
        found[name] = [
            {"difficulty": difficulty} | statistics.summarize(table[row, members])
            for difficulty, members in difficulties(others).items()
            if members.any()
        ]
    return found


def difficulties(others: np.ndarray) -> dict[str, np.ndarray]:
    """Which problems have each of the DIFFICULTIES, from the mean pass@1 of the other models, as masks of its shape."""
    groups = [others == 0, (others > 0) & (others < 0.5), (others >= 0.5) & (others < 1), others == 1]
    return dict(zip(DIFFICULTIES, groups, strict=True))
