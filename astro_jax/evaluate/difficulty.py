"""Difficulty of problems for a policy: the share of its sampled answers that is correct (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from etils import epath

from astro_jax import config as cfg
from astro_jax.errors import AstroError
from astro_jax.evaluate import run as evaluation
from astro_jax.policy import Policy
from astro_jax.storage import Shards
from astro_jax.types import Problem
from astro_jax.verify import Verifier


def run(
    folder: epath.Path, problems: Sequence[Problem], n: int, c: cfg.Eval, policy: Policy, verifier: Verifier
) -> dict[str, Any]:
    """Sample n answers to each problem, and write how many are correct.

    Writes shards `folder`/rates-*.jsonl of {problem_id, n, right}.

    Returns:
      counts: problems, and how many of them are never and always solved.
    """
    store = Shards(folder, "rates")
    for index, shard, bar in evaluation.unfinished_shards(store, "difficulty", problems, c.shard_size):
        groups = evaluation.sample_and_judge("difficulty", shard, c, policy, verifier, n, 1.0, use="reward")
        correct = [sum(a["correct"] for a in group) for group in groups]
        store.write(index, ({"problem_id": p.id, "n": n, "right": k} for p, k in zip(shard, correct, strict=True)))
        bar.advance(len(shard), solved=sum(correct) / (n * len(shard)))
    rates = list(_pass_rates(folder).values())
    return {"problems": len(rates), "never solved": rates.count(0.0), "always solved": rates.count(1.0)}


def filter_by_pass_rate(
    folder: epath.Path, problems: Sequence[Problem], low: float, high: float, min_problems: int
) -> tuple[list[Problem], dict[str, int]]:
    """Keep the problems whose pass rate lies from `low` to `high`.

    Args:
      folder: where `run` wrote the pass rates.
      min_problems: the prompts of one step of RL (grpo.prompts_per_step).

    Returns:
      (the problems, the counts of those left out as too easy and as too hard).

    Raises:
      AstroError: when fewer than `min_problems` are left. Some would come several times in a step.
    """
    rates = _pass_rates(folder)
    kept = [p for p in problems if low <= rates[p.id] <= high]
    easy = sum(rates[p.id] > high for p in problems)
    hard = len(problems) - len(kept) - easy
    if len(kept) < min_problems:
        raise AstroError(
            f"problems.rl_pass_rate: {len(kept)} of {len(problems)} prompts are solved {low:g} to {high:g} of the time "
            f"({easy} more often, {hard} less), and a step takes grpo.prompts_per_step={min_problems}; "
            "widen it, or raise problems.rl"
        )
    return kept, {"too easy": easy, "too hard": hard}


def _pass_rates(folder: epath.Path) -> dict[str, float]:
    return {r["problem_id"]: r["right"] / r["n"] for r in Shards(folder, "rates").read()}
