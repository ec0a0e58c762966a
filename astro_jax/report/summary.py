"""The figures of a run in sentences, and the statistics behind the charts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import scipy.stats

from astro_jax.report.run_folder import Difference, Results, Score, is_number
from astro_jax.stages import MODELS, STAGES, title
from astro_jax.storage import Json

MAX_ROWS = 300  # of a training curve in the page


def model_titles() -> dict[str, str]:
    """The titles of all models, each followed by the models that were trained from it.

    Order: base, direct-sft, direct-rl, astro-sft, astro-rl.
    """

    def family(name: str) -> list[str]:
        children = [child for child in MODELS if STAGES[child].initial_model == name]
        return [name, *(model for child in children for model in family(child))]

    roots = [name for name in MODELS if STAGES[name].initial_model is None]
    return {name: title(name) for root in roots for name in family(root)}


def percent(fraction: float) -> str:
    """0.6124 -> "61.2%"."""
    return f"{100 * fraction:.1f}%"


def interval(score: Score) -> str:
    """The 95% interval of a score: "58.1 to 64.3%"."""
    return f"{100 * score.low:.1f} to {100 * score.high:.1f}%"


def signed_interval(d: Difference) -> str:
    """The 95% interval of a difference in points: "+8.1 to +14.5"."""
    return f"{100 * d.low:+.1f} to {100 * d.high:+.1f}"


def overlap(a: Score, b: Score) -> bool:
    """Whether the intervals of two scores share a value."""
    return a.low <= b.high and b.low <= a.high


def comparison(name: str, score: Score, baseline: Score, paired: Difference | None = None) -> str:
    """Which of two scores is higher, by how much, and whether their intervals overlap.

    Examples: "ASTRO-RL is 11.3 points ahead (paired, 95% interval +8.1 to +14.5)"; without the paired difference
    "ASTRO-RL is 11.3 points ahead, and the intervals do not overlap".
    """
    if paired:
        tail = ", so this run alone does not decide it" if paired.low <= 0 <= paired.high else ""
        points = round(100 * paired.difference, 1)
        side = "the two are level"
        if points:
            side = f"{name} is {abs(points):.1f} points {'ahead' if points > 0 else 'behind'}"
        return f"{side} (paired, 95% interval {signed_interval(paired)}){tail}"
    points = round(100 * (score.mean - baseline.mean), 1)
    if points == 0:
        return "the two are level to within 0.1 point"
    side = "ahead" if points > 0 else "behind"
    unit = "point" if abs(points) == 1 else "points"
    if overlap(score, baseline):
        tail = "but the intervals overlap, so this run alone does not decide it"
    else:
        tail = "and the intervals do not overlap"
    return f"{name} is {abs(points):.1f} {unit} {side}, {tail}"


def headline(results: Results | None) -> str:
    """The sentence at the head of the page: ASTRO against its control, after RL if both models have been evaluated."""
    models = results.models if results else {}
    if not models:
        return "This run has not been evaluated yet; below is what its finished stages wrote."
    for stage in ("rl", "sft"):
        if f"astro-{stage}" in models and f"direct-{stage}" in models:
            astro, direct = title(f"astro-{stage}"), title(f"direct-{stage}")
            score, control = models[f"astro-{stage}"].pass_at_1, models[f"direct-{stage}"].pass_at_1
            paired = results.differences.get("held-out", {}).get(f"astro-{stage} - direct-{stage}") if results else None
            base = f", from {percent(models['base'].pass_at_1.mean)} for the base model" if "base" in models else ""
            return (
                f"{astro} solves {percent(score.mean)} of the held-out problems at the first attempt "
                f"(95% interval {interval(score)}, n = {score.n:,}) and {direct} {percent(control.mean)} "
                f"({interval(control)}){base}: {comparison(astro, score, control, paired)}."
            )
    name = next((n for n in reversed(MODELS) if n in models), next(iter(models)))
    score = models[name].pass_at_1
    return (
        f"{title(name)} solves {percent(score.mean)} of the held-out problems at the first attempt "
        f"(95% interval {interval(score)}, n = {score.n:,}); ASTRO and Direct cannot be compared before both "
        "have been evaluated."
    )


def equal_tokens(results: Results | None) -> str | None:
    """One ASTRO answer against the majority of several Direct answers, with the tokens that each spends."""
    models = results.models if results else {}
    for stage in ("rl", "sft"):
        astro, direct = models.get(f"astro-{stage}"), models.get(f"direct-{stage}")
        if astro and direct and direct.maj:
            name, vote = title(f"astro-{stage}"), direct.maj
            similar = 0.75 <= vote.mean_tokens / max(astro.mean_tokens, 1e-9) <= 1.33
            lead = "At a similar number of tokens" if similar else "For comparison"
            return (
                f"{lead}, the majority of {vote.k} answers of {title(f'direct-{stage}')} "
                f"({vote.mean_tokens:,.0f} tokens a problem) solves {percent(vote.mean)} ({interval(vote)}) "
                f"and one answer of {name} ({astro.mean_tokens:,.0f} tokens) "
                f"{percent(astro.pass_at_1.mean)} ({interval(astro.pass_at_1)}): "
                f"{comparison(name, astro.pass_at_1, vote)}."
            )
    return None


def pearson(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Pearson's r. None when r has no value: fewer than 3 points, or one side does not vary."""
    if len(xs) < 3 or min(np.var(xs), np.var(ys)) * len(xs) < 1e-12:
        return None
    return float(scipy.stats.pearsonr(xs, ys).statistic)


def correlation(rows: Sequence[Json], prefix: str = "") -> Json:
    """Backtracks against solve rate over the steps of RL that have both: {"r": Pearson's r or None, "n": steps}.

    Args:
      prefix: "" for the completions of a step, "eval_" for the held-out prompts.
    """
    names = f"{prefix}mean_backtracks", f"{prefix}solve_rate"
    pairs = [tuple(row[name] for name in names) for row in rows if all(is_number(row.get(name)) for name in names)]
    return {"r": pearson([x for x, _ in pairs], [y for _, y in pairs]), "n": len(pairs)}


def thin(rows: Sequence[Json], max_rows: int = MAX_ROWS) -> Json:
    """A training curve in at most about `max_rows` points, as columns. Each value is the mean of `every` steps.

    Example: 1,000 rows become `{"every": 4, "columns": {"step": [2.5, 6.5, ...], "loss": [...]}}`.
    """
    every = max(1, math.ceil(len(rows) / max_rows))
    keys = sorted({key for row in rows for key, value in row.items() if is_number(value)})
    columns: dict[str, list[float | None]] = {key: [] for key in keys}
    for start in range(0, len(rows), every):
        bucket = rows[start : start + every]
        for key in keys:
            values = [row[key] for row in bucket if is_number(row.get(key))]
            columns[key].append(float(f"{math.fsum(values) / len(values):.6g}") if values else None)
    return {"every": every, "columns": columns}
