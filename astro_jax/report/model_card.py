"""The model card of an exported checkpoint: shape, results, data, recipe and lineage."""

from __future__ import annotations

import yaml
from etils import epath
from huggingface_hub import ModelCard, ModelCardData

from astro_jax import markdown, storage
from astro_jax.errors import AstroError
from astro_jax.llama import params
from astro_jax.llama.config import LlamaConfig
from astro_jax.report import run_folder
from astro_jax.report.run_folder import RunFolder
from astro_jax.report.summary import interval, percent
from astro_jax.stages import MODELS, title

_DESCRIPTIONS = {
    "base": "the base model of the run",
    "direct-sft": "the control: the base, fine-tuned on solutions without backtracking",
    "astro-sft": "the base, fine-tuned on chains of thought that reflect and go back",
    "direct-rl": "the control: Direct-SFT, trained by GRPO with a verifiable reward",
    "astro-rl": "ASTRO-SFT, trained by GRPO with a verifiable reward",
}
_TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

{{ sections | join("\n\n") }}
"""


def render(checkpoint: str, config: LlamaConfig) -> str:
    """The card of a checkpoint, in Markdown.

    Recipe, data, results and lineage come from the run that the checkpoint lies in, as RUN/STAGE/model. The card of a
    checkpoint outside of a run states the shape alone.

    Raises:
      AstroError: when a file of the run lacks a field or holds a bad value.
    """
    path = storage.absolute(checkpoint)
    stage, run = path.parent.name, _read_run(path.parent.parent)
    shape = (
        f"A Llama of {params.count(config):,} parameters ({config.n_layers} layers, width {config.d_model}, "
        f"{config.n_heads} query and {config.n_kv_heads} key-value heads, {config.vocab_size:,} tokens)"
    )
    if run is None or run.config is None or stage not in MODELS:
        return _card(path.name, [f"{shape}, written by astro_jax."])
    summary = (
        f"{shape}: {_DESCRIPTIONS[stage]}, by ASTRO ([arXiv 2507.00417](https://arxiv.org/abs/2507.00417)) in "
        f"astro_jax. The run started from `{run.config.config.get('model')}`."
    )
    recipe = yaml.safe_dump(run.config.config, sort_keys=False)
    sections = [
        summary,
        *_results(run, stage),
        *_data(run),
        f"## Recipe\n\n    {run.config.command}\n",
        f"```yaml\n{recipe}```",
        *_lineage(run),
    ]
    return _card(f"{title(stage)} of {run.path.name}", sections)


def _card(heading: str, sections: list[str]) -> str:
    metadata = ModelCardData(library_name="transformers", pipeline_tag="text-generation")
    card = ModelCard.from_template(metadata, template_str=_TEMPLATE, title=heading, sections=sections)
    return str(card) + "\n"


def _read_run(folder: epath.Path) -> RunFolder | None:
    """The run in a folder, or None where the folder holds no run."""
    try:
        return run_folder.read(folder)
    except AstroError:
        if (folder / "results.json").exists():
            raise
        return None


def _results(run: RunFolder, stage: str) -> list[str]:
    models = run.results.models if run.results else {}
    if not models:
        return ["## Results\n\nThis run has not been evaluated."]
    n = next(iter(models.values())).pass_at_1.n
    rows = (
        [
            f"**{title(name)}**" if name == stage else title(name),
            *(f"{percent(score.mean)} ({interval(score)})" for score in (m.pass_at_1, m.greedy)),
            f"{m.mean_tokens:.0f}",
        ]
        for name, m in models.items()
    )
    header = ("model", "sampled at temperature 1", "greedy", "tokens")
    return [f"## Results\n\n{n:,} held-out problems, one answer to each; 95% intervals.", markdown.table(header, rows)]


def _data(run: RunFolder) -> list[str]:
    if run.counts is None:
        return []
    rows = [[key, ", ".join(f"{v} {k}" for k, v in value.items()) if isinstance(value, dict) else value]
            for key, value in run.counts.items()]  # fmt: skip
    return ["## Data\n\nWhat the search and its trees gave.", markdown.table(("what", "count"), rows)]


def _lineage(run: RunFolder) -> list[str]:
    rows = [[stage, ", ".join(m.parents), m.digest, m.wall_s] for stage, m in run.manifests.items()]
    versions = {f"{name} {version}": None for m in run.manifests.values() for name, version in m.versions.items()}
    return [
        "## Lineage",
        markdown.table(("stage", "rests on", "digest of its inputs", "seconds"), rows),
        f"Versions: {', '.join(versions)}.",
    ]
