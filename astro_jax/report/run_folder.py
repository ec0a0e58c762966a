"""Reads the folder of a run, and checks the fields of its files.

A stage that has not run leaves None or an empty list. A file with missing or bad fields raises an AstroError.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar

import pydantic
from etils import epath
from pydantic import Field

from astro_jax import stage_folder, storage
from astro_jax.errors import AstroError
from astro_jax.search.store import shards
from astro_jax.stages import DEFAULT_STAGES, EVALUATIONS, MODELS, STAGES, models_of
from astro_jax.storage import Json

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Fraction = Annotated[float, Field(strict=True, ge=0, le=1)]
Count = Annotated[int, Field(strict=True, ge=0)]

_MESSAGES = {"missing": "is missing", "model_type": "must be an object, found {input!r}"}


class Score(pydantic.BaseModel):
    """A success rate with its 95% interval, over n problems."""

    mean: Fraction
    low: Fraction
    high: Fraction
    n: Count


class MajorityVote(Score):
    """maj@k: the score of the most common of k answers. `mean_tokens` counts all k answers to a problem."""

    k: Count
    mean_tokens: Number


class Difference(pydantic.BaseModel):
    """A paired difference in pass@1 with its 95% interval, over n problems."""

    difference: Number
    low: Number
    high: Number
    n: Count


class Behaviour(pydantic.BaseModel):
    """How a model searches in its answers (evaluate.behaviour.summarize)."""

    reflections: Number
    backtracks: Number
    restarts: Number
    attempts: Number
    repeat: Fraction
    first_attempt_right: Fraction
    changes: dict[str, Count]
    repair_rate: Fraction | None
    spoil_rate: Fraction | None
    by_attempts: dict[str, Score]


class Calibration(Score):
    """How often the votes of like confidence are right."""

    confidence: Fraction


class SuiteResults(pydantic.BaseModel, extra="allow"):
    """One suite of a model. Further fields are pass@N and maj@N, and those that the page does not show."""

    n: Count
    rule: str
    pass_at_1: Score = Field(alias="pass@1")
    tokens: Number
    truncated: Fraction
    unparsed: Fraction
    behaviour: Behaviour
    errors: dict[str, Fraction]
    by_level: dict[str, Score] = {}
    calibration: list[Calibration] = []


class ModelResults(pydantic.BaseModel):
    """One model in results.json. Means and rates are of the answers sampled at temperature 1."""

    pass_at_1: Score = Field(alias="pass@1")
    greedy: Score
    mean_tokens: Number
    mean_backtracks: Number
    valid_rate: Number
    truncated_rate: Number
    maj: MajorityVote | None = None
    behaviour: Behaviour | None = None  # none in answers of an older version
    errors: dict[str, Fraction] | None = None
    suites: dict[str, SuiteResults] | None = None


class Difficulty(Score):
    """The accuracy of a model on the problems of one difficulty."""

    difficulty: str


class Results(pydantic.BaseModel):
    """results.json."""

    models: dict[str, ModelResults]
    seed: Count
    wall_s: Number
    differences: dict[str, dict[str, Difference]] = {}  # by set of problems, then by "MODEL - OTHER"
    difficulty: dict[str, dict[str, list[Difficulty]]] = {}  # by set of problems, then by model


class Manifest(pydantic.BaseModel, extra="allow"):
    """manifest.json of a finished stage. Further fields are the counts of the stage."""

    stage: str
    digest: str
    parents: list[str]
    wall_s: Number
    versions: dict[str, str]


class RunConfig(pydantic.BaseModel):
    """config.json: the configuration of a run, and the command that ran it last."""

    command: str
    config: Json


FileModel = TypeVar("FileModel", bound=pydantic.BaseModel)


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The small files of a run. The large files (trees, traces, answers) are read by `report.selection`.

    Attributes:
      path: the folder.
      config: config.json.
      results: results.json.
      counts: traces/counts.json, of the data made from the trees.
      manifests: by stage, in the order of the pipeline.
      old_stages: the stages whose manifest is of version 0.2 or older, without a digest. They are not in `manifests`.
      metrics: metrics.jsonl and timings.jsonl by training stage, one row a step.
    """

    path: epath.Path
    config: RunConfig | None
    results: Results | None
    counts: Json | None
    manifests: dict[str, Manifest]
    old_stages: list[str]
    metrics: dict[str, list[Json]]

    def folder(self, stage: str) -> epath.Path:
        """The folder that holds the results of a stage, which may lie in another run."""
        return stage_folder.resolve(self.path, stage)


def read(path: epath.PathLike) -> RunFolder:
    """Read the small files of the run at `path`.

    Raises:
      AstroError: when the folder does not exist, or when a file lacks a field or holds a bad value.
    """
    root = epath.Path(path)
    if not root.is_dir():
        raise AstroError(f"{root}: no such run folder: give the folder that `astro run` wrote")
    if not (root / "config.json").exists() and "settings" in (_read_json(root / "results.json") or {}):
        raise AstroError(f"{root}: holds results of `astro eval` and no run; compare them with `astro compare --pool`")
    trained = [name for name in MODELS if STAGES[name].initial_model]
    manifests, old_stages = _read_manifests(root)
    return RunFolder(
        path=root,
        config=_read_model(RunConfig, root / "config.json", "choose another folder, or start the run again"),
        results=_read_model(Results, root / "results.json", "run the evaluation again"),
        counts=_read_json(stage_folder.resolve(root, "traces") / "counts.json"),
        manifests=manifests,
        old_stages=old_stages,
        metrics={stage: _read_metrics(stage_folder.resolve(root, stage)) for stage in trained},
    )


def require(path: epath.PathLike) -> None:
    """Check that a folder holds a run, or a part of one.

    Raises:
      AstroError: when the folder holds neither.
    """
    root = epath.Path(path)
    if root.is_dir() and not any((root / name).exists() for name in ("config.json", "results.json", *STAGES)):
        raise AstroError(f"{root}: holds no run; name the folder that `out` names, as in runs/quickstart")


def missing(run: RunFolder) -> list[str]:
    """What a whole run has and this folder lacks, as "stage (file)"."""
    stages = run.config.config.get("stages", DEFAULT_STAGES) if run.config else DEFAULT_STAGES
    models = models_of(stages)
    lacks = [] if run.config else ["the configuration (config.json)"]
    lacks += [f"the provenance of {', '.join(run.old_stages)} (made by an older version)"] if run.old_stages else []
    if "search" in stages and not shards(run.folder("search")).has(0):
        lacks.append("search (search/trees-*.jsonl.gz)")
    if "traces" in stages and not (run.folder("traces") / "astro.jsonl").exists():
        lacks.append("traces (traces/astro.jsonl)")
    lacks += [f"{s} ({s}/metrics.jsonl)" for s, rows in run.metrics.items() if not rows and s in models]
    if run.results is None:
        lacks.append("evaluation (results.json)")
    elif absent := [name for name in models if name not in run.results.models]:
        lacks.append(f"the evaluation of {', '.join(absent)} (results.json)")
    return lacks


def read_lines(path: epath.Path) -> Iterator[Json]:
    """The objects of a JSONL file; none when the file does not exist.

    A torn last line is left out: the stage may still be writing.
    """
    return storage.read_jsonl(path, allow_truncated=True) if path.exists() else iter(())


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, and not a bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def parse(model: type[FileModel], value: Json, path: epath.Path, advice: str) -> FileModel:
    """Check the fields of a file.

    Raises:
      AstroError: one line that names the file, its first bad field, and what to do (`advice`).
    """
    try:
        return model.model_validate(value)
    except pydantic.ValidationError as e:
        error = e.errors()[0]
        field = ".".join(map(str, error["loc"]))
        message = _MESSAGES.get(error["type"], "must be {expected}, found {input!r}")
        expected = error["msg"].removeprefix("Input should be ")
        raise AstroError(f"{path}: {field} {message.format(expected=expected, input=error['input'])}: {advice}") from e


def _read_json(path: epath.Path) -> Json | None:
    return storage.read_json(path) if path.exists() else None


def _read_model(model: type[FileModel], path: epath.Path, advice: str) -> FileModel | None:
    value = _read_json(path)
    return None if value is None else parse(model, value, path, advice)


def _read_manifests(root: epath.Path) -> tuple[dict[str, Manifest], list[str]]:
    """The manifests of the stages, in the order of the pipeline, then any other stages by name; and the old stages."""
    others = {path.parent.name for path in root.glob("*/manifest.json")} - STAGES.keys()
    names = (*(part for stage in STAGES for part in (EVALUATIONS if stage == "eval" else (stage,))), *sorted(others))
    paths = {name: stage_folder.resolve(root, name) / stage_folder.MANIFEST for name in names}
    values = {name: storage.read_json(path) for name, path in paths.items() if path.exists()}
    manifests = {
        stage: parse(Manifest, value, paths[stage], "remove it and run the stage again")
        for stage, value in values.items()
        if "digest" in value
    }
    return manifests, [stage for stage in values if stage not in manifests]


def _read_metrics(folder: epath.Path) -> list[Json]:
    """One row a step of metrics.jsonl, in order, with the times of timings.jsonl.

    Where a step comes twice, the row written last counts.
    """
    rows, times = (
        {row["step"]: row for row in read_lines(folder / name) if is_number(row.get("step"))}
        for name in ("metrics.jsonl", "timings.jsonl")
    )
    return [times.get(step, {}) | rows[step] for step in sorted(rows)]
