"""Several runs side by side: their models on the same held-out problems, their settings, and the stages they share."""

from __future__ import annotations

import json
from collections.abc import Sequence

from etils import epath

from astro_jax import markdown
from astro_jax.evaluate import comparison
from astro_jax.evaluate import run as evaluation
from astro_jax.report import lineage
from astro_jax.report.run_folder import Difference, RunFolder, Score
from astro_jax.report.summary import interval, model_titles, percent, signed_interval
from astro_jax.stages import MODELS, title
from astro_jax.storage import Json

_OWN = ("out", "from")  # settings that differ between any two runs, and change no result


def names(paths: Sequence[epath.PathLike]) -> list[str]:
    """Short names of runs: the ends of their paths, as long as needed to tell them apart.

    Example: a/default/seed-0 and a/merge-root/seed-0 become "default/seed-0" and "merge-root/seed-0".
    """
    parts = [epath.Path(path).parts for path in paths]
    for length in range(1, max(map(len, parts))):
        short = ["/".join(p[-length:]) for p in parts]
        if len(set(short)) == len(short):
            return short
    return [str(path) for path in paths]


def compare(runs: Sequence[RunFolder]) -> Json:
    """Compare the runs with the first of them.

    Returns:
      `models`: for each model of any run {"model", "scores": pass@1 of each run or None, "differences": of each run
      the paired difference from the first run on the problems of both, {} where they share none};
      `settings`: [{"key", "values": of each run, as JSON}], those that differ;
      `stages`: [{"stage", "digests": of each run or None}].
    """
    return {"models": _models(runs), "settings": _settings(runs), "stages": _stages(runs)}


def headline(names: Sequence[str], models: Sequence[Json]) -> str:
    """The sentence at the head of a page of several runs: their last model in common, against the first run.

    Args:
      names: of the runs.
      models: compare(...)["models"].
    """
    common = [row for row in models if all(row["scores"])]
    if not common:
        return f"{len(names)} runs side by side; they share no model that has been evaluated."
    row = max(common, key=lambda row: MODELS.index(row["model"]))
    parts = []
    for name, score, difference in zip(names, row["scores"], row["differences"], strict=True):
        text = f"{percent(score['mean'])} in {name} ({interval(Score(**score))}"
        if difference:
            d = Difference(**difference)
            text += f"; {100 * d.difference:+.1f} points, paired interval {signed_interval(d)}"
        parts.append(text + ")")
    return f"{title(row['model'])} solves {', '.join(parts[:-1])} and {parts[-1]} of the held-out problems."


def markdown_tables(names: Sequence[str], compared: Json) -> str:
    """Write the models and the settings of some runs (`compare`) as two tables."""
    models = [
        [title(row["model"]), name, f"{percent(score['mean'])} ({interval(Score(**score))})",
         f"{100 * d['difference']:+.1f} ({signed_interval(Difference(**d))})" if d else ""]
        for row in compared["models"]
        for name, score, d in zip(names, row["scores"], row["differences"], strict=True)
        if score
    ]  # fmt: skip
    settings = [[row["key"], *map(json.dumps, row["values"])] for row in compared["settings"]]
    header = ("model", "run", "pass@1, 95% interval", f"points from {names[0]}, paired")
    return f"{markdown.table(header, models)}\n\n{markdown.table(('setting', *names), settings)}"


def _models(runs: Sequence[RunFolder]) -> list[Json]:
    rows: list[Json] = []
    for name in model_titles():
        results = [run.results.models.get(name) if run.results else None for run in runs]
        if not any(results):
            continue
        solved = [evaluation.solved(run.folder(f"eval/{name}")) for run in runs]
        rows.append({
            "model": name,
            "scores": [r.pass_at_1.model_dump() if r else None for r in results],
            "differences": [{}] + [comparison.difference(other, solved[0]) for other in solved[1:]],
        })  # fmt: skip
    return rows


def _settings(runs: Sequence[RunFolder]) -> list[Json]:
    flat = [dict(lineage.flatten(run.config.config)) if run.config else {} for run in runs]
    keys = dict.fromkeys(key for values in flat for key, value in values.items() if not isinstance(value, dict))
    rows: list[Json] = [{"key": key, "values": [values.get(key) for values in flat]} for key in keys if key not in _OWN]
    return [row for row in rows if any(value != row["values"][0] for value in row["values"])]


def _stages(runs: Sequence[RunFolder]) -> list[Json]:
    stages = dict.fromkeys(stage for run in runs for stage in run.manifests)
    digests = {stage: [m.digest if (m := run.manifests.get(stage)) else None for run in runs] for stage in stages}
    return [{"stage": stage, "digests": values} for stage, values in digests.items()]
