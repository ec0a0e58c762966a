"""The section `problems` of a run's configuration: sources, evaluation sets, and the number of problems of each use."""

from __future__ import annotations

from typing import Any, Literal, Self

import pydantic

from astro_jax.config.keys import Section, key

Use = Literal["search", "rl", "eval"]
USES: tuple[Use, ...] = ("search", "rl", "eval")
SOURCE_KINDS = ("path", "dataset", "gym")  # the keys that name a source


class Gym(Section):
    """Problems of one reasoning-gym task."""

    task: str = key(..., "Name of the task, for example `chain_sum`.", "required")
    size: int = key(2048, "Problems that the task generates, before the split.", ge=1)
    params: dict[str, Any] = key({}, "Arguments of the task, for example `{max_terms: 4}`.")


class Source(Section):
    """The keys of one source of problems. At most one of `path`, `dataset` and `gym` is set."""

    path: str = key("", 'JSONL file, one problem a line: `{"problem": "...", "answer": "12"}`.')
    dataset: str = key("", "Data set of the Hugging Face hub, or a folder with the files of one.")
    subset: str | None = key(None, "Subset (configuration) of `dataset`. Null: the default subset.")
    split: str = key("train", "Split of `dataset`.")
    filters: dict[str, list[Any]] = key({}, "Allowed values of columns of `dataset`, as in `{source: [amc_aime]}`.")
    fields: dict[Literal["problem", "answer", "solution"], str] | None = key(
        None,
        "Names of the fields of `path` or `dataset`. Null: the same names, or the columns of a known data set.",
    )
    task: Literal["number", "math", "judged"] | None = key(
        None,
        "Verifier: exact numbers, mathematics, or for problems without an answer the judge (`judged`, with "
        "`verify.judge`). Null: `number` for a file, the known task for a data set.",
    )
    gym: tuple[Gym, ...] = key((), "reasoning-gym tasks: one mapping, or a list of mappings.")

    @property
    def is_named(self) -> bool:
        """Whether a source is named at all."""
        return any(getattr(self, kind) for kind in SOURCE_KINDS)

    @pydantic.field_validator("gym", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, dict) else value

    @pydantic.model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(bool(getattr(self, kind)) for kind in SOURCE_KINDS) > 1:
            raise ValueError(f"set one of {', '.join(SOURCE_KINDS)}")
        return self


class ListedSource(Source):
    """One of several sources: the keys of a source, and the number of its problems for each use.

    For each use, either all sources of the list give a number, or none does. If none does, the problems of the use are
    drawn from all sources together.
    """

    search: int | None = key(None, "Problems of this source to search.", ge=0)
    rl: int | None = key(None, "Prompts of RL from this source.", ge=0)
    eval: int | None = key(None, "Problems of the evaluation from this source.", ge=0)


class Problems(Source):
    """The sources of the problems, and the number of problems of each use.

    Set `sources` for several sources, or one of `path`, `dataset` and `gym` for a single source. Without any of them
    the problems are Countdown games (`count`, `max_number`, `max_value`, `ops`, `last_two`).
    """

    sources: tuple[ListedSource, ...] = key(
        (),
        "Several sources: a list of mappings, each with the keys of one source. A mapping without `task` has the task "
        "of this section.",
    )
    evaluation: tuple[ListedSource, ...] = key(
        (), "Evaluation sets: a list of mappings as in `sources`. Empty: evaluation draws from the held-out share."
    )
    decontaminate: tuple[str, ...] = key(
        (),
        "Further evaluation sets whose problems training must not see: JSONL files, or data sets as `NAME:SPLIT`. The "
        "sets of `evaluation` need no entry.",
    )
    overlap_threshold: float = key(
        0.7, "Share of common word 5-grams from which a training problem counts as an evaluation problem.", gt=0, le=1
    )
    rl_prompts: Literal["shared", "disjoint"] = key(
        "shared", "Whether RL may draw the problems that were searched (`shared`), or draws only others (`disjoint`)."
    )
    difficulty_samples: int = key(
        0, "Answers of a model to each RL prompt, to measure its pass rate. 0: no measurement.", ge=0
    )
    difficulty_model: Literal["base", "sft"] = key(
        "base",
        "Model whose pass rate is measured: the base, or for each RL model the SFT model that it starts from.",
        "ours; the paper says the policy (section 3.2)",
    )
    max_difficulty_prompts: int | None = key(
        None, "Most prompts to measure. Null: until `rl` prompts have passed, or no problem is left.", ge=1
    )
    rl_pass_rate: tuple[float, float] = key(
        (0.01, 0.75),
        "Lowest and highest pass rate of an RL prompt, with `difficulty_samples`.",
        "paper, section 3.2 (recalled)",
    )
    count: int = key(3, "Countdown: numbers of a problem.")
    max_number: int = key(25, "Countdown: largest number of a problem.")
    max_value: int = key(75, "Countdown: largest intermediate result and largest target.")
    ops: str = key("+-*", "Countdown: operators, a subset of `+-*/`.")
    last_two: bool = key(
        False, "Countdown: each step takes the last two numbers, so that a problem is a choice of operators in order."
    )
    held_out: float = key(
        0.2, "Share of the problems that only evaluation sees. It may be 0 where `evaluation` names sets.", ge=0, lt=1
    )
    search: int = key(1024, "Problems to search.", "ours; the paper has 20.7K (section 2.1)", ge=1)
    rl: int = key(4096, "Prompts of RL.", "ours; the paper has 8.7K (section 3.2)", ge=1)
    eval: int = key(1024, "Problems of the evaluation.", ge=1)

    @property
    def needs_judge(self) -> bool:
        """Whether some problems may have no answer, so that a judge alone can decide on them."""
        return "judged" in (self.task, *(source.task for source in (*self.sources, *self.evaluation)))

    def counts(self, use: Use) -> tuple[int, ...] | None:
        """The number of problems that a use takes of each listed source. None: of all sources together."""
        counts = [getattr(source, use) for source in self._listed(use)]
        return tuple(counts) if counts and None not in counts else None

    def _listed(self, use: Use) -> tuple[ListedSource, ...]:
        """The listed sources that a use draws from."""
        return self.evaluation if use == "eval" and self.evaluation else self.sources

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        low, high = self.rl_pass_rate
        if not 0 <= low <= high <= 1:
            raise ValueError("rl_pass_rate is [low, high] within 0 and 1")
        if not self.held_out and not self.evaluation:
            raise ValueError(
                "held_out: 0 leaves no problem to evaluate on; name a set in evaluation, or raise held_out"
            )
        if self.sources and (
            self.is_named or self.subset or self.split != "train" or self.filters or self.fields is not None
        ):
            raise ValueError("sources: path, dataset, subset, split, filters, fields and gym stand inside its mappings")
        self._check_lists()
        return self

    def _check_lists(self) -> None:
        """Check the mappings of `sources` and `evaluation`, and that the numbers of each use sum to its total."""
        for name in ("sources", "evaluation"):
            for i, source in enumerate(getattr(self, name)):
                if not source.is_named:
                    raise ValueError(f"{name}.{i}: set one of {', '.join(SOURCE_KINDS)}")
                for use in ("search", "rl") if name == "evaluation" else ("eval",) if self.evaluation else ():
                    if getattr(source, use) is not None:
                        raise ValueError(f"{name}.{i}.{use}: the problems of `{use}` are not drawn from {name}")
        for use in USES:
            given = [getattr(source, use) is not None for source in self._listed(use)]
            if any(given) and not all(given):
                raise ValueError(f"{use}: give it in all mappings of a list, or in none")

    @pydantic.model_validator(mode="before")
    @classmethod
    def _sum_counts(cls, raw: Any) -> Any:
        """Set the total of each use to the sum over its sources, where all of them give a number."""
        if not isinstance(raw, dict):
            return raw
        totals = {}
        for use in USES:
            listed = (use == "eval" and raw.get("evaluation")) or raw.get("sources")
            sources = listed if isinstance(listed, list | tuple) else ()
            counts = [dict(source).get(use) for source in sources if isinstance(source, dict | ListedSource)]
            numbers = [n for n in counts if isinstance(n, int)]
            if not counts or len(numbers) < len(counts):
                continue
            totals[use] = sum(numbers)
            if raw.get(use, totals[use]) != totals[use]:
                raise ValueError(f"{use}: {raw[use]}, but the sources give {totals[use]}; set {use} to {totals[use]}")
        return raw | totals
