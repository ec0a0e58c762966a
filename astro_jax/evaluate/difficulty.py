"""How hard problems are for a policy: the share of its sampled answers that is right (paper, section 3.2)."""

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
    """Answer every problem n times; shards `folder`/rates-*.jsonl of {problem_id, n, right}.

    Returns:
      counts: problems, and how many are never and always solved.
    """
    store = Shards(folder, "rates")
    for i, wave, bar in evaluation.missing(store, "difficulty", problems, c.shard_size):
        answers = evaluation.answers("difficulty", wave, c, policy, verifier, n, 1.0, use="reward")
        right = [sum(a["correct"] for a in each) for each in answers]
        store.write(i, ({"problem_id": p.id, "n": n, "right": r} for p, r in zip(wave, right, strict=True)))
        bar.advance(len(wave), solved=sum(right) / (n * len(wave)))
    rates = [r["right"] / r["n"] for r in store.read()]
    return {"problems": len(rates), "never solved": rates.count(0.0), "always solved": rates.count(1.0)}


def moderate(
    folder: epath.Path, problems: Sequence[Problem], low: float, high: float, least: int
) -> tuple[list[Problem], dict[str, int]]:
    """Those of the problems whose pass rate lies within low and high; and how many are too easy and too hard.

    Raises:
      AstroError: when there are fewer than `least`: they would come several times in a step.
    """
    rates = {r["problem_id"]: r["right"] / r["n"] for r in Shards(folder, "rates").read()}
    kept = [p for p in problems if low <= rates[p.id] <= high]
    easy = sum(rates[p.id] > high for p in problems)
    hard = len(problems) - len(kept) - easy
    if len(kept) < least:
        raise AstroError(
            f"problems.rl_pass_rate: {len(kept)} of {len(problems)} prompts are solved {low:g} to {high:g} of the time "
            f"({easy} more often, {hard} less), and a step takes grpo.prompts_per_step={least}; widen it, or raise problems.rl"
        )
    return kept, {"too easy": easy, "too hard": hard}
