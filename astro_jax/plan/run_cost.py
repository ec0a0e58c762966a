"""The cost of a whole run on a slice: the tokens of its stages at the speed of their programs."""

from __future__ import annotations

from collections.abc import Sequence

from astro_jax import config as cfg
from astro_jax.storage import Json


def run_cost(c: cfg.Config, prompt_tokens: int, chips: int, rows: Sequence[Json], roofline_share: float) -> Json:
    """Return the most tokens of each program in a whole run, and their time at a share of the roofline.

    Search by mcts: each simulation of each tree expands `num_parallel_leaves` nodes. Each node gets `num_proposals`
    steps, and each step `num_rollouts` rollouts. Search by rounds: each tree samples the rollouts of all rounds, though
    most trees end before. SFT: an example is a prompt and one rollout for each branch. RL: one response for each
    sample. All steps, rollouts and responses have their maximum length.

    Two more entries say how much a feature can save. "..., no prefix shared" is decoding when each sample has its own
    copy of its prefix, with as much memory for caches. "..., one iteration a tree" is the search when every tree ends
    after its first simulation or round, the most that `search.early_stop` can save.

    Args:
      c: config of the run.
      prompt_tokens: length of a problem's prompt.
      chips: of the slice.
      rows: `programs` of planner.plan_run.
      roofline_share: share of the roofline's speed that the run is assumed to reach.

    Returns:
      `reached` (the share), `total_hours` and `total_chip_hours` of these programs, and by "stage program", such as
      "sft step": `tokens`, `hours`, `chip_hours`.
    """
    costs: Json = {"reached": roofline_share}

    def add(name: str, tokens: float, tokens_per_s: int) -> None:
        hours = tokens / (tokens_per_s * roofline_share) / 3600
        costs[name] = {"tokens": round(tokens), "hours": round(hours, 2), "chip_hours": round(hours * chips, 1)}

    tokens_by_program = _tokens(c, prompt_tokens)
    for row in rows:
        tokens = tokens_by_program.get((row["stage"], row["program"]))
        if tokens is None or "tokens_per_s" not in row:
            continue
        name = f"{row['stage']} {row['program']}"
        add(name, tokens, row["tokens_per_s"])
        if "unshared_tokens_per_s" in row:
            add(f"{name}, no prefix shared", tokens, row["unshared_tokens_per_s"])
        if row["stage"] == "search":
            s = c.search
            share = s.rounds[0] / sum(s.rounds) if s.method == "rounds" else 1 / s.num_simulations
            add(f"{name}, one iteration a tree", tokens * share, row["tokens_per_s"])
    hours = sum(cost["hours"] for name, cost in costs.items() if isinstance(cost, dict) and "," not in name)
    return costs | {"total_hours": round(hours, 1), "total_chip_hours": round(hours * chips, 1)}


def _tokens(c: cfg.Config, prompt_tokens: int) -> dict[tuple[str, str], float]:
    """Return the tokens of a whole run by (stage, program)."""
    s, t, g = c.search, c.traces, c.grpo
    steps = s.num_simulations * s.num_parallel_leaves * s.num_proposals
    tokens_per_tree = {
        "mcts": steps * (s.max_step_tokens + s.num_rollouts * s.max_rollout_tokens),
        "rounds": sum(s.rounds) * s.max_rollout_tokens,
        "best-of-n": s.num_samples * s.max_rollout_tokens,
    }[s.method]
    examples = t.direct_examples + t.search_examples
    branches = t.direct_examples + t.search_examples * (1 + (1 + t.max_backtracks) / 2)
    tokens_per_problem = examples * prompt_tokens + branches * s.max_rollout_tokens
    responses = g.max_steps * g.prompts_per_step * g.num_generations
    return {
        ("search", "decode"): c.problems.search * tokens_per_tree,
        ("sft", "step"): c.sft.num_train_epochs * c.problems.search * tokens_per_problem,
        ("grpo", "decode"): responses * g.max_completion_length,
        ("grpo", "gradient"): responses * (prompt_tokens + g.max_completion_length),
    }
