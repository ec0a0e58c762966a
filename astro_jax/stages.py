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
      reads: the keys of the config that it reads; a section stands for all its keys.
      problems: the uses ("search", "rl", "eval") whose problems it reads.
    """

    name: str
    command: str
    title: str
    purpose: str
    parents: tuple[str, ...] = ()
    initial_model: str | None = None
    makes_model: bool = False
    reads: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


_MODEL = ("seed", "chat", "mesh", "attention")  # keys of every stage that loads a model
_SAMPLING = (*_MODEL, "sampler", "verify")  # keys of every stage that samples and judges
_DIFFICULTY = tuple(
    f"problems.{name}" for name in ("difficulty_samples", "difficulty_model", "max_difficulty_prompts", "rl_pass_rate")
)
_GAME = tuple(f"problems.{name}" for name in ("count", "max_number", "max_value", "ops", "last_two", "held_out"))


def _sft(kind: str, title: str, purpose: str) -> Stage:
    reads = (*_MODEL, "sft", "traces.replay", "corpus", *_GAME)
    return Stage(f"{kind}-sft", "sft", title, purpose, ("traces",), "base", makes_model=True, reads=reads)


def _rl(kind: str, title: str, purpose: str) -> Stage:
    initial, reads = f"{kind}-sft", (*_SAMPLING, "grpo", "eval.max_tokens", *_DIFFICULTY)
    return Stage(f"{kind}-rl", "grpo", title, purpose, (initial,), initial, True, reads, ("rl",))


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("base", "base", "Base", "import the base model, or train it from scratch", makes_model=True,
              reads=(*_MODEL, "model", "architecture", "corpus", "pretrain", "base_sft", *_GAME),
              problems=("search", "rl")),
        Stage("search", "search", "Search", "build a search tree for each problem", ("base",),
              reads=(*_SAMPLING, "search"), problems=("search",)),
        Stage("traces", "traces", "Traces", "turn trees into chains of thought", ("search",),
              reads=(*_SAMPLING, "traces", "prompts", "trees")),
        _sft("direct", "Direct-SFT", "fine-tune the base on direct solutions"),
        _sft("astro", "ASTRO-SFT", "fine-tune the base on ASTRO's traces"),
        # parents: `difficulty_models`
        Stage("difficulty", "difficulty", "Difficulty", "measure how often a model solves each RL prompt",
              reads=(*_SAMPLING, "eval.max_tokens", "eval.shard_size", *_DIFFICULTY, "grpo.max_length",
                     "grpo.max_completion_length"),
              problems=("rl",)),
        Stage("sft", "sft", "SFT", "fine-tune the base on the examples of a file", ("base",), "base", True,
              (*_MODEL, "sft", "examples")),
        _rl("direct", "Direct-RL", "train Direct-SFT by GRPO"),
        _rl("astro", "ASTRO-RL", "train ASTRO-SFT by GRPO"),
        Stage("grpo", "grpo", "GRPO", "train the base by GRPO", ("base",), "base", True,
              (*_SAMPLING, "grpo", "eval.max_tokens", *_DIFFICULTY), ("rl",)),
        Stage("eval", "eval", "Evaluation", "evaluate all models on held-out problems"),  # of `evaluations`
        Stage("report", "report", "Report", "write results.json and report.html", ("eval",),
              reads=("seed", "stages", "problems.difficulty_samples", "eval.suites")),
    )
}  # fmt: skip
MODELS: tuple[str, ...] = tuple(name for name, stage in STAGES.items() if stage.makes_model)
# The stages of a run whose config names none. Difficulty runs where problems.difficulty_samples asks for it. `sft` and
# `grpo` are for a base and data of the user.
DEFAULT_STAGES: tuple[str, ...] = tuple(name for name in STAGES if name not in ("difficulty", "sft", "grpo"))

# What `astro plan` covers, by command: "sft" stands for all SFT stages.
PLANNED: tuple[str, ...] = tuple(dict.fromkeys(s.command for s in STAGES.values() if s.command != "report"))


def stages_of(command: str) -> tuple[str, ...]:
    """Return the stages that a command runs, in order: `sft` runs direct-sft and astro-sft."""
    return tuple(name for name, stage in STAGES.items() if stage.command == command)


def with_difficulty(stages: Sequence[str]) -> tuple[str, ...]:
    """Insert the stage `difficulty` before the first RL stage, unless `stages` names it."""
    if "difficulty" in stages:
        return tuple(stages)
    first = next((i for i, name in enumerate(stages) if get(name).command == "grpo"), len(stages))
    return (*stages[:first], "difficulty", *stages[first:])


def models_of(stages: Sequence[str]) -> tuple[str, ...]:
    """Return the models that a run with these stages makes."""
    return tuple(name for name in MODELS if name in stages)


def _evaluation(name: str, title: str, *parents: str) -> Stage:
    reads = (*_SAMPLING, "eval.max_tokens", "eval.shard_size")
    return Stage(f"eval/{name}", "eval", title, f"evaluate {title}", parents, reads=reads, problems=("eval",))


def _suites(name: str) -> Stage:
    title = f"{STAGES[name].title} on suites"
    return Stage(f"eval/{name}-suites", "eval", title, f"evaluate {title}", (name,), reads=(*_SAMPLING, "eval"))


# The parts of the stage `eval`: the answers of each model, the majority votes of the Direct models, and the answers of
# each model to suites.
EVALUATIONS: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        *(_evaluation(name, STAGES[name].title, name) for name in MODELS),
        *(_evaluation(f"{direct}-vote", f"{STAGES[direct].title}'s majority vote", f"eval/{direct}", f"eval/{astro}")
          for direct, astro in (("direct-sft", "astro-sft"), ("direct-rl", "astro-rl"))),
        *map(_suites, MODELS),
    )
}  # fmt: skip


def get(name: str) -> Stage:
    """Return a stage, or a part of the evaluation such as "eval/base"."""
    return STAGES.get(name) or EVALUATIONS[name]


def evaluations(run_stages: Sequence[str], suites: bool = False) -> tuple[str, ...]:
    """Return the parts of the evaluation of a run: those whose models the run makes.

    Args:
      suites: whether the run evaluates on suites (`eval.suites`).
    """
    models = models_of(run_stages)
    answers = {name for name, stage in EVALUATIONS.items() if set(stage.parents) <= set(models)}
    parts = [n for n, stage in EVALUATIONS.items() if n in answers or set(stage.parents) <= answers]
    return tuple(name for name in parts if suites or not name.endswith("-suites"))


def expand(names: Sequence[str], run_stages: Sequence[str], suites: bool = False) -> tuple[str, ...]:
    """Replace "eval" by its parts."""
    return tuple(part for name in names for part in (evaluations(run_stages, suites) if name == "eval" else (name,)))


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


def title(name: str) -> str:
    """The title of a stage; a name that is no stage stands for itself."""
    return get(name).title if name in STAGES or name in EVALUATIONS else name
