"""The stages of a run as a tree: where each comes from, with its size, time and figures (`astro show`)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from etils import epath
from rich.markup import escape
from rich.tree import Tree

from astro_jax import stage_folder, storage
from astro_jax.report import run_folder
from astro_jax.report.run_folder import RunFolder
from astro_jax.stage_folder import Inputs
from astro_jax.stages import EVALUATIONS, STAGES, get
from astro_jax.storage import Json


def describe(path: epath.PathLike) -> Json:
    """Describe the stages of a run, for `astro show`.

    Returns:
      {"run", "command", "stages": [{"stage", "parent", "state", "from", "digest", "changed", "bytes", "wall_s",
      "figures"}], "previous": {"count", "bytes"}}. The parent is the stage below which the tree shows it. `changed`
      names the parents that have run again since.

    Raises:
      AstroError: when the folder is no run, a file has a bad value, or a reference leads nowhere.
    """
    run = run_folder.read(path)
    names = (*STAGES, *EVALUATIONS)
    present = [name for name in names if (run.path / name / stage_folder.INPUTS).exists() or name in run.manifests]
    previous = run.path / stage_folder.PREVIOUS
    return {
        "run": str(run.path),
        "command": run.config.command if run.config else None,
        "stages": [_stage(run, name, present) for name in present],
        "previous": {
            "count": sum(1 for _ in previous.iterdir()) if previous.exists() else 0,
            "bytes": _bytes(previous),
        },
    }


def render(description: Json) -> Tree:
    """Draw a description (`describe`) as a tree."""
    root = Tree(f"[bold]{escape(description['run'])}[/bold]  {escape(description['command'] or '')}")
    branches: dict[str | None, Tree] = {None: root}
    waiting = list(description["stages"])
    while waiting:
        stage = next(s for s in waiting if s["parent"] in branches)
        waiting.remove(stage)
        branches[stage["stage"]] = branches[stage["parent"]].add(_line(stage))
    if description["previous"]["count"]:
        size = _size(description["previous"]["bytes"])
        root.add(f"previous  {description['previous']['count']} results put aside, {size}; a config that asks for them "
                 "gets them back")  # fmt: skip
    return root


def _stage(run: RunFolder, name: str, present: list[str]) -> Json:
    folder = run.folder(name)
    inputs, manifest = stage_folder.read_inputs(folder), run.manifests.get(name)
    above = [p for p in reversed(_ancestors(name)) if p in present]
    return {
        "stage": name,
        "parent": above[0] if above else None,
        "state": "finished" if manifest else "not finished",
        "from": stage_folder.other_run(run.path, name),
        "digest": manifest.digest if manifest else inputs.digest if inputs else None,
        "changed": _changed_parents(run, inputs),
        "rounding": _rounding(run, inputs),
        "bytes": _bytes(folder),
        "wall_s": manifest.wall_s if manifest else None,
        "figures": _figures(run, name),
    }


def _ancestors(name: str) -> list[str]:
    """The stages below which the tree may show a stage; the last that the run has is taken."""
    stage = get(name)
    if name in ("base", "report"):
        return []
    return list(dict.fromkeys(("base", *([stage.initial_model] if stage.initial_model else []), *stage.parents[:1])))


def _changed_parents(run: RunFolder, inputs: Inputs | None) -> list[str]:
    """The parents whose results are no longer those that the stage was made from."""
    parents = inputs.parents if inputs else {}
    return [p for p, digest in parents.items() if p in run.manifests and run.manifests[p].digest != digest]


def _rounding(run: RunFolder, inputs: Inputs | None) -> list[str]:
    """The settings with an effect on the rounding that differ from the run's config, as "mesh.data=1"."""
    if inputs is None or run.config is None:
        return []
    return [f"{key}={inputs.settings[key]}" for key in inputs.rounding_changes(dict(flatten(run.config.config)))]


def flatten(config: Json, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings of a config by their dotted names, and the sections themselves."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        yield prefix + key, value


def _figures(run: RunFolder, name: str) -> str:
    """The main figures of a stage in a few words."""
    manifest = run.manifests.get(name)
    extra = (manifest.model_extra or {}) if manifest else {}
    if name.endswith("-suites"):
        rates = extra.get("results", {}).items()
        return ", ".join(f"{suite} {100 * figures['pass@1']['mean']:.1f}%" for suite, figures in rates)
    if "pass@1" in (results := extra.get("results", {})):
        return f"pass@1 {100 * results['pass@1']['mean']:.1f}%, greedy {100 * results['greedy']['mean']:.1f}%"
    if "k" in results:
        return f"maj@{results['k']} {100 * results['mean']:.1f}%"
    if "sampled_tokens" in extra:
        return f"{extra['trees']:,} trees, {100 * extra['yield']:.0f}% solved, {extra['sampled_tokens']:,} tokens"
    if isinstance(extra.get("ASTRO"), dict):
        return f"{extra['ASTRO']['examples']:,} + {extra['Direct']['examples']:,} examples"
    if rows := run.metrics.get(name):
        keys = ("solve_rate", "loss") if "solve_rate" in rows[-1] else ("loss",)
        return f"{rows[-1]['step']:,} steps, {keys[0].replace('_', ' ')} {rows[-1].get(keys[0], math.nan):.3g}"
    return ""


def _line(stage: Json) -> str:
    facts = [f"kept from {stage['from']}"] if stage["from"] else []
    facts += [stage["state"]] if stage["state"] != "finished" else []
    facts += [stage["figures"]] if stage["figures"] else []
    facts += [_size(stage["bytes"])]
    facts += [_duration(stage["wall_s"])] if stage["wall_s"] is not None else []
    facts += [f"made with {', '.join(stage['rounding'])}"] if stage["rounding"] else []
    line = f"[bold]{stage['stage']}[/bold]  {escape(', '.join(facts))}  [dim]{stage['digest'] or ''}[/dim]"
    changed = " and ".join(stage["changed"])
    return line + (f"  [yellow]out of date: {changed} changed[/yellow]" if changed else "")


def _bytes(folder: epath.Path) -> int:
    return sum(file.stat().length for file in storage.files(folder)) if folder.exists() else 0


def _size(n: float) -> str:
    """1234567 as "1.2 MB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "bytes" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def _duration(seconds: float) -> str:
    """83.4 as "1 min 23 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
