"""Difficulty of problems for a policy: the share of its sampled answers that is correct (paper, section 3.2).

RL takes prompts whose pass rate lies within `problems.rl_pass_rate`. `measure` samples answers to the candidates, one
shard after the other, until enough of them have passed. `select` reads the shards and selects the prompts of RL.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from astro_jax import config as cfg
from astro_jax import storage
from astro_jax.errors import AstroError
from astro_jax.evaluate import run as evaluation
from astro_jax.policy import Policy
from astro_jax.problems.draws import Candidates
from astro_jax.progress import ProgressBar, log
from astro_jax.storage import Json, Shards
from astro_jax.types import Problem
from astro_jax.verify import Verifier


def measure(
    store: Shards,
    candidates: Candidates,
    p: cfg.Problems,
    c: cfg.Eval,
    policy: Policy,
    verifier: Verifier,
    max_prompt_tokens: int,
) -> dict[str, int]:
    """Sample answers to candidates until enough prompts have passed, and write how many answers are correct.

    Writes shards of {problem_id, n, right}: `n` answers, `right` of them correct. A prompt that is too long has `n` 0.
    The measurement ends when all `candidates.wanted` prompts have passed, when no candidate is left, or after
    `p.max_difficulty_prompts` prompts. What a shard holds depends on the shards before it alone, so a measurement
    that was stopped continues with the first shard that is missing.

    Args:
      store: of the shards.
      max_prompt_tokens: the length of the longest prompt that can be measured and trained on.

    Returns:
      the counts of `select`, and how many prompts are never and always solved.
    """
    records: list[Json] = []
    label = f"difficulty for {store.name}"
    with ProgressBar(label, sum(candidates.wanted), "prompts that pass") as bar:
        for index in itertools.count():
            if not store.has(index):
                problems, too_long = _next_shard(candidates, records, p, c, policy, max_prompt_tokens)
                if not problems and not too_long:
                    break
                args = (problems, c, policy, verifier, p.difficulty_samples, 1.0)
                groups = evaluation.sample_and_judge("difficulty", *args, use="reward")
                correct = [sum(a["correct"] for a in group) for group in groups]
                shard = [_record(x, 0, 0) for x in too_long]
                shard += [_record(x, p.difficulty_samples, k) for x, k in zip(problems, correct, strict=True)]
                store.write(index, shard)
            records += storage.read_jsonl(store.path(index))
            bar.advance(len(_select(records, candidates, p)[0]) - bar.count)
    prompts, counts = _select(records, candidates, p)
    if len(prompts) < sum(candidates.wanted):
        log(f"{label}: {len(prompts)} of {sum(candidates.wanted)} prompts have passed, after {counts['measured']}")
    rates = [r["right"] / r["n"] for r in records if r["n"]]
    return counts | {"never solved": rates.count(0.0), "always solved": rates.count(1.0)}


def select(
    store: Shards, candidates: Candidates, p: cfg.Problems, min_prompts: int
) -> tuple[list[Problem], dict[str, int]]:
    """Select the prompts of RL: the first candidates whose measured pass rate lies within `p.rl_pass_rate`.

    Args:
      store: where `measure` wrote the pass rates.
      min_prompts: the prompts of one step of RL (grpo.prompts_per_step).

    Returns:
      (the prompts, counts). The counts are the prompts, the candidates measured, those left out as too easy, too hard
      or too long, and those that passed but were not needed.

    Raises:
      AstroError: when fewer than `min_prompts` prompts have passed. Some would come several times in a step.
    """
    prompts, counts = _select(list(store.read()), candidates, p)
    if len(prompts) < min_prompts:
        low, high = p.rl_pass_rate
        raise AstroError(
            f"problems.rl_pass_rate: {len(prompts)} of {counts['measured']} prompts are solved {low:g} to {high:g} of "
            f"the time ({counts['too easy']} more often, {counts['too hard']} less, {counts['too long']} are too long "
            f"to measure), and a step takes grpo.prompts_per_step={min_prompts}; widen it, or give more problems"
        )
    return prompts, counts


def _select(records: Sequence[Json], candidates: Candidates, p: cfg.Problems) -> tuple[list[Problem], dict[str, int]]:
    low, high = p.rl_pass_rate
    rates = {r["problem_id"]: r["right"] / r["n"] for r in records if r["n"]}
    # In the order of the candidates, so that the prompts do not depend on the size of a shard.
    passed = [x for x in candidates.problems if x.id in rates and low <= rates[x.id] <= high]
    prompts = candidates.take(passed)
    return prompts, {
        "prompts": len(prompts),
        "measured": len(rates),
        "too easy": sum(rate > high for rate in rates.values()),
        "too hard": sum(rate < low for rate in rates.values()),
        "too long": len(records) - len(rates),
        "not needed": len(passed) - len(prompts),
    }


def _next_shard(
    candidates: Candidates, records: Sequence[Json], p: cfg.Problems, c: cfg.Eval, policy: Policy, max_tokens: int
) -> tuple[list[Problem], list[Problem]]:
    """Return the candidates of the next shard: those to measure, and those before them that are too long."""
    open_groups = candidates.open_groups(_select(records, candidates, p)[0])
    size = c.shard_size
    if p.max_difficulty_prompts is not None:
        size = min(size, p.max_difficulty_prompts - sum(r["n"] > 0 for r in records))
    seen = {r["problem_id"] for r in records}
    problems: list[Problem] = []
    too_long: list[Problem] = []
    for x in candidates.problems:
        if len(problems) >= size:
            break
        if x.id not in seen and candidates.group_of.get(x.id, 0) in open_groups:
            fits = len(policy.tokenizer.prompt(x.prompt)) <= max_tokens
            (problems if fits else too_long).append(x)
    return problems, too_long


def _record(problem: Problem, n: int, right: int) -> Json:
    return {"problem_id": problem.id, "n": n, "right": right}
