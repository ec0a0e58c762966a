"""Runs a sweep: each run keeps the stages that an earlier run has made, and a killed sweep goes on where it was."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

from astro_jax import check, pipeline, run_lock, run_plan, stage_inputs, storage
from astro_jax.errors import AstroError
from astro_jax.progress import log
from astro_jax.run_context import RunContext
from astro_jax.sweep import compare, page
from astro_jax.sweep.variants import Run


def plan(runs: Sequence[Run]) -> dict[str, Any]:
    """Count the stages of a sweep, without running any.

    Returns:
      `runs`, `stages` of all of them, and `different`: the stages with different inputs, each of which runs once.

    Raises:
      AstroError: with all that would stop a run of the sweep.
    """
    lines = {f"{run.variant.name}: {line}": None for run in runs for line in check.find(run.c)}
    if lines:
        raise AstroError("; ".join(lines))
    digests = []
    for run in runs:
        names = stage_inputs.planned(run.c)
        inputs = stage_inputs.of_run(run.c, names, functools.partial(run_plan.content, RunContext(run.c)))
        digests += [(name, inputs[name].digest) for name in names]
    return {"runs": len(runs), "stages": len(digests), "different": len(set(digests))}


def execute(out: epath.Path, runs: Sequence[Run], command: str) -> list[dict[str, Any]]:
    """Run a sweep, and write sweep.json, sweep.md and sweep.html into its folder.

    Raises:
      AstroError: when the folder holds something else, and as `pipeline.execute`.
    """
    if out.exists() and not (out / "sweep.json").exists() and {p.name for p in out.iterdir()} - {".lock"}:
        raise AstroError(f"{out}: not empty and not a sweep; choose another folder with out=DIR")
    with run_lock.hold(out, command):
        _write(out, runs, command, [])
        for i, run in enumerate(runs, 1):
            log(f"--- {i}/{len(runs)}: {run.variant.name}, seed {run.seed}")
            pipeline.execute(run.c, command)
            jax.clear_caches()  # a process may hold only so many compiled programs
        rows = compare.table(runs)
        _write(out, runs, command, rows)
        storage.write_text(out / "sweep.md", page.markdown_tables(rows))
        storage.write_text(out / "sweep.html", page.html(out.name, command, rows))
    return rows


def _write(out: epath.Path, runs: Sequence[Run], command: str, rows: Sequence[dict[str, Any]]) -> None:
    listed = [{"variant": run.variant.name, "seed": run.seed, "out": run.c.out} for run in runs]
    storage.write_json(out / "sweep.json", {"command": command, "runs": listed, "rows": list(rows)})
