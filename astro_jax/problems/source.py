"""The problems of a run: read from the source that the config names, split in two, and decontaminated.

SOURCES is the table of sources. docs/problems.md says how to add a source.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from astro_jax import config as cfg
from astro_jax import storage
from astro_jax.errors import AstroError
from astro_jax.problems import gym, hub, records, split
from astro_jax.types import Problem
from astro_jax.verify import Verifier


@dataclasses.dataclass(frozen=True)
class ProblemSet:
    """All problems of a source.

    Attributes:
      training: the problems for search and RL.
      evaluation: the problems that are only for evaluation.
      counts: how many problems were read, skipped (by reason), held out, dropped by decontamination, left for training.
    """

    training: list[Problem]
    evaluation: list[Problem]
    counts: dict[str, Any]

    @property
    def problems(self) -> list[Problem]:
        """The problems of both sides."""
        return self.training + self.evaluation

    def draw(self, n: int, seed: int, *, evaluation: bool) -> list[Problem]:
        """Draw n problems of one side (split.draw)."""
        return split.draw(self.evaluation if evaluation else self.training, n, seed, evaluation=evaluation)


@dataclasses.dataclass(frozen=True)
class Source:
    """A kind of source.

    Attributes:
      read: reads all problems by the config's section `problems` and the seed. Returns the problems, each text once,
        and how many records were skipped, by reason.
      name: names the source of a config, for people.
      decontaminate: whether training problems that overlap with evaluation problems are removed.
    """

    read: Callable[[cfg.Problems, int], tuple[list[Problem], Mapping[str, int]]]
    name: Callable[[cfg.Problems], str]
    decontaminate: bool = True


def _read_path(c: cfg.Problems, seed: int) -> tuple[list[Problem], Mapping[str, int]]:
    fields = records.FIELDS | dict(c.fields or {})
    return records.read_jsonl(epath.Path(c.path), c.task or "number", fields), {}


def _read_dataset(c: cfg.Problems, seed: int) -> tuple[list[Problem], Mapping[str, int]]:
    fields = records.FIELDS | dict(c.fields) if c.fields else None
    return hub.read(c.dataset, c.subset, c.split, c.filters, c.task, fields)


def _read_gym(c: cfg.Problems, seed: int) -> tuple[list[Problem], Mapping[str, int]]:
    tasks = [gym.read(g.task, g.size, seed, g.params) for g in c.gym]
    return list({p.prompt: p for problems in tasks for p in problems}.values()), {}


# Each key is a key of the config's section `problems`. A config sets at most one of them.
SOURCES: Mapping[str, Source] = {
    "path": Source(_read_path, lambda c: c.path),
    "dataset": Source(_read_dataset, lambda c: c.dataset),
    # Problems of one reasoning-gym task share most of their words, so only equal problems are removed.
    "gym": Source(_read_gym, lambda c: f"reasoning-gym {', '.join(g.task for g in c.gym)}", decontaminate=False),
}


def has_source(c: cfg.Problems) -> bool:
    """Whether the config names a source. Without a source, problems are Countdown's."""
    return any(getattr(c, key) for key in SOURCES)


def _source(c: cfg.Problems) -> Source:
    return next(source for key, source in SOURCES.items() if getattr(c, key))


def load(c: cfg.Problems, seed: int) -> ProblemSet:
    """Read the problems of the config's source, split them, and decontaminate the training side.

    Raises:
      AstroError: if the source, or an evaluation set of problems.decontaminate, cannot be read.
    """
    source = _source(c)
    problems, skipped = source.read(c, seed)
    evaluation = [p for p in problems if split.is_held_out(p, c.held_out)]
    training = [p for p in problems if not split.is_held_out(p, c.held_out)]
    dropped: Mapping[str, int] = {}
    if source.decontaminate:
        from astro_jax.problems import decontaminate  # imports scipy, which is slow

        texts = [p.prompt for p in evaluation] + [text for name in c.decontaminate for text in _texts(name)]
        training, dropped = decontaminate.remove_overlapping(training, texts, c.overlap_threshold)
    counts = {"read": len(problems), "skipped": dict(skipped), "held out": len(evaluation), "dropped": dict(dropped)}
    return ProblemSet(training, evaluation, counts | {"for training": len(training)})


def _texts(name: str) -> Sequence[str]:
    """Read the problem texts of an evaluation set: a JSONL file, or a data set as NAME or NAME:SPLIT (default test)."""
    if not name.endswith(".jsonl"):
        name, _, split_name = name.partition(":")
        return hub.problem_texts(name, split_name or "test")
    values = [record.get("problem") for record in storage.read_jsonl(epath.Path(name))]
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) < len(values):
        raise AstroError(f"{name}: `problem` must be a text in each line")
    return texts


def describe(c: cfg.Config) -> dict[str, Any]:
    """Describe the problems that a run of a config draws from (`astro problems`).

    Returns:
      The counts of the problem set, the answers that the verifier can only compare as text, quartiles of the prompts'
      lengths in characters, and three sample problems.

    Raises:
      AstroError: if the source cannot be read, or has fewer problems than the config asks for.
    """
    p = c.problems
    if not has_source(p):
        raise AstroError(
            "problems: Countdown's are made by its rules; set problems.path, dataset or gym to see a source"
        )
    problem_set = load(p, c.seed)
    for use in ("search", "rl", "eval"):
        problem_set.draw(getattr(p, use), c.seed, evaluation=use == "eval")
    problems = problem_set.problems
    math = [x for x in problems if x.task == "math"]
    with contextlib.closing(Verifier(c.verify)) as verifier:
        readable = verifier.readable([x.answer for x in math])
    unreadable = [x.answer for x, can_read in zip(math, readable, strict=True) if not can_read]
    lengths = sorted(len(x.prompt) for x in problems)
    return {
        "source": _source(p).name(p),
        "task": problems[0].task,
        **problem_set.counts,
        **({"of tasks": dict(Counter(x.meta["task"] for x in problems))} if p.gym else {}),
        "answers compared as text": {"count": len(unreadable), "first": unreadable[:5]},
        "characters of a prompt": {f"{q}%": lengths[(len(lengths) - 1) * q // 100] for q in (0, 25, 50, 75, 100)},
        "samples": [{"problem": x.prompt, "answer": x.answer} for x in problem_set.draw(3, c.seed, evaluation=False)],
    }


def format_description(description: dict[str, Any]) -> str:
    """Format a description (describe) for people."""
    lines = []
    for key, value in description.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items()) or "none"
        if key != "samples":
            lines.append(f"{key:>26}  {value}")
    for sample in description["samples"]:
        lines.append(f"\n{sample['problem']}\n  = {sample['answer']}")
    return "\n".join(lines)
