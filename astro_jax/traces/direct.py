"""The Direct control's data: solutions without search, as much of them as ASTRO has."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from astro_jax import config as cfg
from astro_jax.errors import AstroError
from astro_jax.sampler import SamplingParams
from astro_jax.storage import Json
from astro_jax.traces.author import Author
from astro_jax.types import Problem


def best_of_n(problems: Sequence[Problem], c: cfg.Traces, author: Author) -> list[list[str]]:
    """The different right answers among N independent samples of each problem: what needs no tree (asked for by the
    paper's reviewers)."""
    requests = [author.policy.request(p.prompt, c.direct_samples, "traces", "best-of-n", p.id) for p in problems]
    samples = author.policy.generate(requests, SamplingParams(c.direct_tokens))
    responses = [[author.policy.response(p, s) for s in each] for p, each in zip(problems, samples, strict=True)]
    verdicts = iter(author.verifier.judge([r for each in responses for r in each]))
    return [list(dict.fromkeys(r.text for r in each if next(verdicts).correct)) for each in responses]


def by_turns(pool: Sequence[Sequence[Json]]) -> list[Json]:
    """The examples of many problems in one list: one of each problem, then another of each."""
    return [e for turn in itertools.zip_longest(*pool) for e in turn if e is not None]


def matched(pool: Sequence[Json], astro: Sequence[Json], how: str, length: Callable[[Json], int]) -> list[Json]:
    """As much of a pool of examples as there is of ASTRO's, from its beginning again when it ends.

    Args:
      how: "examples": equally many; "tokens": as many tokens, to within half of the last example.
      length: an example's tokens.

    Raises:
      AstroError: when there is nothing to take.
    """
    if not astro:
        return []
    if not pool:
        raise AstroError(
            "traces.direct: no sample is right, so there is no Direct control; raise traces.direct_samples"
        )
    endless = itertools.cycle(pool)
    if how == "examples":
        return list(itertools.islice(endless, len(astro)))
    left, found = sum(map(length, astro)), []
    while 2 * left >= length(example := next(endless)):
        found.append(example)
        left -= length(example)
    return found
