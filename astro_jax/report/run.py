"""Reads a run's folder. A stage that has not run leaves None or an empty list behind; bad content is an AstroError."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from etils import epath

from astro_jax import storage
from astro_jax.errors import AstroError
from astro_jax.storage import Json, Shards

MODELS = ("base", "direct-sft", "astro-sft", "direct-rl", "astro-rl")
STAGES = ("problems", "base", "search", "traces", "direct-sft", "astro-sft", "direct-rl", "astro-rl", "eval")
_MODEL_NUMBERS = ("mean_tokens", "mean_backtracks", "valid_rate", "truncated_rate")


@dataclasses.dataclass(frozen=True)
class Run:
    """The small files of a run, read; the large ones (trees, traces, answers) are read where they are chosen from."""

    path: epath.Path
    config: Json | None  # {"hash", "config"}
    results: Json | None  # {"seed", "wall_s", "models"}
    counts: Json | None  # of the data made from the trees
    manifests: dict[str, Json]  # by stage, in the order of the pipeline
    metrics: dict[str, list[Json]]  # by training stage, one row a step


def read(path: epath.PathLike) -> Run:
    """Reads the small files of the run at `path`.

    Raises:
      AstroError: when there is no such folder, or a file in it is not what its stage writes.
    """
    root = epath.Path(path)
    if not root.is_dir():
        raise AstroError(f"{root}: no such run folder: give the folder that `astro run` wrote")
    results = read_json(root / "results.json")
    if results is not None:
        check_results(results, root / "results.json")
    return Run(
        path=root,
        config=read_json(root / "config.json"),
        results=results,
        counts=read_json(root / "traces" / "counts.json"),
        manifests=_manifests(root),
        metrics={stage: _metrics(root / stage / "metrics.jsonl") for stage in MODELS[1:]},
    )


def missing(run: Run) -> list[str]:
    """What a whole run has and this folder lacks, as "stage (file)"."""
    lacks = [] if run.config else ["the configuration (config.json)"]
    if not Shards(run.path / "search", "trees").has(0):
        lacks.append("search (search/trees-*.jsonl)")
    if not (run.path / "traces" / "astro.jsonl").exists():
        lacks.append("traces (traces/astro.jsonl)")
    lacks += [f"{stage} ({stage}/metrics.jsonl)" for stage, rows in run.metrics.items() if not rows]
    evaluated = (run.results or {}).get("models", {})
    if run.results is None:
        lacks.append("evaluation (results.json)")
    elif absent := [name for name in MODELS if name not in evaluated]:
        lacks.append(f"the evaluation of {', '.join(absent)} (results.json)")
    return lacks


def read_json(path: epath.Path) -> Json | None:
    """The object in a JSON file, or None when there is no file."""
    return storage.read_json(path) if path.exists() else None


def lines(path: epath.Path) -> Iterator[Json]:
    """The objects of a JSONL file, one at a time; none when there is no file. Its stage may be running still."""
    return storage.read_jsonl(path, allow_truncated=True) if path.exists() else iter(())


def number(value: Any) -> bool:
    """Whether this is a finite number (and not a bool)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_results(results: Json, path: epath.Path) -> None:
    """Raises an AstroError that names the first field of results.json that is missing or out of range."""

    def fail(where: str, what: str) -> None:
        raise AstroError(f"{path}: {where} {what}: run the evaluation again")

    def check_score(where: str, score: Any) -> None:
        if not isinstance(score, dict):
            fail(where, "is missing")
        for key in ("mean", "low", "high"):
            if not number(score.get(key)) or not 0 <= score[key] <= 1:
                fail(f"{where}.{key}", f"must be a fraction from 0 to 1, found {score.get(key)!r}")
        if not number(score.get("n")):
            fail(f"{where}.n", f"must be a number, found {score.get('n')!r}")

    if not isinstance(results.get("models"), dict):
        fail("models", "is missing")
    for name, model in results["models"].items():
        if not isinstance(model, dict):
            fail(f"models.{name}", "must be an object")
        check_score(f"models.{name}.pass@1", model.get("pass@1"))
        check_score(f"models.{name}.greedy", model.get("greedy"))
        for key in _MODEL_NUMBERS:
            if not number(model.get(key)):
                fail(f"models.{name}.{key}", f"must be a number, found {model.get(key)!r}")
        if model.get("maj") is not None:
            check_score(f"models.{name}.maj", model["maj"])
            for key in ("k", "mean_tokens"):
                if not number(model["maj"].get(key)):
                    fail(f"models.{name}.maj.{key}", f"must be a number, found {model['maj'].get(key)!r}")


def _manifests(root: epath.Path) -> dict[str, Json]:
    """Each stage's manifest: the stages of the pipeline in its order, then any others by name."""
    found = {path.parent.name: read_json(path) or {} for path in root.glob("*/manifest.json")}
    rank = {stage: i for i, stage in enumerate(STAGES)}
    return {stage: found[stage] for stage in sorted(found, key=lambda s: (rank.get(s, len(rank)), s))}


def _metrics(path: epath.Path) -> list[Json]:
    """One row a step, in order. A resumed run may repeat steps: the last row written counts."""
    rows = {row["step"]: row for row in lines(path) if number(row.get("step"))}
    return [rows[step] for step in sorted(rows)]
