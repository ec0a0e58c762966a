"""The problems of a run's sources: read, each text once, split in two, and decontaminated.

SOURCES is the table of the kinds of source. docs/problems.md says how to add one.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from astro_jax import config as cfg
from astro_jax import storage
from astro_jax.errors import AstroError
from astro_jax.problems import gym, hub, records, split
from astro_jax.progress import log
from astro_jax.types import Problem

Read = tuple[list[Problem], Mapping[str, int]]


@dataclasses.dataclass(frozen=True)
class ProblemSet:
    """All problems of a run's sources.

    Attributes:
      training_groups: the problems for search and RL, by the name of their source.
      evaluation_groups: the problems for evaluation, by the name of their source or evaluation set.
      counts: how many problems were read, skipped (by reason), held out, dropped by decontamination, left for training.
        With several sources `counts["sources"]` has these counts of each source. With evaluation sets
        `counts["evaluation sets"]` has the problems read and skipped of each set.
    """

    training_groups: dict[str, list[Problem]]
    evaluation_groups: dict[str, list[Problem]]
    counts: dict[str, Any]

    @property
    def training(self) -> list[Problem]:
        """The problems for search and RL."""
        return [p for group in self.training_groups.values() for p in group]

    @property
    def evaluation(self) -> list[Problem]:
        """The problems for evaluation."""
        return [p for group in self.evaluation_groups.values() for p in group]

    @property
    def problems(self) -> list[Problem]:
        """The problems for training and for evaluation."""
        return self.training + self.evaluation


@dataclasses.dataclass(frozen=True)
class SourceKind:
    """A kind of source.

    Attributes:
      read: reads all problems by the keys of a source and a seed. Returns the problems, each text once, and how many
        records were skipped, by reason.
      name: names the source, for people.
      compare_ngrams: whether a training problem that has most n-grams in common with an evaluation problem is removed.
    """

    read: Callable[[cfg.Source, int], Read]
    name: Callable[[cfg.Source], str]
    compare_ngrams: bool = True


def _read_path(c: cfg.Source, seed: int) -> Read:
    fields = records.FIELDS | dict(c.fields or {})
    return records.read_jsonl(epath.Path(c.path), c.task or "number", fields), {}


def _read_dataset(c: cfg.Source, seed: int) -> Read:
    fields = records.FIELDS | dict(c.fields) if c.fields else None
    return hub.read(c.dataset, c.subset, c.split, c.filters, c.task, fields)


def _name_dataset(c: cfg.Source) -> str:
    values = [str(value) for allowed in c.filters.values() for value in allowed]
    return " ".join([c.dataset, *([c.subset] if c.subset else []), *values])


def _read_gym(c: cfg.Source, seed: int) -> Read:
    tasks = [gym.read(g.task, g.size, seed, g.params) for g in c.gym]
    return list({p.prompt: p for problems in tasks for p in problems}.values()), {}


# Each key is a key of a source in the config. A source sets one of them.
SOURCES: Mapping[str, SourceKind] = {
    "path": SourceKind(_read_path, lambda c: c.path),
    "dataset": SourceKind(_read_dataset, _name_dataset),
    # Problems of one reasoning-gym task share most of their words, so only equal problems are removed.
    "gym": SourceKind(_read_gym, lambda c: f"reasoning-gym {', '.join(g.task for g in c.gym)}", compare_ngrams=False),
}


def has_source(c: cfg.Problems) -> bool:
    """Whether the config names a source. Without a source, problems are Countdown's."""
    return bool(sources(c))


def sources(c: cfg.Problems) -> tuple[cfg.Source, ...]:
    """Return the sources that a config names: those of its list, or the single one."""
    return c.sources or ((c,) if c.is_named else ())


def _kind(c: cfg.Source) -> SourceKind:
    return next(kind for key, kind in SOURCES.items() if getattr(c, key))


def load(c: cfg.Problems, seed: int) -> ProblemSet:
    """Read the problems of all sources, split them, and decontaminate the training side.

    A text that several sources hold is a problem of the first of them.

    Raises:
      AstroError: if a source, or an evaluation set, cannot be read.
    """
    parts = _read_all(sources(c), c.task, seed)
    # A task of reasoning-gym makes other problems from another seed.
    evaluation_seed = int.from_bytes(hashlib.blake2b(f"{seed}/evaluation".encode(), digest_size=3).digest())
    evaluation_sets = _read_all(c.evaluation, c.task, evaluation_seed)
    held_out = {part.name: [p for p in part.problems if split.is_held_out(p, c.held_out)] for part in parts}
    held_out_texts = [] if c.evaluation else [p.prompt for group in held_out.values() for p in group]
    texts = [text for name in c.decontaminate for text in _texts(name)]
    texts += [p.prompt for part in evaluation_sets for p in part.problems]
    training = {}
    for part in parts:
        problems = [p for p in part.problems if not split.is_held_out(p, c.held_out)]
        problems, dropped = _decontaminate(part.kind, problems, held_out_texts, texts, c.overlap_threshold)
        part.counts |= {"held out": len(held_out[part.name]), "dropped": dict(dropped), "for training": len(problems)}
        training[part.name] = problems
    counts = _sum_counts([part.counts for part in parts])
    if len(parts) > 1:
        counts["sources"] = {part.name: part.counts for part in parts}
    if c.evaluation:
        counts["evaluation sets"] = {part.name: part.counts for part in evaluation_sets}
    evaluation = {part.name: part.problems for part in evaluation_sets} if c.evaluation else held_out
    return ProblemSet(training, evaluation, counts)


def log_counts(c: cfg.Problems, counts: Mapping[str, Any]) -> None:
    """Log how many problems are for training, and why others are not."""
    left_out = counts["skipped"] | counts["dropped"]
    if c.evaluation:
        left_out["held out without use (problems.held_out)"] = counts["held out"]
    if reasons := ", ".join(f"{n} {reason}" for reason, n in left_out.items() if n):
        log(f"problems: {counts['for training']} for training, left out: {reasons}")


@dataclasses.dataclass
class _Part:
    """The problems of one source, with their counts."""

    name: str
    kind: SourceKind
    problems: list[Problem]
    counts: dict[str, Any]


def _read_all(listed: Sequence[cfg.Source], task: str | None, seed: int) -> list[_Part]:
    """Read some sources. A text that an earlier source holds is skipped and counted."""
    parts: list[_Part] = []
    seen: set[str] = set()
    for i, c in enumerate(listed, 1):
        kind = _kind(c)
        problems, skipped = kind.read(c.model_copy(update={"task": c.task or task}), seed)
        new = [p for p in problems if records.normalized(p.prompt) not in seen] if parts else problems
        if len(listed) > 1:
            seen |= {records.normalized(p.prompt) for p in new}
            skipped = {**skipped, "a text of an earlier source": len(problems) - len(new)}
        name = f"{i}: {kind.name(c)}" if len(listed) > 1 else kind.name(c)
        parts.append(_Part(name, kind, new, {"read": len(new), "skipped": dict(skipped)}))
    return parts


def _decontaminate(
    kind: SourceKind, problems: list[Problem], held_out_texts: list[str], texts: list[str], threshold: float
) -> tuple[list[Problem], Mapping[str, int]]:
    """Remove training problems that overlap with the held-out side, or with the texts of evaluation sets."""
    if kind.compare_ngrams:
        from astro_jax.problems import decontaminate  # imports scipy, which is slow

        return decontaminate.remove_overlapping(problems, held_out_texts + texts, threshold)
    equal = set(texts)
    kept = [p for p in problems if p.prompt not in equal]
    return kept, {"exact": len(problems) - len(kept)} if texts else {}


def _sum_counts(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Add up counts key by key, also those of nested mappings."""
    total: dict[str, Any] = {}
    for counts in parts:
        for key, value in counts.items():
            if isinstance(value, Mapping):
                total[key] = _sum_counts([total.get(key, {}), value])
            else:
                total[key] = total.get(key, 0) + value
    return total


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
