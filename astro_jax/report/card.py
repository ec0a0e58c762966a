"""The model card of an exported checkpoint: what it is, how it was made, from what, and how well it does."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import yaml
from etils import epath

from astro_jax import storage
from astro_jax.errors import AstroError
from astro_jax.llama import params
from astro_jax.llama.config import LlamaConfig
from astro_jax.report.run import Run, read
from astro_jax.report.summary import NAMES, interval, percent

_WHAT = {
    "base": "the base model of the run",
    "direct-sft": "the control: the base, fine-tuned on solutions without backtracking",
    "astro-sft": "the base, fine-tuned on chains of thought that reflect and go back",
    "direct-rl": "the control: Direct-SFT, trained by GRPO with a verifiable reward",
    "astro-rl": "ASTRO-SFT, trained by GRPO with a verifiable reward",
}


def text(checkpoint: str, config: LlamaConfig) -> str:
    """The card of a checkpoint, in Markdown. What it tells of recipe, data, results and lineage comes from the run that
    the checkpoint lies in, as RUN/STAGE/model; of another folder it tells the shape alone.

    Raises:
      AstroError: when the run's files are damaged.
    """
    path = storage.absolute(checkpoint)
    stage, run = path.parent.name, _run(path.parent.parent)
    head = "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n\n# "
    shape = (
        f"A Llama of {params.count(config):,} parameters ({config.n_layers} layers, width {config.d_model}, "
        f"{config.n_heads} query and {config.n_kv_heads} key-value heads, {config.vocab_size:,} tokens)"
    )
    if run is None or stage not in NAMES:
        return f"{head}{path.name}\n\n{shape}, written by astro_jax.\n"
    start = ((run.config or {}).get("config") or {}).get("model")
    told = (
        f"{shape}: {_WHAT[stage]}, by ASTRO ([arXiv 2507.00417](https://arxiv.org/abs/2507.00417)) in astro_jax. The "
        f"run started from `{start}`."
    )
    parts = [f"{head}{NAMES[stage]} of {run.path.name}", told]
    return "\n\n".join([*parts, *_results(run, stage), *_data(run), *_recipe(run), *_lineage(run)]) + "\n"


def _run(folder: epath.Path) -> Run | None:
    """The run in a folder, where there is one."""
    try:
        found = read(folder)
    except AstroError:
        if (folder / "results.json").exists():
            raise
        return None
    return found if (found.config or {}).get("hash") else None


def _table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _results(run: Run, stage: str) -> list[str]:
    models = (run.results or {}).get("models", {})
    if not models:
        return ["## Results\n\nThis run has not been evaluated."]
    n = next(iter(models.values()))["pass@1"]["n"]
    rows = (
        [
            f"**{NAMES[name]}**" if name == stage else NAMES[name],
            *(f"{percent(m[how]['mean'])} ({interval(m[how])})" for how in ("pass@1", "greedy")),
            f"{m['mean_tokens']:.0f}",
        ]
        for name, m in models.items()
    )
    header = ("model", "sampled at temperature 1", "greedy", "tokens")
    return [f"## Results\n\n{n:,} held-out problems, one answer to each; 95% intervals.", _table(header, rows)]


def _data(run: Run) -> list[str]:
    if run.counts is None:
        return []
    rows = [[key, ", ".join(f"{v} {k}" for k, v in value.items()) if isinstance(value, dict) else value]
            for key, value in run.counts.items()]  # fmt: skip
    return ["## Data\n\nWhat the search and its trees gave.", _table(("what", "count"), rows)]


def _recipe(run: Run) -> list[str]:
    config = run.config or {}
    recipe = yaml.safe_dump(json.loads(json.dumps(config.get("config", {}))), sort_keys=False)
    return [f"## Recipe\n\n    {config.get('command')}\n", f"```yaml\n{recipe}```"]


def _lineage(run: Run) -> list[str]:
    rows = [
        [stage, ", ".join(m.get("parents", [])), m.get("config_hash"), m.get("wall_s")]
        for stage, m in run.manifests.items()
    ]
    versions = {f"{k} {v}": None for m in run.manifests.values() for k, v in m.get("versions", {}).items()}
    return [
        "## Lineage", _table(("stage", "rests on", "config", "seconds"), rows), f"Versions: {', '.join(versions)}."
    ]  # fmt: skip
