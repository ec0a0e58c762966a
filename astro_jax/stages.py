"""The stages of a run, declared once: names, order, parents, titles and the models that they make.

The pipeline, the command line and the report read this table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    Attributes:
      name: as a config's `stages` names it; also its folder in a run.
      command: the `astro` command that runs it.
      title: its name in tables and on pages.
      purpose: what it does, in one line.
      parents: the stages that must have finished before it starts; `parents` adds those that depend on the run.
      initial_model: the stage whose model it trains; None for a stage that trains none.
      makes_model: whether its folder holds a model that evaluation measures.
    """

    name: str
    command: str
    title: str
    purpose: str
    parents: tuple[str, ...] = ()
    initial_model: str | None = None
    makes_model: bool = False


def _training(name: str, command: str, title: str, purpose: str, initial: str, *data: str) -> Stage:
    return Stage(name, command, title, purpose, data or (initial,), initial, makes_model=True)


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("base", "base", "Base", "import the base model, or train it from scratch", makes_model=True),
        Stage("search", "search", "Search", "build a search tree for each problem", ("base",)),
        Stage("traces", "traces", "Traces", "turn trees into chains of thought", ("search",)),
        _training("direct-sft", "sft", "Direct-SFT", "fine-tune the base on direct solutions", "base", "traces"),
        _training("astro-sft", "sft", "ASTRO-SFT", "fine-tune the base on ASTRO's traces", "base", "traces"),
        # parents: the base, or the SFT models
        Stage("difficulty", "difficulty", "Difficulty", "measure how often a model solves each RL prompt"),
        _training("direct-rl", "grpo", "Direct-RL", "train Direct-SFT by GRPO", "direct-sft"),
        _training("astro-rl", "grpo", "ASTRO-RL", "train ASTRO-SFT by GRPO", "astro-sft"),
        Stage(
            "eval", "eval", "Evaluation", "evaluate all models on held-out problems"
        ),  # parents: the models of the run
        Stage("report", "report", "Report", "write results.json and report.html", ("eval",)),
    )
}
MODELS: tuple[str, ...] = tuple(name for name, stage in STAGES.items() if stage.makes_model)
# The stages of a run whose config names none: all but difficulty, which runs where problems.difficulty_samples asks.
DEFAULT_STAGES: tuple[str, ...] = tuple(name for name in STAGES if name != "difficulty")


def stages_of(command: str) -> tuple[str, ...]:
    """Return the stages that a command runs, in order: `sft` runs direct-sft and astro-sft."""
    return tuple(name for name, stage in STAGES.items() if stage.command == command)


def with_difficulty(stages: Sequence[str]) -> tuple[str, ...]:
    """Insert the stage `difficulty` before the first RL stage, unless `stages` names it."""
    if "difficulty" in stages:
        return tuple(stages)
    first = next((i for i, name in enumerate(stages) if name.endswith("-rl")), len(stages))
    return (*stages[:first], "difficulty", *stages[first:])


def models_of(stages: Sequence[str]) -> tuple[str, ...]:
    """Return the models that a run with these stages makes."""
    return tuple(name for name in MODELS if name in stages)


def difficulty_models(run_stages: Sequence[str], difficulty_model: Literal["base", "sft"]) -> tuple[str, ...]:
    """Return the models for which a run measures the difficulty of RL prompts.

    Args:
      run_stages: the stages of the run, or one RL stage.
      difficulty_model: "base": the base. "sft": the SFT models from which the RL stages start.
    """
    if difficulty_model == "base":
        return ("base",)
    stages = (STAGES[name] for name in run_stages)
    return tuple(s.initial_model for s in stages if s.command == "grpo" and s.initial_model)


def parents(
    stage: str, run_stages: Sequence[str], difficulty_model: Literal["base", "sft"] | None = None
) -> tuple[str, ...]:
    """Return the stages that must have finished before `stage` of a run starts.

    Evaluation needs all models of the run. `difficulty` needs the models whose pass rates it measures. RL needs
    `difficulty` where the run measures it.

    Args:
      difficulty_model: the model of `difficulty_models`; None where the run measures no difficulty.
    """
    if stage == "eval":
        return models_of(run_stages)
    if stage == "difficulty":
        return difficulty_models(run_stages, difficulty_model or "base")
    extra = ("difficulty",) if difficulty_model and STAGES[stage].command == "grpo" else ()
    return STAGES[stage].parents + extra


def title(name: str) -> str:
    """The title of a stage; a name that is no stage stands for itself."""
    return STAGES[name].title if name in STAGES else name
