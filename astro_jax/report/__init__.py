"""One self-contained HTML page about one run, or about several side by side.

Results, behaviour and errors as pictures, curves, search trees beside their traces, and answers as graphs of steps.

The page needs no network and no server. Text that a model wrote is embedded as JSON and shown as text. The content
security policy of the page runs no script but its own.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import Any

import jinja2
from etils import epath

from astro_jax import phrases, stage_folder, storage
from astro_jax.report import held_out, rollout_texts, run_folder, search_figures, selection, side_by_side, summary
from astro_jax.report.run_folder import RunFolder
from astro_jax.stages import MODELS, STAGES
from astro_jax.storage import Json

# The fixed phrases of a trace. The page marks them wherever a model writes them; an open phrase up to the line's end.
MARKS: tuple[Json, ...] = tuple(
    {
        "text": phrase.strip(),
        "kind": "backtrack" if phrase in phrases.BACKTRACKS else "reflect",
        "to_end": not phrase.endswith("\n"),
    }
    for phrase in phrases.PHRASES
)
_SCRIPTS = (  # in the order they run
    "dom.js", "charts.js", "bars.js", "tree.js", "graph.js", "results.js", "training.js", "behaviour.js", "runs.js",
    "trees.js", "answers.js", "app.js",
)  # fmt: skip
_HERE = epath.resource_path("astro_jax.report")
# Inside a script element: the filter `tojson` escapes "<", ">" and "&", so no text can close the element.
_JINJA = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
_JINJA.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "allow_nan": False, "separators": (",", ":")}


def build(run_dirs: Sequence[epath.PathLike]) -> str:
    """The page about some runs, as HTML. Equal folders give equal bytes.

    Args:
      run_dirs: the folder of one run; or of several, which the page shows side by side. The first is the baseline.

    Raises:
      AstroError: when a folder does not exist, or when a file lacks a field or holds a bad value.
    """
    runs, names = [run_folder.read(path) for path in run_dirs], side_by_side.names(run_dirs)
    data = page_data(runs, names)
    compared = data["compared"]
    script = "(() => {\n'use strict';\n" + "\n".join((_HERE / name).read_text() for name in _SCRIPTS) + "\n})();"
    return _JINJA.from_string((_HERE / "template.html").read_text()).render(
        name=", ".join(names),
        kind="runs" if compared else "run",
        headline=side_by_side.headline(names, compared["models"]) if compared else summary.headline(runs[0].results),
        missing=_missing(runs, names),
        style=(_HERE / "style.css").read_text(),
        data=selection.finite(data),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _missing(runs: Sequence[RunFolder], names: Sequence[str]) -> str:
    """The sentence about what the folders lack; "" where they lack nothing."""
    lacks = {name: "; ".join(run_folder.missing(run)) for name, run in zip(names, runs, strict=True)}
    if len(runs) == 1:
        return f"Not in this folder yet: {lacks[names[0]]}." if lacks[names[0]] else ""
    return " ".join(f"Not in {name} yet: {text}." for name, text in lacks.items() if text)


def write(run_dirs: Sequence[epath.PathLike], path: epath.PathLike) -> None:
    """Write the page about some runs (`build`) to a file, atomically."""
    storage.write_text(epath.Path(path), build(run_dirs))


def page_data(runs: Sequence[RunFolder], names: Sequence[str]) -> Json:
    """The data that the script of the page reads. Its texts come from models and are not trusted.

    Returns:
      `names` of models, `phrases`, `runs`: `run_data` of each run with its `name`, and `compared`
      (side_by_side.compare), None for one run.
    """
    data: list[Json] = []
    for name, run in zip(names, runs, strict=True):
        shown = [p["id"] for p in data[0]["held_out"]["problems"]] if data else []
        data.append({"name": name} | run_data(run, shown, len(runs)))
    compared = side_by_side.compare(runs) if len(runs) > 1 else None
    return {"names": summary.model_titles(), "phrases": MARKS, "runs": data, "compared": compared}


def run_data(run: RunFolder, held_out_ids: Sequence[Any] = (), runs: int = 1) -> Json:
    """What the page shows of one run.

    Args:
      run: the run.
      held_out_ids: the held-out problems to show; () for some of each outcome.
      runs: how many runs the page shows.
    """
    results = run.results
    figures = results.model_dump(by_alias=True, exclude_none=True) if results else {}
    return {
        **{key: figures.get(key, {}) for key in ("models", "differences", "difficulty")},
        "equal_tokens": summary.equal_tokens(results),
        "metrics": {stage: summary.thin(rows) for stage, rows in run.metrics.items() if rows},
        "pearson": {
            prefix: {n: summary.correlation(run.metrics[n], prefix) for n in MODELS if STAGES[n].command == "grpo"}
            for prefix in ("", "eval_")
        },
        "counts": run.counts,
        "rollouts": rollout_texts.for_page(run),
        "problems": selection.problems(run, runs),
        "held_out": held_out.held_out(run, held_out_ids),
        "search": search_figures.search_figures(run),
        "provenance": provenance(run),
    }  # fmt: skip


def provenance(run: RunFolder) -> Json:
    """The origin of the figures: seed, versions, command, and the time, inputs and counts of each stage."""
    stages = [
        {
            "stage": stage, "wall_s": manifest.wall_s, "digest": manifest.digest, "extra": manifest.model_extra,
            "from": stage_folder.other_run(run.path, stage),
        }
        for stage, manifest in run.manifests.items()
    ]  # fmt: skip
    versions: dict[str, list[str]] = {}
    for manifest in run.manifests.values():
        for name, version in manifest.versions.items():
            if version not in versions.setdefault(name, []):
                versions[name].append(version)
    config = run.config.config if run.config else {}
    return {
        "seed": run.results.seed if run.results else config.get("seed"),
        "versions": versions,
        "command": run.config.command if run.config else None,
        "stages": stages,
        "config": config or None,
    }
