"""What the numbers of a run say, in sentences; and the statistics behind the figures."""

from __future__ import annotations

import math
from collections.abc import Sequence

from astro_jax.report.run import Json, number

NAMES = {
    "base": "Base",
    "direct-sft": "Direct-SFT",
    "astro-sft": "ASTRO-SFT",
    "direct-rl": "Direct-RL",
    "astro-rl": "ASTRO-RL",
}
MAX_ROWS = 300  # of a training curve in the page


def percent(fraction: float) -> str:
    """0.6124 -> "61.2%"."""
    return f"{100 * fraction:.1f}%"


def interval(score: Json) -> str:
    """The 95% interval of a score: "58.1 to 64.3%"."""
    return f"{100 * score['low']:.1f} to {100 * score['high']:.1f}%"


def overlap(a: Json, b: Json) -> bool:
    """Whether the intervals of two scores share a value."""
    return a["low"] <= b["high"] and b["low"] <= a["high"]


def verdict(name: str, ours: Json, theirs: Json) -> str:
    """Who is ahead, by how much, and whether the intervals tell them apart."""
    points = round(100 * (ours["mean"] - theirs["mean"]), 1)
    if points == 0:
        return "the two are level to within 0.1 point"
    side = "ahead" if points > 0 else "behind"
    unit = "point" if abs(points) == 1 else "points"
    if overlap(ours, theirs):
        tail = "but the intervals overlap, so this run alone does not decide it"
    else:
        tail = "and the intervals do not overlap"
    return f"{name} is {abs(points):.1f} {unit} {side}, {tail}"


def headline(results: Json | None) -> str:
    """The one sentence at the head of the page: ASTRO against its control, after RL if both have been evaluated."""
    models = (results or {}).get("models", {})
    if not models:
        return "This run has not been evaluated yet; below is what its finished stages wrote."
    for stage in ("rl", "sft"):
        astro, direct = f"astro-{stage}", f"direct-{stage}"
        if astro in models and direct in models:
            ours, theirs = models[astro]["pass@1"], models[direct]["pass@1"]
            base = f", from {percent(models['base']['pass@1']['mean'])} for the base model" if "base" in models else ""
            return (
                f"{NAMES[astro]} solves {percent(ours['mean'])} of the held-out problems at the first attempt "
                f"(95% interval {interval(ours)}, n = {ours['n']:,}) and {NAMES[direct]} {percent(theirs['mean'])} "
                f"({interval(theirs)}){base}: {verdict(NAMES[astro], ours, theirs)}."
            )
    name = next((n for n in reversed(NAMES) if n in models), next(iter(models)))
    score = models[name]["pass@1"]
    return (
        f"{NAMES.get(name, name)} solves {percent(score['mean'])} of the held-out problems at the first attempt "
        f"(95% interval {interval(score)}, n = {score['n']:,}); ASTRO and Direct cannot be compared before both "
        "have been evaluated."
    )


def equal_tokens(results: Json | None) -> str | None:
    """One ASTRO answer against the majority of several Direct answers, with the tokens that each spends."""
    models = (results or {}).get("models", {})
    for stage in ("rl", "sft"):
        astro, direct = f"astro-{stage}", f"direct-{stage}"
        if astro in models and models.get(direct, {}).get("maj"):
            ours, vote = models[astro], models[direct]["maj"]
            similar = 0.75 <= vote["mean_tokens"] / max(ours["mean_tokens"], 1e-9) <= 1.33
            lead = "At a similar number of tokens" if similar else "For comparison"
            return (
                f"{lead}, the majority of {vote['k']} answers of {NAMES[direct]} "
                f"({vote['mean_tokens']:,.0f} tokens a problem) solves {percent(vote['mean'])} ({interval(vote)}) "
                f"and one answer of {NAMES[astro]} ({ours['mean_tokens']:,.0f} tokens) "
                f"{percent(ours['pass@1']['mean'])} ({interval(ours['pass@1'])}): "
                f"{verdict(NAMES[astro], ours['pass@1'], vote)}."
            )
    return None


def pearson(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Pearson's r, or None when it has no value: fewer than 3 points, or one side does not vary."""
    if len(xs) < 3:
        return None
    mx, my = math.fsum(xs) / len(xs), math.fsum(ys) / len(ys)
    xx = math.fsum((x - mx) ** 2 for x in xs)
    yy = math.fsum((y - my) ** 2 for y in ys)
    if xx < 1e-12 or yy < 1e-12:
        return None
    return math.fsum((x - mx) * (y - my) for x, y in zip(xs, ys, strict=True)) / math.sqrt(xx * yy)


def correlation(rows: Sequence[Json]) -> Json:
    """Backtracks against solve rate over all steps of RL: {"r": ... or None, "n": steps}."""
    pairs = [
        (row["mean_backtracks"], row["solve_rate"])
        for row in rows
        if number(row.get("mean_backtracks")) and number(row.get("solve_rate"))
    ]
    return {"r": pearson([x for x, _ in pairs], [y for _, y in pairs]), "n": len(pairs)}


def thin(rows: Sequence[Json], most: int = MAX_ROWS) -> Json:
    """A training curve in at most about `most` points, as columns: each value is the mean of `every` steps."""
    every = max(1, math.ceil(len(rows) / most))
    keys = sorted({key for row in rows for key, value in row.items() if number(value)})
    columns: dict[str, list[float | None]] = {key: [] for key in keys}
    for start in range(0, len(rows), every):
        bucket = rows[start : start + every]
        for key in keys:
            values = [row[key] for row in bucket if number(row.get(key))]
            columns[key].append(float(f"{math.fsum(values) / len(values):.6g}") if values else None)
    return {"every": every, "columns": columns}
