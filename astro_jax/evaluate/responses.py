"""The responses of one model to one suite: n samples a problem, in Parquet files, resumable at any problem.

    FOLDER/settings.json           what the responses depend on
    FOLDER/responses-00000.parquet the responses to some problems

A file is written whole or not at all. A file that exists is not made again.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from astro_jax import config as cfg
from astro_jax import distributed, storage
from astro_jax.errors import AstroError
from astro_jax.evaluate import forced_backtracks
from astro_jax.policy import Policy
from astro_jax.problems import record_files
from astro_jax.problems.suites import Suite
from astro_jax.progress import ProgressBar
from astro_jax.sampler import SamplingParams
from astro_jax.types import Problem

SETTINGS = "settings.json"
_UNCOMPARED = ("versions", "model", "origin")  # parts of the settings that may differ when a suite goes on


@dataclasses.dataclass(frozen=True)
class SampledResponse:
    """One response.

    Attributes:
      problem_id: of the problem.
      sample: from 0 to n - 1.
      text: without the end token.
      token_ids: with the end token.
      stopped: whether an end token ended the text.
      forced: the places of the tokens in `token_ids` that were not sampled but forced (forced_backtracks).
      forced_at: where each forced backtrack begins in `text`, in characters.
    """

    problem_id: str
    sample: int
    text: str
    token_ids: list[int]
    stopped: bool
    forced: list[int] = dataclasses.field(default_factory=list)
    forced_at: list[int] = dataclasses.field(default_factory=list)


def require_parquet() -> None:
    """Check that Parquet files can be written, before a model samples for hours.

    Raises:
      AstroError: when pyarrow is missing.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as e:
        raise AstroError(
            "suites: the responses are kept in Parquet, which needs the extra `hub`: pip install pyarrow"
        ) from e


def prompt_of(problem: Problem, c: cfg.Eval) -> str:
    """The text that the model reads. `eval.prompt` is for mathematics: a game has a prompt of its own."""
    return c.prompt.replace("{problem}", problem.prompt) if problem.task == "math" else problem.prompt


def collect(
    folder: epath.Path,
    suite: Suite,
    problems: Sequence[Problem],
    c: cfg.Eval,
    policy: Policy,
    settings: Mapping[str, Any],
) -> list[SampledResponse]:
    """Sample `c.num_samples` responses to each problem, and write them. Responses that are there are read.

    Args:
      folder: of the suite.
      problems: those of the suite that fit the model's context.
      settings: what the responses depend on.

    Returns:
      all responses, n in a row for each problem.

    Raises:
      AstroError: when the folder holds responses of other settings.
    """
    require_parquet()
    claim(folder, settings)
    n, size = c.num_samples, max(1, c.shard_size // c.num_samples)
    shards = [problems[i : i + size] for i in range(0, len(problems), size)]
    paths = [folder / f"responses-{index:05d}.parquet" for index in range(len(shards))]
    done = sum(len(shard) for shard, path in zip(shards, paths, strict=True) if path.exists())
    sampling = SamplingParams(max_tokens=c.max_tokens, temperature=c.temperature)
    with ProgressBar(suite.name, n * len(problems), "answers", n * done) as bar:
        for shard, path in zip(shards, paths, strict=True):
            if not path.exists():
                requests = [policy.request(prompt_of(p, c), n, "eval", suite.name, p.id) for p in shard]
                groups = forced_backtracks.sample(policy, requests, sampling, c.min_backtracks, bar.advance)
                rows = [
                    SampledResponse(p.id, j, policy.tokenizer.decode(x.token_ids), *x)
                    for p, group in zip(shard, groups, strict=True)
                    for j, x in enumerate(group)
                ]
                distributed.assert_equal_across_processes(path.name)
                write_parquet(path, [vars(row) for row in rows])
                distributed.assert_equal_across_processes(f"{path.name}: written")
    return [row for path in paths for row in _read(path)]


def claim(folder: epath.Path, settings: Mapping[str, Any]) -> None:
    """Write settings.json, or check that what the folder holds has these settings.

    Raises:
      AstroError: when it has others.
    """
    path = folder / SETTINGS
    if not path.exists():
        storage.write_json(path, dict(settings))
    distributed.assert_equal_across_processes(f"{folder.name}: settings")
    old = storage.read_json(path)
    changed = [
        f"{key} was {old.get(key)}" for key in settings if key not in _UNCOMPARED and old.get(key) != settings[key]
    ]
    if changed:
        raise AstroError(
            f"{folder}: holds responses of other settings ({', '.join(changed[:3])}); choose another folder with "
            "out=DIR, or remove this one"
        )


def _read(path: epath.Path) -> Iterator[SampledResponse]:
    return (SampledResponse(**row) for row in read_parquet(path))


def write_parquet(path: epath.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as Parquet, atomically. Only the main process writes."""
    import pyarrow
    from pyarrow import parquet

    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), buffer)
    storage.write_bytes(path, buffer.getvalue())


def read_parquet(path: epath.Path) -> list[dict[str, Any]]:
    """Read the rows of a Parquet file.

    Raises:
      AstroError: when the file is missing or damaged.
    """
    return record_files.read_parquet(path, "; delete it and run the same command again")
