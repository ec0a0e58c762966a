"""A run's problems, from whatever its config names, split in two, and the training side kept apart from evaluation."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from astro_jax import config as cfg
from astro_jax import storage
from astro_jax.errors import AstroError
from astro_jax.problems import gym, hub, words
from astro_jax.types import Problem
from astro_jax.verify import Verifier


@dataclasses.dataclass(frozen=True)
class Source:
    """All problems of a source.

    Attributes:
      training, evaluation: the two sides of the split.
      counts: what was read, skipped by reason, held out, and dropped from training as in an evaluation set.
    """

    training: list[Problem]
    evaluation: list[Problem]
    counts: dict[str, Any]

    @property
    def every(self) -> list[Problem]:
        return self.training + self.evaluation

    def draw(self, n: int, seed: int, *, evaluation: bool) -> list[Problem]:
        """n problems of one side, in an order that `seed` names (words.draw)."""
        return words.draw(self.evaluation if evaluation else self.training, n, seed, evaluation=evaluation)


def given(c: cfg.Problems) -> bool:
    """Whether problems come from a source; else they are Countdown's, which are made."""
    return bool(c.path or c.dataset or c.gym)


def load(c: cfg.Problems, seed: int) -> Source:
    """Read a source.

    Problems of reasoning-gym are only kept apart where they are equal: those of a task have most words in common.

    Raises:
      AstroError: when it cannot be read.
    """
    skipped: dict[str, int] = {}
    if c.path:
        every = words.read(epath.Path(c.path), c.task or "number", words.FIELDS | dict(c.fields or {}))
    elif c.dataset:
        fields = words.FIELDS | dict(c.fields) if c.fields else None
        every, skipped = hub.read(c.dataset, c.subset, c.split, c.filters, c.task, fields)
    else:
        read = [gym.read(g.task, g.size, seed, g.params) for g in c.gym]
        every = list({p.prompt: p for each in read for p in each}.values())
    sides: tuple[list[Problem], list[Problem]] = ([], [])
    for p in every:
        sides[words.held_out(p, c.held_out)].append(p)
    training, evaluation = sides
    dropped: Mapping[str, int] = {}
    if not c.gym:
        from astro_jax.problems import decontaminate  # scipy comes with it

        against = [p.prompt for p in evaluation] + [t for name in c.decontaminate for t in _texts(name)]
        training, dropped = decontaminate.drop(training, against, c.overlap_threshold)
    counts = {"read": len(every), "skipped": dict(skipped), "held out": len(evaluation), "dropped": dict(dropped)}
    return Source(training, evaluation, counts | {"for training": len(training)})


def _texts(name: str) -> Sequence[str]:
    """The problems' texts of an evaluation set: a JSONL file, or a data set, as NAME or NAME:SPLIT (default: test)."""
    if not name.endswith(".jsonl"):
        name, _, split = name.partition(":")
        return hub.texts(name, split or "test")
    found = [r.get("problem") for r in storage.read_jsonl(epath.Path(name))]
    texts = [text for text in found if isinstance(text, str)]
    if len(texts) < len(found):
        raise AstroError(f"{name}: `problem` must be a text in each line")
    return texts


def describe(c: cfg.Config) -> dict[str, Any]:
    """What a run of this config draws from: the source's counts, answers that the verifier cannot read (they are
    compared as text), quartiles of the prompts' lengths in characters, and three samples.

    Raises:
      AstroError: when the source cannot be read, or has fewer problems than the config asks for.
    """
    p = c.problems
    if not given(p):
        raise AstroError(
            "problems: Countdown's are made by its rules; set problems.path, dataset or gym to see a source"
        )
    found = load(p, c.seed)
    for use in ("search", "rl", "eval"):
        found.draw(getattr(p, use), c.seed, evaluation=use == "eval")
    math = [x for x in found.every if x.task == "math"]
    with contextlib.closing(Verifier(c.verify)) as verifier:
        unread = [x for x, can in zip(math, verifier.readable([x.answer for x in math]), strict=True) if not can]
    lengths = sorted(len(x.prompt) for x in found.every)
    return {
        "source": p.path or p.dataset or f"reasoning-gym {', '.join(g.task for g in p.gym)}",
        "task": found.every[0].task,
        **found.counts,
        **({"of tasks": dict(Counter(x.meta["task"] for x in found.every))} if p.gym else {}),
        "answers compared as text": {"count": len(unread), "first": [x.answer for x in unread[:5]]},
        "characters of a prompt": {f"{q}%": lengths[(len(lengths) - 1) * q // 100] for q in (0, 25, 50, 75, 100)},
        "samples": [{"problem": x.prompt, "answer": x.answer} for x in found.draw(3, c.seed, evaluation=False)],
    }


def shown(found: dict[str, Any]) -> str:
    """The same for people."""
    lines = []
    for key, value in found.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items()) or "none"
        if key != "samples":
            lines.append(f"{key:>26}  {value}")
    for sample in found["samples"]:
        lines.append(f"\n{sample['problem']}\n  = {sample['answer']}")
    return "\n".join(lines)
