"""One self-contained HTML page about a run: the results, the curves, the data, and the trees beside their traces.

The page needs no network and no server. Everything that a model wrote is data in it: it is embedded as JSON and put
on the page as text, and the page's content security policy runs no script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
import shlex
from typing import Any

from etils import epath

from astro_jax import phrases, storage
from astro_jax.report import choose, summary
from astro_jax.report.run import Json, Run, missing, read

# The fixed phrases of a trace, which the page marks wherever a model writes them; the open ones up to their line's end.
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


def build(run_dir: epath.PathLike) -> str:
    """The page about the run in `run_dir`, as HTML. The same folder gives the same bytes.

    Raises:
      AstroError: when there is no such folder, or a file in it is not what its stage writes.
    """
    run = read(run_dir)
    lacks = missing(run)
    script = "(() => {\n'use strict';\n" + "\n".join((_HERE / name).read_text() for name in _SCRIPTS) + "\n})();"
    parts = {
        "title": html.escape(f"ASTRO run {run.path.name}"),
        "name": html.escape(run.path.name),
        "headline": html.escape(summary.headline(run.results)),
        "missing": html.escape(f"Not in this folder yet: {'; '.join(lacks)}." if lacks else ""),
        "style": (_HERE / "style.css").read_text(),
        "data": _embed(page_data(run)),
        "script": script,
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }
    template = (_HERE / "template.html").read_text()
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def write(run_dir: epath.PathLike) -> epath.Path:
    """Writes the page to report.html in `run_dir`, whole or not at all, and returns its path."""
    path = epath.Path(run_dir) / "report.html"
    storage.write_text(path, build(run_dir))
    return path


def page_data(run: Run) -> Json:
    """What the page's script reads; its texts come from models and are not trusted."""
    return {
        "names": summary.NAMES,
        "phrases": MARKS,
        "models": (run.results or {}).get("models", {}),
        "equal_tokens": summary.equal_tokens(run.results),
        "metrics": {stage: summary.thin(rows) for stage, rows in run.metrics.items() if rows},
        "pearson": {stage: summary.correlation(run.metrics[stage]) for stage in ("direct-rl", "astro-rl")},
        "counts": run.counts,
        "problems": choose.problems(run),
        "held_out": choose.held_out(run),
        "provenance": provenance(run),
    }


def provenance(run: Run) -> Json:
    """Where the numbers come from: seed, hash, versions, command, and each stage's wall time and counts."""
    known = {"stage", "wall_s", "versions", "config_hash", "command", "argv"}
    stages = [
        {"stage": stage, "wall_s": m.get("wall_s"), "extra": {k: v for k, v in m.items() if k not in known}}
        for stage, m in run.manifests.items()
    ]
    versions: dict[str, list[str]] = {}
    for manifest in run.manifests.values():
        for name, version in (manifest.get("versions") or {}).items():
            if str(version) not in versions.setdefault(name, []):
                versions[name].append(str(version))
    config = run.config or {}
    return {
        "seed": (run.results or {}).get("seed", (config.get("config") or {}).get("seed")),
        "hash": config.get("hash"),
        "other_hashes": sorted(
            {str(m["config_hash"]) for m in run.manifests.values() if m.get("config_hash")} - {str(config.get("hash"))}
        ),
        "versions": versions,
        "command": _command(run),
        "stages": stages,
        "config": config.get("config"),
    }


def _command(run: Run) -> str | None:
    """The command that made the run, if config.json or a manifest holds it."""
    for record in (run.config or {}, *run.manifests.values()):
        command = record.get("command") or record.get("argv")
        if command:
            return shlex.join(map(str, command)) if isinstance(command, list) else str(command)
    return None


def _embed(data: Json) -> str:
    """JSON that is safe inside a script element: no "<" or "&" of any text is left, so no text can close it."""
    text = json.dumps(_finite(data), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def _finite(value: Any) -> Any:
    """The same value with NaN and infinities as None, which JSON can hold; lone surrogates become "?"."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {_finite(str(k)): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value
