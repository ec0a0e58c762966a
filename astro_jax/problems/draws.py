"""The problems that a run draws for search, for RL and for evaluation."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from astro_jax import config as cfg
from astro_jax import countdown
from astro_jax.errors import AstroError
from astro_jax.problems import source, split
from astro_jax.problems.source import ProblemSet
from astro_jax.types import Problem


@dataclasses.dataclass(frozen=True)
class Candidates:
    """The problems that may become prompts of RL.

    Attributes:
      problems: all candidates, in the order in which they are taken.
      wanted: how many prompts RL wants of each group. The groups are the sources where the config gives a number for
        each source; else all problems are one group.
      group_of: the index of a problem's group, by the problem's id. Empty for one group.
    """

    problems: Sequence[Problem]
    wanted: tuple[int, ...]
    group_of: Mapping[str, int]

    def take(self, problems: Sequence[Problem]) -> list[Problem]:
        """Return the first problems of each group, as many as RL wants."""
        missing, taken = list(self.wanted), []
        for p in problems:
            group = self.group_of.get(p.id, 0)
            if missing[group]:
                missing[group] -= 1
                taken.append(p)
        return taken

    def open_groups(self, taken: Sequence[Problem]) -> set[int]:
        """Return the groups of which RL wants more prompts than those taken."""
        numbers = Counter(self.group_of.get(p.id, 0) for p in taken)
        return {group for group, n in enumerate(self.wanted) if numbers[group] < n}


@dataclasses.dataclass(frozen=True)
class Draws:
    """Draws the problems of a run. The same config, seed and sources give the same problems.

    Attributes:
      c: the settings.
      seed: of all draws.
      game: the rules of Countdown, whose problems are drawn where the config names no source.
    """

    c: cfg.Problems
    seed: int
    game: countdown.Game

    @classmethod
    def of(cls, c: cfg.Problems, seed: int) -> Draws:
        """Make the draws of a config, with its rules of Countdown."""
        return cls(c, seed, countdown.Game(c.count, c.max_number, c.max_value, c.ops, c.held_out, c.last_two))

    @functools.cached_property
    def problem_set(self) -> ProblemSet:
        """The problems of the sources and of the evaluation sets. Countdown's problems are not among them."""
        return source.load(self.c, self.seed)

    def draw(self, use: cfg.Use) -> list[Problem]:
        """Draw the problems of one use.

        With `rl_prompts: shared`, search and RL draw in the same way from the same problems. Many prompts of RL are
        then searched problems. With `rl_prompts: disjoint`, none is.

        Raises:
          AstroError: when the config asks for more problems than there are.
        """
        if use == "rl" and self.c.rl_prompts == "disjoint":
            return self._take_first(self._unsearched())
        evaluation = use == "eval"
        if not source.has_source(self.c) and not (evaluation and self.c.evaluation):
            return countdown.problems(self.game, getattr(self.c, use), self.seed, held_out=evaluation)
        groups, counts = [*self._groups(use).values()], self.c.counts(use)
        if counts is None:
            groups, counts = [[p for group in groups for p in group]], (getattr(self.c, use),)
        side, dropped = ("evaluation", []) if evaluation else ("search and RL", self._dropped(len(groups)))
        return split.draw(groups, counts, f"{self.seed}/{evaluation}", side, dropped)

    def rl_candidates(self) -> Candidates:
        """Return the prompts of RL (`draw`), and after them all other problems that RL may take, in a random order."""
        if self.c.rl_prompts == "disjoint":
            return self._candidates(self._unsearched())
        first = self.draw("rl")
        return self._candidates(first + self._others(first, f"{self.seed}/rl/others"))

    def counts(self, *uses: cfg.Use) -> dict[str, Any]:
        """Return the counts of the problem set and, with several sources, how many problems of each the uses draw."""
        drawn = {}
        for use in uses:
            if len(groups := self._groups(use)) > 1:
                ids = {p.id for p in self.draw(use)}
                drawn[use] = {name: sum(p.id in ids for p in group) for name, group in groups.items()}
        return self.problem_set.counts | ({"drawn": drawn} if drawn else {})

    def _groups(self, use: cfg.Use) -> dict[str, list[Problem]]:
        """The problems that a use draws from, by the name of their source or evaluation set."""
        return self.problem_set.evaluation_groups if use == "eval" else self.problem_set.training_groups

    def _dropped(self, groups: int) -> list[int]:
        """How many training problems decontamination has dropped: of each source, or of all as one group."""
        counts = self.problem_set.counts
        parts = counts["sources"].values() if groups > 1 else [counts]
        return [sum(part["dropped"].values()) for part in parts]

    def _unsearched(self) -> list[Problem]:
        """All training problems that search does not draw, in a random order."""
        return self._others(self.draw("search"), f"{self.seed}/rl")

    def _others(self, problems: Collection[Problem], name: str) -> list[Problem]:
        """All training problems but some, in a random order."""
        exclude = {p.id for p in problems}
        if not source.has_source(self.c):
            return countdown.other_problems(self.game, name, exclude)
        rest = [p for p in self.problem_set.training if p.id not in exclude]
        return random.Random(name).sample(rest, len(rest))

    def _take_first(self, unsearched: list[Problem]) -> list[Problem]:
        """The prompts of RL among the problems that are not searched."""
        prompts = self._candidates(unsearched).take(unsearched)
        if len(prompts) < self.c.rl:
            raise AstroError(
                f"problems.rl_prompts=disjoint: problems.rl={self.c.rl} prompts asked for, {len(prompts)} can be drawn "
                "beside the searched problems; lower problems.search or problems.rl, or set rl_prompts=shared"
            )
        return prompts

    def _candidates(self, problems: list[Problem]) -> Candidates:
        counts = self.c.counts("rl")
        return Candidates(problems, counts or (self.c.rl,), self._group_of() if counts else {})

    def _group_of(self) -> dict[str, int]:
        """The index of the source of each training problem, by the problem's id."""
        return {p.id: i for i, group in enumerate(self._groups("rl").values()) for p in group}
