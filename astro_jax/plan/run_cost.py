"""The cost of a whole run on a slice: the tokens of its stages at the speed of their programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import stats

from astro_jax import config as cfg
from astro_jax import stage_inputs, stages
from astro_jax.problems import source, suites
from astro_jax.storage import Json
from astro_jax.traces import dataset
from astro_jax.traces.rewriting import model_kinds


def run_cost(
    c: cfg.Config, prompt_tokens: int, chips: int, rows: Sequence[Json], roofline_share: float, mean_length: float = 0.5
) -> Json:
    """Return the tokens of each program in a whole run, and their time at a share of the roofline.

    Search by mcts: each simulation of each tree expands `num_parallel_leaves` nodes. Each node gets `num_proposals`
    steps, and each step `num_rollouts` rollouts. Search by rounds: see `mean_rollouts`; at most, each tree samples the
    rollouts of all rounds. Search by best-of-n: `num_samples` rollouts. SFT of ASTRO: an example is a prompt and one
    rollout for each branch; of Direct: a prompt and one rollout. RL: one response for each sample, and two for each
    held-out prompt in each measurement.

    Traces that a model writes: each branch of each example of ASTRO is written once, and each example ends at a
    solution of its own that the model judges. Direct's samples count too. Difficulty: `problems.rl` prompts, or
    `max_difficulty_prompts`. Evaluation: a sampled and a greedy answer of each model, and `eval.num_samples` to each
    problem of `eval.suites`; left out are majority votes, whose number follows from the answers, and suites of unknown
    size without `eval.limit`. A judge (`verify.judge`) samples all its judgements of each rollout or
    response of a stage that asks it.

    Another entry, "..., no prefix shared", is decoding when each sample has its own copy of its prefix, with as much
    memory for caches.

    Args:
      c: config of the run.
      prompt_tokens: length of a problem's prompt.
      chips: of the slice.
      rows: `programs` of planner.plan_run.
      roofline_share: share of the roofline's speed that the run is assumed to reach.
      mean_length: mean length of steps, rollouts and responses, as a share of the most that they may have.

    Returns:
      `reached` and `mean_length` (the two shares), `total_hours` and `total_chip_hours` of these programs, and by stage
      and program, such as "astro-sft step": `tokens`, `hours`, `chip_hours`, and `of` [stage, program], the row that
      the cost belongs to. The entry above has no `of`. `longest_hours` of a program, and `longest_total_hours`, are
      those if every sample has its greatest length and no tree ends early.
    """
    costs: Json = {"reached": roofline_share, "mean_length": mean_length}
    by_program = {(row["stage"], row["program"]): row for row in rows if "tokens_per_s" in row}

    def cost(tokens: float, tokens_per_s: int) -> Json:
        hours = tokens / (tokens_per_s * roofline_share) / 3600
        return {"tokens": round(tokens), "hours": round(hours, 2), "chip_hours": round(hours * chips, 1)}

    rollouts = sum(c.search.rounds)
    typical = _work(c, prompt_tokens, mean_length, mean_rollouts(c.search) if c.search.method == "rounds" else rollouts)
    longest = _work(c, prompt_tokens, 1.0, rollouts)
    for (stage, kind, program, tokens), (*_, longest_tokens) in zip(typical, longest, strict=True):
        if (row := by_program.get((kind, program))) is None:
            continue
        name, speed = f"{stage} {program}", row["tokens_per_s"]
        costs[name] = cost(tokens, speed) | {
            "longest_hours": cost(longest_tokens, speed)["hours"],
            "of": [kind, program],
        }
        if "unshared_tokens_per_s" in row and kind in ("search", "grpo"):
            costs[f"{name}, no prefix shared"] = cost(tokens, row["unshared_tokens_per_s"])
    counted = [entry for entry in costs.values() if isinstance(entry, dict) and "of" in entry]
    for total, key in (("total", "hours"), ("longest_total", "longest_hours")):
        hours = sum(entry[key] for entry in counted)
        costs |= {f"{total}_hours": round(hours, 1), f"{total}_chip_hours": round(hours * chips, 1)}
    return costs


def mean_rollouts(s: cfg.Search) -> float:
    """The mean number of rollouts of a tree that grows by rounds, for problems of all difficulties in equal numbers.

    The share of correct rollouts of a problem is uniform between 0 and 1, rollouts are independent, and no two wrong
    ones have the same answer.
    """
    if (stop := s.early_stop) is None:
        return sum(s.rounds)
    rates = (np.arange(200) + 0.5) / 200
    grows = np.ones((len(rates), 1))  # [rate, correct rollouts]: the probability that the tree grows on with so many
    mean = 0.0
    for size in s.rounds:
        mean += size * grows.sum(1).mean()
        drawn = stats.binom.pmf(np.arange(size + 1), size, rates[:, None])
        grows = np.stack([np.convolve(a, b) for a, b in zip(grows, drawn, strict=True)])
        correct = np.arange(grows.shape[1])
        wrong = correct[::-1]
        ends = (correct >= stop.correct) & (wrong >= stop.wrong)
        if stop.hopeless and len(correct) > stop.hopeless:
            ends |= correct == 0
        if stop.trivial and len(correct) > stop.trivial:
            ends |= wrong == 0
        grows[:, ends] = 0
    return float(mean)


def _work(c: cfg.Config, prompt_tokens: int, length: float, rollouts: float) -> Iterator[tuple[str, str, str, float]]:
    """Yield (stage of the run, planned stage, program, tokens in a whole run).

    Args:
      c: config of the run.
      prompt_tokens: length of a problem's prompt.
      length: of each sample, as a share of the most that it may have.
      rollouts: of a tree that grows by rounds.
    """

    def judge(stage: str, kind: str, responses: float) -> Iterator[tuple[str, str, str, float]]:
        if (j := c.verify.judge) is not None and stage_inputs.asks_judge(c, stage):
            yield stage, kind, "judge", responses * j.num_samples * length * j.max_tokens

    s, t, g, p = c.search, c.traces, c.grpo, c.problems
    rollout, response, answer = (length * x for x in (s.max_rollout_tokens, g.max_completion_length, c.eval.max_tokens))
    if c.base_sft is not None and "base" in c.stages:
        solutions = p.search + p.rl if source.has_source(p) else c.corpus.documents
        yield "base", "base", "step", c.base_sft.num_train_epochs * solutions * (prompt_tokens + rollout)
    steps = s.num_simulations * s.num_parallel_leaves * s.num_proposals
    per_tree = {"mcts": steps * s.num_rollouts, "rounds": rollouts, "best-of-n": s.num_samples}[s.method]
    proposed = steps * length * s.max_step_tokens if s.method == "mcts" else 0
    if "search" in c.stages:
        yield "search", "search", "decode", p.search * (proposed + per_tree * rollout)
        yield from judge("search", "search", p.search * per_tree)
    examples = t.direct_examples + t.search_examples
    branches = t.direct_examples + t.search_examples * (1 + (1 + t.max_backtracks) / 2)
    if "traces" in c.stages and dataset.needs_model(t):
        written = branches * rollout if model_kinds(t) else 0
        judged = examples * t.self_evaluation * length * t.self_evaluation_tokens
        direct = t.direct_samples if t.direct == "best-of-n" else 0
        yield "traces", "traces", "decode", p.search * (written + judged + direct * length * t.direct_tokens)
        yield from judge("traces", "traces", p.search * (direct + (branches if model_kinds(t) else 0)))
    for name, attempts in (("direct-sft", examples), ("astro-sft", branches)):
        if name in c.stages:
            tokens = examples * prompt_tokens + attempts * rollout
            yield name, "sft", "step", c.sft.num_train_epochs * p.search * tokens
    if n := p.difficulty_samples:
        prompts = p.max_difficulty_prompts or p.rl
        models = stages.difficulty_models(c.stages, p.difficulty_model)
        for model in models:
            yield f"difficulty of {model}", "difficulty", "decode", prompts * n * answer
        yield from judge("difficulty", "difficulty", len(models) * prompts * n)
    responses = g.max_steps * g.prompts_per_step * g.num_generations
    held_out = 2 * round(g.eval_share * p.rl) * -(-g.max_steps // g.eval_steps)
    for name in (name for name in c.stages if stages.get(name).command == "grpo"):
        yield name, "grpo", "decode", (responses + held_out) * response
        yield from judge(name, "grpo", responses + held_out)
        yield name, "grpo", "gradient", responses * (prompt_tokens + response)
    if "eval" in c.stages:
        sizes = [suites.most_problems(spec) or c.eval.limit or 0 for spec in c.eval.suites]
        of_suites = c.eval.num_samples * sum(min(size, c.eval.limit or size) for size in sizes)
        answers = len(stages.models_of(c.stages)) * (2 * p.eval + of_suites)
        yield "eval", "eval", "decode", answers * answer
        yield from judge("eval", "eval", answers)
