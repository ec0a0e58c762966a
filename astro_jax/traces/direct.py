"""The data of the Direct control: solutions without search, as many examples or tokens as ASTRO has."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TypeVar

from astro_jax import config as cfg
from astro_jax.errors import AstroError
from astro_jax.sampler import SamplingParams
from astro_jax.traces.pool import PooledExample
from astro_jax.traces.writer import TraceWriter
from astro_jax.types import Problem

T = TypeVar("T")


def sample_solutions(problems: Sequence[Problem], c: cfg.Traces, writer: TraceWriter) -> list[list[str]]:
    """Sample N independent solutions of each problem, and keep the different correct ones (`traces.direct: best-of-n`).

    Such a control needs no tree. The paper's reviewers asked for it.
    """
    policy = writer.policy
    requests = [policy.request(p.prompt, c.direct_samples, "traces", "best-of-n", p.id) for p in problems]
    completions = policy.generate(requests, SamplingParams(c.direct_tokens))
    responses = [
        [policy.response(p, completion) for completion in group] for p, group in zip(problems, completions, strict=True)
    ]
    verdicts = iter(writer.verifier.judge([r for group in responses for r in group]))
    return [list(dict.fromkeys(r.text for r in group if next(verdicts).correct)) for group in responses]


def interleave(examples_by_problem: Sequence[Sequence[T]]) -> list[T]:
    """Join the examples of many problems: the first of each problem, then the second of each, and so on."""
    turns = itertools.zip_longest(*examples_by_problem)
    return [example for turn in turns for example in turn if example is not None]


def match_size(pool: Sequence[PooledExample], size: int) -> list[PooledExample]:
    """Take as much from a pool of examples as ASTRO has. A pool that is too small is taken again from its beginning.

    Args:
      size: of ASTRO's set. In examples the sets become equal, in tokens to within half of the last example.

    Raises:
      AstroError: when the pool is empty.
    """
    if not size:
        return []
    if not pool:
        raise AstroError(
            "traces.direct: no sample is right, so there is no Direct control; raise traces.direct_samples"
        )
    endless, taken = itertools.cycle(pool), []
    while 2 * size >= (example := next(endless)).size:
        taken.append(example)
        size -= example.size
    return taken
