"""The stages of a run, in the order of the paper. Each reads files of the run's folder and writes new ones:

    problems -> search -> traces -> SFT -> GRPO -> evaluation -> report

A stage is finished when its folder has a manifest. A run keeps finished stages whose inputs are the same as before
(`astro_jax.run_plan`), and continues a stopped stage from its last shard, saved trees or checkpoint.
`astro_jax.stages` declares names, order and parents; this module has the function of each stage.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import jax
from etils import epath

from astro_jax import (
    check,
    compilation_cache,
    countdown,
    distributed,
    report,
    run_lock,
    run_plan,
    sessions,
    stage_folder,
    stage_inputs,
    storage,
    termination,
)
from astro_jax import config as cfg
from astro_jax import stages as registry
from astro_jax.countdown.tokenizer import countdown_tokenizer
from astro_jax.errors import AstroError
from astro_jax.evaluate import comparison, difficulty, model_suites, suites
from astro_jax.evaluate import run as evaluation
from astro_jax.llama import checkpoint, paths
from astro_jax.llama import params as llama_params
from astro_jax.llama import tokenizer as tokenizers
from astro_jax.llama.config import LlamaConfig
from astro_jax.llama.params import Params
from astro_jax.llama.tokenizer import Tokenizer
from astro_jax.policy import Policy
from astro_jax.problems import lengths, solutions
from astro_jax.progress import log
from astro_jax.run_context import RunContext
from astro_jax.run_plan import StagePlan
from astro_jax.search import run as searching
from astro_jax.search.store import shards
from astro_jax.stage_folder import Inputs
from astro_jax.stages import STAGES
from astro_jax.storage import Shards
from astro_jax.traces import card, dataset
from astro_jax.traces.writer import TraceWriter
from astro_jax.traces.wrong_steps import wrong_spans
from astro_jax.train import data, examples, grpo, loop, rewards, sft
from astro_jax.train.collapse_guard import CollapseGuard
from astro_jax.train.data import Example
from astro_jax.train.held_out import HeldOut, hold_out
from astro_jax.train.restarts import Restarts
from astro_jax.train.rollouts import RolloutLog
from astro_jax.train.state import abstract_state, make_optimizer, new_state, place
from astro_jax.types import Problem
from astro_jax.verify import verdict_counts
from astro_jax.verify.verdict_counts import VerdictCounts


def execute(
    c: cfg.Config,
    command: str = "",
    only: Sequence[str] = (),
    shard: tuple[int, int] = (0, 1),
    max_hours: float | None = None,
) -> RunContext:
    """Run the stages of a config in order. Keep the results of stages whose inputs have not changed.

    Args:
      c: the configuration.
      command: the command line, for config.json.
      only: the stages to run; empty for all.
      shard: (i, n): search only the i-th of n shards of the problems, and leave the stage unfinished.
      max_hours: of all commands on this run together (`sessions.record`).

    Raises:
      AstroError: for an unknown stage, a config that cannot run (before anything is written), or a missing parent.
    """
    if max_hours is not None and not max_hours > 0:  # also not a number
        raise AstroError(f"--max-hours {max_hours}: write a number above 0, as in 1.5")
    for name in only or c.stages:
        if name not in STAGES:
            raise AstroError(f"stages: no stage {name!r}; there are {', '.join(STAGES)}")
    names = registry.expand(only, c.stages, bool(c.eval.suites)) if only else stage_inputs.planned(c)
    try:
        run = RunContext(c, command, shard)
        plans = run_plan.plan(run, names)
    except AstroError:
        check.require(c, names)  # lists all that is wrong, not the first thing
        raise
    _require_parents(run, plans, names)
    _require_models(run, plans, names)
    if running := [name for name in names if plans[name].runs]:
        check.require(c, running, run)
    states = stage_folder.content_hash({name: [p.inputs.digest, p.state] for name, p in plans.items()})
    distributed.assert_equal_across_processes("the run's configuration", states)
    if any(p.note != "runs" for p in plans.values()):
        for name in names:
            log(f"{name}: {plans[name].note}")
    if all(p.state == "kept" for p in plans.values()):
        return run
    with contextlib.closing(run.verifier), run_lock.hold(run.folder, command, shared=shard[1] > 1):
        run.claim_folder()
        with compilation_cache.use(run.folder), sessions.record(run.folder, command, max_hours), termination.watch():
            for name, stage in plans.items():
                if stage.runs and name in names:
                    run_stage(run, stage)
                    log(f"{name}{f' {shard[0]}/{shard[1]}' * (shard[1] > 1)} done")
                elif not stage.runs:
                    run_plan.adopt(run.folder, stage)
                distributed.assert_equal_across_processes(f"{name} is done")
    return run


def _require_parents(run: RunContext, plans: Mapping[str, StagePlan], names: Sequence[str]) -> None:
    """Check that the stages which do not run have results to keep."""
    for name in names:
        for parent in plans[name].inputs.parents:
            if parent not in names and plans[parent].runs:
                note = plans[parent].note
                lacks = f"has changed ({note})" if note.startswith("runs again") else "has not finished"
                raise AstroError(
                    f"{run.folder}: {name} needs {parent}, which {lacks}; "
                    f"run `astro {registry.get(parent).command}` first"
                )


def _require_models(run: RunContext, plans: Mapping[str, StagePlan], names: Sequence[str]) -> None:
    """Check that the models which finished stages have made, and stages that run will read, are still there."""
    readers: dict[str, str] = {}
    for name in (name for name in names if plans[name].runs):
        # Traces are counted with the tokenizer of the base; a majority vote samples from its model again.
        ancestor = "base" if name == "traces" else name.removeprefix("eval/").removesuffix("-vote")
        readers |= dict.fromkeys((ancestor, *plans[name].inputs.parents), name)
    for model, name in readers.items():
        if model not in registry.MODELS or plans[model].runs:
            continue
        stage = plans[model]
        folder = stage_folder.locate(stage.other or run.folder, model, stage.inputs.digest)
        if folder is not None and not paths.is_checkpoint(folder / "model"):
            raise AstroError(
                f"{folder / 'model'}: {name} needs this model, which is not there any more; put it back, or remove "
                f"{folder} to make it again"
            )


def run_stage(run: RunContext, plan: StagePlan) -> None:
    """Run one stage, from what an earlier process has left of it, and write its manifest."""
    inputs = plan.inputs
    folder = run.folder / inputs.stage
    run_plan.adopt(run.folder, plan)
    distributed.assert_equal_across_processes(f"{inputs.stage}: the folder")
    run, sizes = _with_shard_size(run, folder)
    stage_folder.begin(folder, inputs.model_copy(update={"settings": inputs.settings | sizes}))
    start = time.monotonic()
    run.verifier.counts = VerdictCounts(folder / "verdicts-{}-of-{}.json".format(*run.shard))
    counts = FUNCTIONS[inputs.stage](run, inputs) or {}
    run.verifier.counts.save()
    if run.judge is not None:
        run.judge.unload()  # training needs the memory
    if run.shard[1] > 1:  # the run without --shard finishes the stage, once all shards are done
        return
    counts |= verdict_counts.summary(folder) if distributed.is_main_process() else {}
    stage_folder.finish(folder, inputs, time.monotonic() - start, **counts)


def _with_shard_size(run: RunContext, folder: epath.Path) -> tuple[RunContext, dict[str, int]]:
    """Let a stage that goes on keep the shard sizes with which it began.

    Returns:
      (the run with these sizes in its config, the sizes by key).
    """
    begun = stage_folder.read_inputs(folder)
    sizes = {k: v for k, v in (begun.settings if begun else {}).items() if k.endswith(".shard_size")}
    run, current = copy.copy(run), cfg.flatten(run.c)
    for key, size in sizes.items():
        if current[key] != size:
            log(f"{folder.name}: goes on with {key}={size}, with which it began")
            section = key.partition(".")[0]
            part = getattr(run.c, section).model_copy(update={"shard_size": size})
            run.c = run.c.model_copy(update={section: part})
    return run, sizes


def base(run: RunContext, inputs: Inputs) -> dict[str, int]:
    """Make the base model: copy it, fine-tune it (`base_sft`), or train it from scratch."""
    if run.c.model == "scratch":
        return _pretrain(run)
    path = paths.resolve(run.c.model, download=True)
    tokenizer = tokenizers.load(str(path), run.c.chat)
    if run.c.base_sft is not None:
        config, params = checkpoint.load(path, run.train_sharding)
        documents: Iterable[Example] = (
            _corpus(run, tokenizer, run.c.seed, run.c.corpus.documents)
            if stage_inputs.learns_corpus(run.c)
            else _worked_solutions(run, tokenizer)
        )
        folder = run.folder / "base"
        return sft.train(folder, run.c.base_sft, config, params, tokenizer, documents, run.train_sharding, run.c.seed)
    # Split as in training: over tp alone, as in sampling, each device would hold 1 / tp of the float32 parameters.
    config, params = checkpoint.load(path, run.train_sharding)
    checkpoint.save(run.folder / "base" / "model", config, params, tokenizer)
    return {}


def _worked_solutions(run: RunContext, tokenizer: Tokenizer) -> list[Example]:
    """Tokenize the problems of search and RL that have worked solutions, with the solutions."""
    pairs = {p.id: (p.prompt, solutions.worked_solution(p)) for use in ("search", "rl") for p in run.problems(use)}
    documents = [
        Example(tokenizer.prompt(prompt), tokenizer.encode_after(text)) for prompt, text in pairs.values() if text
    ]
    if not documents:
        raise AstroError("base_sft: no problem has a worked solution; give the file a field `solution`")
    return documents


def _pretrain(run: RunContext) -> dict[str, int]:
    """Train a Llama from random parameters on the Countdown corpus."""
    c, a = run.c, run.c.architecture
    tokenizer = countdown_tokenizer(run.game.max_value)
    config = LlamaConfig(
        vocab_size=len(tokenizer), d_model=a.d_model, d_ff=a.d_ff, n_layers=a.n_layers, n_heads=a.n_heads,
        n_kv_heads=a.n_kv_heads, head_dim=a.d_model // a.n_heads, max_positions=a.max_positions, tie_embeddings=True,
    )  # fmt: skip
    params = llama_params.init(jax.random.key(c.seed), config)
    documents = _corpus(run, tokenizer, c.seed, c.corpus.documents)
    return sft.train(run.folder / "base", c.pretrain, config, params, tokenizer, documents, run.train_sharding, c.seed)


def _corpus(run: RunContext, tokenizer: Tokenizer, seed: int, n: int) -> Iterator[Example]:
    """Tokenize n documents of the Countdown corpus. A document with a problem has the prompt of the problem.

    `base_sft` learns from whole problems. After attempts at problems of fewer numbers SmolLM2 ends its attempts early.
    """
    c, whole = run.c.corpus, stage_inputs.learns_corpus(run.c)
    pairs = countdown.corpus(run.game, seed, c.solved, c.drills, c.recall, whole)
    for prompt, response in islice(pairs, n):
        if prompt:
            yield Example(tokenizer.prompt(prompt), tokenizer.encode_after(response))
        else:
            yield Example((), tokenizer.encode(response))


def search(run: RunContext, inputs: Inputs) -> dict[str, Any]:
    """Build a search tree for each problem, with the base model."""
    return searching.run(
        run.folder / "search", run.problems("search"), run.c.search, run.policy("base"), run.verifier, inputs.digest,
        run.shard,
    )  # fmt: skip


def traces(run: RunContext, inputs: Inputs) -> dict[str, Any]:
    """Turn the trees into training examples, with a data card. Load a model only when it judges or writes."""
    c, folder = run.c, run.folder / "traces"
    trees = shards(stage_folder.follow(storage.absolute(c.trees)) if c.trees else run.folder_of("search"))
    writer = TraceWriter(run.policy("base"), run.verifier, run.prompts) if dataset.needs_model(c.traces) else None
    tokenizer = tokenizers.load(str(run.folder_of("base") / "model"), c.chat)
    counts = dataset.run(folder, trees, c.traces, c.seed, writer, tokenizer)
    distributed.assert_equal_across_processes("the traces", counts)
    origin = {"model": c.model, "seed": c.seed, "config": inputs.digest}
    card.write(folder, counts, trees, tokenizer, origin, run.problem_counts or None)
    return counts


def fine_tune(run: RunContext, inputs: Inputs) -> dict[str, int]:
    """Fine-tune the base model on traces: the stages "direct-sft" and "astro-sft"."""
    name = inputs.stage
    kind = name.removesuffix("-sft")
    config, params, tokenizer = run.load("base", run.train_sharding)
    records = storage.read_jsonl(run.folder_of("traces") / f"{kind}.jsonl")
    documents = [_trace_example(record, tokenizer, run.c.sft.loss_on) for record in records]
    if not documents:
        raise AstroError(
            f"{run.folder}: no trace was made: traces/counts.json has what each filter left; raise problems.search"
        )
    # Both kinds get the same documents of the base's corpus.
    documents += _corpus(run, tokenizer, run.c.seed + 1, round(run.c.traces.replay * len(documents)))
    return sft.train(run.folder / name, run.c.sft, config, params, tokenizer, documents, run.train_sharding, run.c.seed)


def _trace_example(record: dict[str, Any], tokenizer: Tokenizer, loss_on: data.LossOn) -> Example:
    """Tokenize a trace."""
    response, wrong = record["response"], []
    if loss_on == "correct-steps":
        spans = wrong_spans(record)
        starts = enumerate(tokenizer.starts_after(response))
        wrong = [i for i, start in starts if any(first <= start < end for first, end in spans)]
    return Example(tokenizer.prompt(record["prompt"]), tokenizer.encode_after(response), wrong)


def fine_tune_on_file(run: RunContext, inputs: Inputs) -> dict[str, int]:
    """Fine-tune the base model on the examples of a file: the stage "sft"."""
    config, params, tokenizer = run.load("base", run.train_sharding)
    documents = [Example(prompt, response) for prompt, response in examples.read(run.c.examples, tokenizer)]
    folder = run.folder / inputs.stage
    return sft.train(folder, run.c.sft, config, params, tokenizer, documents, run.train_sharding, run.c.seed)


def measure_difficulty(run: RunContext, inputs: Inputs) -> dict[str, Any]:
    """Measure how often a model solves the candidates for the prompts of RL, until enough of them have passed.

    The model is the base, or each SFT model that RL starts from (problems.difficulty_model).
    """
    p, counts = run.c.problems, {}
    candidates = run.draws.rl_candidates()
    for model in registry.difficulty_models(run.c.stages, p.difficulty_model):
        policy, store = run.policy(model), Shards(run.folder / "difficulty", model)
        limit = lengths.max_prompt_tokens(run.c, policy.engine.config)
        counts[model] = difficulty.measure(store, candidates, p, run.c.eval, policy, run.verifier, limit)
    return counts


def reinforce(run: RunContext, inputs: Inputs) -> dict[str, Any]:
    """Train a model by GRPO: the stages "direct-rl", "astro-rl" and "grpo"."""
    name = inputs.stage
    c, sharding = run.c.grpo, run.train_sharding
    config, params, tokenizer = run.load(STAGES[name].initial_model or "base", sharding)
    tx = make_optimizer(c, grpo.num_updates(c))
    like = abstract_state(config, tx, sharding)
    problems, counts = _rl_prompts(run, name, config, tokenizer)
    guard, held_out = CollapseGuard(name, c.guard, run.folder / name), None
    if c.eval_share:
        problems, others = hold_out(problems, c.eval_share, run.c.seed)
        counts |= {"held_out": len(others)}
        keep = -(-4 * c.save_steps // c.eval_steps)
        held_out = HeldOut(c, name, others, rewards.Rewarder(run.verifier, None, run.folder / name / "held-out", keep))
    engine = run.engine(config, run.c.rollout_sampler)
    opened = contextlib.closing(rewards.user_reward(run.c, c.reward, problems)) if c.reward else None
    with opened or contextlib.nullcontext() as user_reward:
        rewarder = rewards.Rewarder(
            run.verifier, user_reward, run.folder / name, 4 * c.save_steps, c.max_num_gen_batches
        )
        rollouts = RolloutLog(run.folder / name)
        trainer = grpo.GRPOTrainer(
            c, name, problems, engine, tokenizer, rewarder, tx, config, sharding,
            reference=_reference(run, name) if c.beta else None, log=rollouts, guard=guard,
            restarts=_restarts(run, name, config, tokenizer) if c.restart_rate else None, held_out=held_out,
        )  # fmt: skip
        state, step = loop.run(
            run.folder / name, name, place(new_state(params, tx), like), like, trainer.step, trainer.examples,
            c.max_steps, c, collapse_guard=guard, flush=rollouts.flush,
        )  # fmt: skip
    checkpoint.save(run.folder / name / "model", config, state.params, tokenizer)
    return counts | loop.model_step(c, step)


def _reference(run: RunContext, name: str) -> Params:
    """The reference model of the KL term: the model from which RL starts, sharded like the policy."""
    return run.load(STAGES[name].initial_model or "base", run.train_sharding, run.c.grpo.dtype)[1]


def _restarts(run: RunContext, name: str, config: LlamaConfig, tokenizer: Tokenizer) -> Restarts:
    """The beginnings of responses inside ASTRO's traces; of the Direct control, inside its own solutions."""
    kind = "direct" if name == "direct-rl" else "astro"
    traces = storage.read_jsonl(run.folder_of("traces") / f"{kind}.jsonl")
    return Restarts(run.c.grpo, traces, tokenizer, config.max_positions)


def _rl_prompts(
    run: RunContext, name: str, config: LlamaConfig, tokenizer: Tokenizer
) -> tuple[list[Problem], dict[str, int]]:
    """Return the prompts of an RL stage with their counts. Prompts that are too long are left out.

    Where difficulty was measured, the prompts are those of moderate difficulty.
    """
    p = run.c.problems
    if p.difficulty_samples:
        (model,) = registry.difficulty_models([name], p.difficulty_model)
        store = Shards(run.folder_of("difficulty"), model)
        return difficulty.select(store, run.draws.rl_candidates(), p, run.c.grpo.prompts_per_step)
    return lengths.drop_too_long(run.problems("rl"), tokenizer, lengths.max_prompt_tokens(run.c, config))


def evaluate(run: RunContext, inputs: Inputs) -> dict[str, Any]:
    """Evaluate one model on the held-out problems: the stage "eval/MODEL"."""
    name = inputs.stage.removeprefix("eval/")
    policy, folder = run.policy(name), run.folder / inputs.stage
    problems, counts = _eval_prompts(run, policy)
    return {"results": evaluation.run(folder, name, problems, run.c.eval, policy, run.verifier)} | counts


def vote(run: RunContext, inputs: Inputs) -> dict[str, Any]:
    """Take Direct's majority vote at ASTRO's number of tokens: the stage "eval/MODEL-vote"."""
    name = inputs.stage.removeprefix("eval/").removesuffix("-vote")
    direct, astro = (_results(run, parent)["mean_tokens"] for parent in inputs.parents)
    policy, k = run.policy(name), max(1, round(astro / direct))
    problems, counts = _eval_prompts(run, policy)
    return {"results": evaluation.majority_vote(name, problems, run.c.eval, policy, run.verifier, k)} | counts


def evaluate_on_suites(run: RunContext, inputs: Inputs) -> dict[str, Any]:
    """Evaluate one model on the suites of `eval.suites`: the stage "eval/MODEL-suites"."""
    name, folder = inputs.stage.removeprefix("eval/").removesuffix("-suites"), run.folder / inputs.stage
    policy = run.policy(name)
    settings = model_suites.model_settings(run.c, name, run.folder_of(name) / "model")
    training = model_suites.training_problems(run.draws)
    results = {}
    for suite in run.suites:
        result = suites.evaluate(folder / suite.name, suite, run.c.eval, policy, run.verifier, settings, training)
        model_suites.report_doubts(result)
        results[suite.name] = suites.headline(result)
    return {"results": results}


def _rates(run: RunContext, models: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
    """pass@1 of each problem by model: on the held-out problems and on each suite."""
    held_out = {name: evaluation.solved(run.folder_of(f"eval/{name}")) for name in models}
    folders = {name: run.folder_of(f"eval/{name}-suites") for name in models}
    return {"held-out": held_out} | {
        suite.name: {n: suites.solved(folder / suite.name, run.c.verify.report_rule) for n, folder in folders.items()}
        for suite in run.suites
    }


def _eval_prompts(run: RunContext, policy: Policy) -> tuple[list[Problem], dict[str, int]]:
    """Return the held-out problems with their counts. Prompts that leave no room for an answer are left out."""
    limit = lengths.max_prompt_tokens(run.c, policy.engine.config, "eval")
    return lengths.drop_too_long(run.problems("eval"), policy.tokenizer, limit, "eval")


def _results(run: RunContext, stage: str) -> dict[str, Any]:
    """The figures of a part of the evaluation, from its manifest."""
    return storage.read_json(run.folder_of(stage) / stage_folder.MANIFEST)["results"]


def write_report(run: RunContext, inputs: Inputs) -> None:
    """Write results.json (seed, time of all stages, figures of each model, comparisons) and report.html."""
    if not distributed.is_main_process():
        return
    stages = [name for name in stage_inputs.planned(run.c) if name != "report"]
    manifests = [storage.read_json(run.folder_of(name) / stage_folder.MANIFEST) for name in stages]
    wall = round(sum(m["wall_s"] for m in manifests), 1)
    models = {name: _results(run, f"eval/{name}") for name in registry.models_of(run.c.stages)}
    for name in models:
        if f"eval/{name}-vote" in stages:
            models[name]["maj"] = _results(run, f"eval/{name}-vote")
        if run.c.eval.suites:
            models[name]["suites"] = _results(run, f"eval/{name}-suites")
    rates = _rates(run, list(models))
    results = {
        "seed": run.c.seed, "wall_s": wall, "models": models,
        "differences": {name: comparison.paired_differences(of_models) for name, of_models in rates.items()},
        "difficulty": {name: comparison.by_difficulty(of_models) for name, of_models in rates.items()},
    }  # fmt: skip
    storage.write_json(run.folder / "results.json", results)
    report.write([run.folder], run.folder / "report.html")


FUNCTIONS: dict[str, Callable[[RunContext, Inputs], dict[str, Any] | None]] = {
    "base": base,
    "search": search,
    "traces": traces,
    "direct-sft": fine_tune,
    "astro-sft": fine_tune,
    "sft": fine_tune_on_file,
    "difficulty": measure_difficulty,
    "direct-rl": reinforce,
    "astro-rl": reinforce,
    "grpo": reinforce,
    **{
        name: {"vote": vote, "suites": evaluate_on_suites}.get(name.rpartition("-")[2], evaluate)
        for name in registry.EVALUATIONS
    },
    "report": write_report,
}
