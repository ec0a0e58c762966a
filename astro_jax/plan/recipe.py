"""What a whole run costs on a slice, by the tokens of its stages and the roofline of its programs."""

from __future__ import annotations

from collections.abc import Sequence

from astro_jax import config as cfg
from astro_jax.storage import Json


def recipe(c: cfg.Config, prompt: int, chips: int, rows: Sequence[Json], reached: float) -> Json:
    """The tokens of each stage at most, and the time they take at a share of the roofline.

    Search: every iteration of every tree expands `leaves` nodes, each into k steps with M rollouts, all as long as they
    may be. SFT: every example is a prompt and one rollout for each branch. RL: every response is as long as it may be.

    Two lines say what a saving is worth: decoding as if no prefix were shared, in as much memory for caches; and the
    search if every tree ended after its first iteration, which is the most that search.early_stop can save.

    Args:
      rows: of the programs, as plan.run makes them.

    Returns:
      `reached`, and by stage of those planned: tokens, hours, chip_hours.
    """
    found: Json = {"reached": reached}

    def line(name: str, tokens: float, per_s: int) -> None:
        hours = tokens / (per_s * reached) / 3600
        found[name] = {"tokens": round(tokens), "hours": round(hours, 2), "chip_hours": round(hours * chips, 1)}

    tokens = _tokens(c, prompt)
    for row in rows:
        n = tokens.get((row["stage"], row["program"]))
        if n is None or "tokens_per_s" not in row:
            continue
        name = f"{row['stage']} {row['program']}"
        line(name, n, row["tokens_per_s"])
        if "unshared_tokens_per_s" in row:
            line(f"{name}, no prefix shared", n, row["unshared_tokens_per_s"])
        if row["stage"] == "search":
            line(f"{name}, one iteration a tree", n / c.search.num_simulations, row["tokens_per_s"])
    return found


def _tokens(c: cfg.Config, prompt: int) -> dict[tuple[str, str], float]:
    """By stage and program."""
    s, t, g = c.search, c.traces, c.grpo
    nodes = c.problems.search * s.num_simulations * s.num_parallel_leaves * s.num_proposals
    branches = t.direct_examples + t.search_examples * (1 + (1 + t.max_backtracks) / 2)
    responses = g.max_steps * g.prompts_per_step * g.num_generations
    examples = t.direct_examples + t.search_examples
    return {
        ("search", "decode"): nodes * (s.max_step_tokens + s.num_rollouts * s.max_rollout_tokens),
        ("sft", "step"): c.sft.num_train_epochs
        * c.problems.search
        * (examples * prompt + branches * s.max_rollout_tokens),
        ("grpo", "decode"): responses * g.max_completion_length,
        ("grpo", "gradient"): responses * (prompt + g.max_completion_length),
    }
