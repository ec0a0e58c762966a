"""Differences between a variant and the default, paired over seeds and problems, with their intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from etils import epath

from astro_jax import stage_folder, storage
from astro_jax.evaluate import run as evaluation
from astro_jax.stages import MODELS
from astro_jax.sweep.variants import DEFAULT, Run

RESAMPLES = 4000  # of the bootstrap
METRICS: dict[str, Literal["sampled", "greedy"]] = {"pass@1": "sampled", "greedy": "greedy"}
Outcomes = dict[str, float]  # 1.0 for each problem that was solved, else 0.0, by the problem's id


def outcomes(run: epath.Path, model: str, metric: str) -> Outcomes:
    """Read which held-out problems a model of a run has solved; empty where the run has not evaluated it."""
    return evaluation.solved(stage_folder.resolve(run, f"eval/{model}"), METRICS[metric])


def difference(pairs: Mapping[int, tuple[Outcomes, Outcomes]]) -> dict[str, float]:
    """The mean paired difference of two variants, with its 95% interval.

    The interval is a two-level bootstrap: seeds are drawn with replacement, then the problems of each seed. With one
    seed it covers the draw of the problems alone.

    Args:
      pairs: by seed, the outcomes of the default and of the variant.

    Returns:
      `difference`, `low` and `high` as fractions, and `n`, the number of pairs.
    """
    deltas = [np.asarray([b[i] - a[i] for i in a.keys() & b.keys()]) for a, b in pairs.values()]
    deltas = [d for d in deltas if len(d)]
    if not deltas:
        return {}
    rng = np.random.default_rng(0)
    # The mean of a resample of n values of -1, 0 and 1 needs only how often each of the three was drawn.
    counts = [np.asarray([(d == v).sum() for v in (-1, 0, 1)]) for d in deltas]
    resampled = np.zeros(RESAMPLES)
    for _ in counts:
        means = [(rng.multinomial(c.sum(), c / c.sum(), RESAMPLES) @ (-1, 0, 1)) / c.sum() for c in counts]
        drawn_seeds = rng.integers(len(counts), size=RESAMPLES)
        resampled += np.stack(means)[drawn_seeds, np.arange(RESAMPLES)] / len(counts)
    low, high = np.quantile(resampled, (0.025, 0.975))
    mean = float(np.mean([d.mean() for d in deltas]))
    return {"difference": mean, "low": float(low), "high": float(high), "n": sum(map(len, deltas))}


def _search_tokens(folders: Iterable[epath.Path]) -> float | None:
    """The tokens that the search of a run has sampled, in the mean of some runs; None where a run has no search."""
    manifests = [stage_folder.resolve(folder, "search") / stage_folder.MANIFEST for folder in folders]
    if not all(path.exists() for path in manifests):
        return None
    return float(np.mean([storage.read_json(path)["sampled_tokens"] for path in manifests]))


def table(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Compare all variants of a sweep with the default.

    Returns:
      one row for each variant, model and metric: `variant`, `model`, `metric`, `mean` over the seeds with the limits of
      its interval `mean_low` and `mean_high`, `seeds`, `search_tokens` (those that the search has sampled, in the mean
      of the seeds; None without a search), and for a variant other than the default the fields of `difference`.
    """
    rows = []
    by_variant: dict[str, dict[int, epath.Path]] = {}
    for run in runs:
        by_variant.setdefault(run.variant.name, {})[run.seed] = epath.Path(run.c.out)
    for name, folders in by_variant.items():
        search_tokens = _search_tokens(folders.values())
        for model in MODELS:
            for metric in METRICS:
                solved = {seed: outcomes(folder, model, metric) for seed, folder in folders.items()}
                solved = {seed: x for seed, x in solved.items() if x}
                if not solved:
                    continue
                means = [float(np.mean(list(x.values()))) for x in solved.values()]
                interval = difference({seed: (dict.fromkeys(x, 0.0), x) for seed, x in solved.items()})
                row = {
                    "variant": name, "model": model, "metric": metric, "mean": float(np.mean(means)), "seeds": means,
                    "mean_low": interval["low"], "mean_high": interval["high"], "search_tokens": search_tokens,
                }  # fmt: skip
                if name != DEFAULT:
                    default = {seed: outcomes(by_variant[DEFAULT][seed], model, metric) for seed in solved}
                    row |= difference({seed: (default[seed], solved[seed]) for seed in solved})
                rows.append(row)
    return rows
