"""What backtracks give in the answers of a run: its answers with a cap on backtracks, and slopes within problems.

These are the figures of `astro compare --pool` (evaluate.pooled), for one run, with intervals over its problems.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from etils import epath

from astro_jax.errors import AstroError
from astro_jax.evaluate import pooled
from astro_jax.evaluate import run as evaluation
from astro_jax.evaluate.behaviour import Behaviour
from astro_jax.evaluate.pooled import Answer
from astro_jax.progress import log
from astro_jax.report.run_folder import RunFolder
from astro_jax.stages import MODELS
from astro_jax.storage import Json, Shards

ANY = "any"  # the name of answers without a cap


def search_figures(run: RunFolder) -> dict[str, dict[str, Json]]:
    """The figures of each model on the held-out problems ("held-out") and on each suite of the run.

    Returns:
      by set of problems and model: `limits`, by the cap ("0", "1", ..., ANY) the share of right answers if each had to
      end after so many backtracks, for a model that never goes back by ANY alone; and `slopes` (pooled.SLOPES), {}
      where each problem has one answer. A figure has `mean`, `low`, `high`, and `n` problems. Answers of an older
      version are left out.
    """
    sets: dict[str, dict[str, Json]] = {}
    for name in MODELS:
        if len(answers := _held_out(run.folder(f"eval/{name}"))) > 1:
            sets.setdefault("held-out", {})[name] = _figures(answers)
        for path in pooled.answer_files(run.folder(f"eval/{name}-suites")):
            if len(answers := _of_suite(path.parent)) > 1:
                sets.setdefault(path.parent.name, {})[name] = _figures(answers)
    return sets


def _held_out(folder: epath.Path) -> Mapping[str, Sequence[Answer]]:
    """The sampled answer to each held-out problem; {} where an older version has written one."""
    rows = {row["problem_id"]: row["sampled"] for row in Shards(folder, evaluation.ANSWERS).read()}
    if not all("behaviour" in row for row in rows.values()):
        return {}
    return {
        i: [Answer(r["correct"], r["tokens"], r["truncated"], r["error"], Behaviour.from_json(r["behaviour"]))]
        for i, r in rows.items()
    }


def _of_suite(folder: epath.Path) -> Mapping[str, Sequence[Answer]]:
    """The answers to each problem of a suite; {} where they cannot be read."""
    try:
        return pooled.read(folder)
    except AstroError as e:
        log(f"the report leaves out the caps and slopes of a suite: {e}")
        return {}


def _figures(answers: Mapping[str, Sequence[Answer]]) -> Json:
    cells = [[answers[i] for i in sorted(answers)]]  # one seed
    goes_back = any(a.behaviour.attempts > 1 for cell in answers.values() for a in cell)
    limits = pooled.shares(cells, pooled.WITHIN) if goes_back else {}
    limits[ANY] = pooled.shares(cells, "answers")["right"]
    rows = {"limits": limits, "slopes": pooled.slopes(cells)}
    return {name: {key: _figure(f, len(answers)) for key, f in figures.items()} for name, figures in rows.items()}


def _figure(figure: Json, n: int) -> Json:
    return {"mean": figure["value"], "low": figure["low"], "high": figure["high"], "n": n}
