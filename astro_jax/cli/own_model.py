"""One stage on a model and data of the user, without a config: `astro sft --init MODEL --data FILE`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from astro_jax.errors import AstroError

if TYPE_CHECKING:
    from astro_jax import config as cfg

# The option of a stage's data: (name, metavar, config key, help).
OPTIONS = {
    "sft": ("data", "FILE", "examples", "JSONL or Parquet: `messages`, or `prompt` and `response`"),
    "grpo": ("problems", "FILE", "problems.path", "JSONL: `problem` and `answer`"),
    "traces": ("trees", "FOLDER", "trees", "search trees, as in runs/quickstart/search"),
}


def add_arguments(parser: argparse.ArgumentParser, stage: str) -> None:
    """Add the options, and let the config be left out."""
    for action in parser._actions:
        if action.dest == "config":
            action.nargs, action.required = "?", False
    name, metavar, _, help = OPTIONS[stage]
    group = parser.add_argument_group(
        "your own model and data", f"Run the stages base and {stage} in the folder out=DIR. CONFIG may be left out."
    )
    group.add_argument("--init", metavar="MODEL", help="a checkpoint, a Hugging Face folder, a .gguf file, a shipped "
                       "model, or org/name on the hub")  # fmt: skip
    group.add_argument(f"--{name}", metavar=metavar, help=help)


def config(args: argparse.Namespace, stage: str) -> cfg.Config | None:
    """Make the config from the options; None where none of them is given.

    Raises:
      AstroError: when neither a config nor enough options are given.
    """
    from astro_jax import config as cfg

    name, metavar, key, _ = OPTIONS[stage]
    data, overrides, recipe = getattr(args, name), list(args.overrides), args.config
    if recipe and "=" in recipe:  # without a config, the first key=value stands in its place
        recipe, overrides = None, [recipe, *overrides]
    if not args.init and not data:
        if recipe is None:
            raise AstroError(f"{stage}: give a config, or --init MODEL --{name} {metavar}")
        return None
    if not data or not (args.init or recipe):
        raise AstroError(f"{stage}: give both --init MODEL and --{name} {metavar}; a config may name the model instead")
    model = [f"model={args.init}"] if args.init else []
    c = cfg.load(recipe, [f"stages=[base, {stage}]", *model, f"{key}={data}", *overrides])
    if stage == "grpo" and recipe is None and not any(text.startswith("problems.rl=") for text in overrides):
        c = _with_all_prompts(c)
    return c


def _with_all_prompts(c: cfg.Config) -> cfg.Config:
    """Let RL take all training problems, where there are fewer than `problems.rl`."""
    from astro_jax.problems.draws import Draws

    available = len(Draws.of(c.problems, c.seed).problem_set.training)
    problems = c.problems.model_copy(update={"rl": max(1, min(available, c.problems.rl))})
    return c.model_copy(update={"problems": problems})
