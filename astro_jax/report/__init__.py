"""One self-contained HTML page about a run: results, curves, data, and search trees beside their traces.

The page needs no network and no server. Text that a model wrote is embedded as JSON and shown as text. The content
security policy of the page runs no script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import math
from typing import Any

import jinja2
from etils import epath

from astro_jax import phrases, stage_folder, storage
from astro_jax.report import rollout_texts, run_folder, selection, summary
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
_SCRIPTS = ("dom.js", "charts.js", "tree.js", "results.js", "explore.js", "app.js")  # in the order they run
_HERE = epath.resource_path("astro_jax.report")
# Inside a script element: the filter `tojson` escapes "<", ">" and "&", so no text can close the element.
_JINJA = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
_JINJA.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "allow_nan": False, "separators": (",", ":")}


def build(run_dir: epath.PathLike) -> str:
    """The page about the run in `run_dir`, as HTML. Equal folders give equal bytes.

    Raises:
      AstroError: when the folder does not exist, or when a file lacks a field or holds a bad value.
    """
    run = run_folder.read(run_dir)
    missing = run_folder.missing(run)
    script = "(() => {\n'use strict';\n" + "\n".join((_HERE / name).read_text() for name in _SCRIPTS) + "\n})();"
    return _JINJA.from_string((_HERE / "template.html").read_text()).render(
        name=run.path.name,
        headline=summary.headline(run.results),
        missing=f"Not in this folder yet: {'; '.join(missing)}." if missing else "",
        style=(_HERE / "style.css").read_text(),
        data=_finite(page_data(run)),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def write(run_dir: epath.PathLike) -> epath.Path:
    """Write the page to report.html in `run_dir`, atomically, and return its path."""
    path = epath.Path(run_dir) / "report.html"
    storage.write_text(path, build(run_dir))
    return path


def page_data(run: RunFolder) -> Json:
    """The data that the script of the page reads. Its texts come from models and are not trusted."""
    models = run.results.models if run.results else {}
    return {
        "names": summary.model_titles(),
        "phrases": MARKS,
        "models": {name: m.model_dump(by_alias=True, exclude_none=True) for name, m in models.items()},
        "equal_tokens": summary.equal_tokens(run.results),
        "metrics": {stage: summary.thin(rows) for stage, rows in run.metrics.items() if rows},
        "pearson": {name: summary.correlation(run.metrics[name]) for name in MODELS if STAGES[name].command == "grpo"},
        "counts": run.counts,
        "rollouts": rollout_texts.for_page(run),
        "problems": selection.problems(run),
        "held_out": selection.held_out(run),
        "provenance": provenance(run),
    }


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


def _finite(value: Any) -> Any:
    """The same value with NaN and infinities as None, since JSON has neither; lone surrogates become "?"."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {_finite(str(k)): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value
