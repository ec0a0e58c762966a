"""The cost of a whole run on a slice: the tokens of its stages at the speed of their programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from astro_jax import config as cfg
from astro_jax import stage_inputs, stages
from astro_jax.problems import source
from astro_jax.storage import Json
from astro_jax.traces import dataset
from astro_jax.traces.rewriting import model_kinds


def run_cost(c: cfg.Config, prompt_tokens: int, chips: int, rows: Sequence[Json], roofline_share: float) -> Json:
    """Return the most tokens of each program in a whole run, and their time at a share of the roofline.

    Search by mcts: each simulation of each tree expands `num_parallel_leaves` nodes. Each node gets `num_proposals`
    steps, and each step `num_rollouts` rollouts. Search by rounds: each tree samples the rollouts of all rounds, though
    most trees end before. Search by best-of-n: `num_samples` rollouts. SFT of ASTRO: an example is a prompt and one
    rollout for each branch; of Direct: a prompt and one rollout. RL: one response for each sample, and two for each
    held-out prompt in each measurement. All steps, rollouts and responses have their maximum length.

    Traces that a model writes: each branch of each example of ASTRO is written once, and each example ends at a
    solution of its own that the model judges. Direct's samples count too. Difficulty: `problems.rl` prompts, or
    `max_difficulty_prompts`. Evaluation: a sampled and a greedy answer of each model; majority votes are left out,
    since their number follows from the answers. A judge (`verify.judge`) samples all its judgements of each rollout or
    response of a stage that asks it.

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
      `reached` (the share), `total_hours` and `total_chip_hours` of these programs, and by stage and program, such as
      "astro-sft step": `tokens`, `hours`, `chip_hours`, and `of` [stage, program], the row that the cost belongs to.
      The two entries above have no `of`.
    """
    costs: Json = {"reached": roofline_share}
    by_program = {(row["stage"], row["program"]): row for row in rows if "tokens_per_s" in row}

    def cost(tokens: float, tokens_per_s: int) -> Json:
        hours = tokens / (tokens_per_s * roofline_share) / 3600
        return {"tokens": round(tokens), "hours": round(hours, 2), "chip_hours": round(hours * chips, 1)}

    for stage, kind, program, tokens in _work(c, prompt_tokens):
        if (row := by_program.get((kind, program))) is None:
            continue
        name = f"{stage} {program}"
        costs[name] = cost(tokens, row["tokens_per_s"]) | {"of": [kind, program]}
        if "unshared_tokens_per_s" in row and kind in ("search", "grpo"):
            costs[f"{name}, no prefix shared"] = cost(tokens, row["unshared_tokens_per_s"])
        if kind == "search":
            s = c.search
            share = {"mcts": 1 / s.num_simulations, "rounds": s.rounds[0] / sum(s.rounds), "best-of-n": 1}[s.method]
            costs[f"{name}, one iteration a tree"] = cost(tokens * share, row["tokens_per_s"])
    hours = sum(entry["hours"] for entry in costs.values() if isinstance(entry, dict) and "of" in entry)
    return costs | {"total_hours": round(hours, 1), "total_chip_hours": round(hours * chips, 1)}


def _work(c: cfg.Config, prompt_tokens: int) -> Iterator[tuple[str, str, str, float]]:
    """Yield (stage of the run, planned stage, program, tokens in a whole run)."""

    def judge(stage: str, kind: str, responses: float) -> Iterator[tuple[str, str, str, float]]:
        if (j := c.verify.judge) is not None and stage_inputs.asks_judge(c, stage):
            yield stage, kind, "judge", responses * j.num_samples * j.max_tokens

    s, t, g, p = c.search, c.traces, c.grpo, c.problems
    if c.base_sft is not None and "base" in c.stages:
        solutions = p.search + p.rl if source.has_source(p) else c.corpus.documents
        yield "base", "base", "step", c.base_sft.num_train_epochs * solutions * (prompt_tokens + s.max_rollout_tokens)
    steps = s.num_simulations * s.num_parallel_leaves * s.num_proposals
    per_tree = {"mcts": steps * s.num_rollouts, "rounds": sum(s.rounds), "best-of-n": s.num_samples}[s.method]
    proposed = steps * s.max_step_tokens if s.method == "mcts" else 0
    if "search" in c.stages:
        yield "search", "search", "decode", p.search * (proposed + per_tree * s.max_rollout_tokens)
        yield from judge("search", "search", p.search * per_tree)
    examples = t.direct_examples + t.search_examples
    branches = t.direct_examples + t.search_examples * (1 + (1 + t.max_backtracks) / 2)
    if "traces" in c.stages and dataset.needs_model(t):
        written = branches * s.max_rollout_tokens if model_kinds(t) else 0
        judged = examples * t.self_evaluation * t.self_evaluation_tokens
        direct = t.direct_samples if t.direct == "best-of-n" else 0
        yield "traces", "traces", "decode", p.search * (written + judged + direct * t.direct_tokens)
        yield from judge("traces", "traces", p.search * (direct + (branches if model_kinds(t) else 0)))
    for name, rollouts in (("direct-sft", examples), ("astro-sft", branches)):
        if name in c.stages:
            tokens = examples * prompt_tokens + rollouts * s.max_rollout_tokens
            yield name, "sft", "step", c.sft.num_train_epochs * p.search * tokens
    if n := p.difficulty_samples:
        prompts = p.max_difficulty_prompts or p.rl
        models = stages.difficulty_models(c.stages, p.difficulty_model)
        for model in models:
            yield f"difficulty of {model}", "difficulty", "decode", prompts * n * c.eval.max_tokens
        yield from judge("difficulty", "difficulty", len(models) * prompts * n)
    responses = g.max_steps * g.prompts_per_step * g.num_generations
    held_out = 2 * round(g.eval_share * p.rl) * -(-g.max_steps // g.eval_steps)
    for name in (name for name in c.stages if stages.get(name).command == "grpo"):
        yield name, "grpo", "decode", (responses + held_out) * g.max_completion_length
        yield from judge(name, "grpo", responses + held_out)
        yield name, "grpo", "gradient", responses * (prompt_tokens + g.max_completion_length)
    if "eval" in c.stages:
        answers = len(stages.models_of(c.stages)) * p.eval * 2
        yield "eval", "eval", "decode", answers * c.eval.max_tokens
        yield from judge("eval", "eval", answers)
