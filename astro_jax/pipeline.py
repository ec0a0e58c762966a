"""The stages of a run, in the order of the paper. Each reads files of the run's folder and writes new ones:

    problems -> search -> traces -> SFT -> GRPO -> evaluation -> report

A stage is finished when its folder has a manifest. A stopped run skips finished stages, and continues the
current stage from its last shard, saved trees or checkpoint.
`astro_jax.stages` declares names, order and parents; this module has the function of each stage.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import jax
from etils import epath

from astro_jax import config as cfg
from astro_jax import countdown, distributed, report, storage
from astro_jax import mesh as meshes
from astro_jax import stages as registry
from astro_jax.countdown.tokenizer import countdown_tokenizer
from astro_jax.errors import AstroError
from astro_jax.evaluate import difficulty
from astro_jax.evaluate import run as evaluation
from astro_jax.llama import checkpoint, paths
from astro_jax.llama import params as llama_params
from astro_jax.llama import tokenizer as tokenizers
from astro_jax.llama.config import LlamaConfig
from astro_jax.llama.params import Params
from astro_jax.llama.tokenizer import Tokenizer
from astro_jax.problems import solutions
from astro_jax.progress import log
from astro_jax.run_context import RunContext
from astro_jax.search import run as searching
from astro_jax.stages import STAGES
from astro_jax.storage import Shards
from astro_jax.traces import card, dataset
from astro_jax.traces.writer import TraceWriter
from astro_jax.train import data, grpo, loop, sft
from astro_jax.train.state import abstract_state, make_optimizer, new_state, place
from astro_jax.types import Problem
from astro_jax.verify import verdict_counts
from astro_jax.verify.verdict_counts import VerdictCounts


def execute(c: cfg.Config, command: str = "", only: Sequence[str] = (), shard: tuple[int, int] = (0, 1)) -> RunContext:
    """Run the stages of a config in order. Skip finished stages.

    Args:
      c: the configuration.
      command: the command line, for config.json.
      only: the stages to run; empty for all.
      shard: (i, n): search only the i-th of n shards of the problems, and leave the stage unfinished.

    Raises:
      AstroError: for an unknown stage, a config that cannot run (before anything is written), or a missing parent.
    """
    names = only or planned(c)
    for name in names:
        if name not in STAGES:
            raise AstroError(f"stages: no stage {name!r}; there are {', '.join(STAGES)}")
    run = RunContext(c, command, shard)
    for use, users in (("search", {"search"}), ("rl", {"difficulty", "direct-rl", "astro-rl"}), ("eval", {"eval"})):
        if users & set(names):
            run.problems(use)  # raises now, not after hours, when there are too few
    if "traces" in names:
        dataset.check(c.traces, run.problems("search"))
    with contextlib.closing(run.verifier):
        for name in names:
            run_stage(run, name)
            distributed.assert_equal_across_processes(f"{name} is done")
            log(f"{name}{f' {shard[0]}/{shard[1]}' * (shard[1] > 1)} done")
    return run


def run_stage(run: RunContext, name: str) -> None:
    """Run one stage, unless it is finished, and write its manifest.

    Raises:
      AstroError: when a parent stage has not finished.
    """
    folder = run.folder / name
    if storage.is_finished(folder):
        return
    parents = registry.parents(name, run.c.stages, bool(run.c.problems.difficulty_samples))
    for parent in parents:
        if not storage.is_finished(run.folder / parent):
            command = STAGES[parent].command
            raise AstroError(
                f"{run.folder}: {name} needs {parent}, which has not finished; run `astro {command}` first"
            )
    run.claim_folder()
    start = time.monotonic()
    run.verifier.counts = VerdictCounts(folder / "verdicts-{}-of-{}.json".format(*run.shard))
    counts = FUNCTIONS[name](run) or {}
    run.verifier.counts.save()
    if run.shard[1] > 1:  # the run without --shard finishes the stage, once all shards are done
        return
    counts |= verdict_counts.summary(folder) if distributed.is_main_process() else {}
    storage.write_manifest(folder, name, run.digest, list(parents), time.monotonic() - start, **counts)


def planned(c: cfg.Config) -> tuple[str, ...]:
    """Return the stages of a whole run, with `difficulty` where problems.difficulty_samples asks for it."""
    return registry.with_difficulty(c.stages) if c.problems.difficulty_samples else c.stages


def base(run: RunContext) -> dict[str, int]:
    """Make the base model: copy it, fine-tune it on worked solutions, or train it from scratch."""
    if run.c.model == "scratch":
        return _pretrain(run)
    source = paths.resolve(run.c.model)
    tokenizer = tokenizers.load(str(source), run.c.chat)
    if run.c.base_sft is not None:
        config, params = checkpoint.load(source, run.train_sharding)
        documents = _worked_solutions(run, tokenizer)
        folder = run.folder / "base"
        return train_sft(folder, run.c.base_sft, config, params, tokenizer, documents, run.train_sharding, run.c.seed)
    config, params = checkpoint.load(source, run.decode_sharding)
    checkpoint.save(run.folder / "base" / "model", config, params, tokenizer)
    return {}


def _worked_solutions(run: RunContext, tokenizer: Tokenizer) -> list[list[int]]:
    """Tokenize the problems of search and RL that have worked solutions, with the solutions."""
    pairs = {p.id: (p.prompt, solutions.worked_solution(p)) for use in ("search", "rl") for p in run.problems(use)}
    documents = [tokenizer.prompt(prompt) + tokenizer.encode_after(text) for prompt, text in pairs.values() if text]
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
    documents = map(tokenizer.encode, islice(_corpus(run, c.seed), c.corpus.documents))
    return train_sft(run.folder / "base", c.pretrain, config, params, tokenizer, documents, run.train_sharding, c.seed)


def _corpus(run: RunContext, seed: int) -> Iterator[str]:
    """Yield documents of the Countdown corpus, without end."""
    c = run.c.corpus
    pairs = countdown.corpus(run.game, seed, c.solved, c.drills, c.recall)
    return (prompt + response for prompt, response in pairs)


def search(run: RunContext) -> dict[str, Any]:
    """Build a search tree for each problem, with the base model."""
    return searching.run(
        run.folder / "search", run.problems("search"), run.c.search, run.policy("base"), run.verifier, run.digest,
        run.shard,
    )  # fmt: skip


def traces(run: RunContext) -> dict[str, Any]:
    """Turn the trees into training examples, with a data card. Load a model only when it judges or writes."""
    c, folder, trees = run.c, run.folder / "traces", Shards(run.folder / "search", "trees")
    writer = TraceWriter(run.policy("base"), run.verifier, run.prompts) if dataset.needs_model(c.traces) else None
    tokenizer = tokenizers.load(str(run.folder / "base" / "model"), c.chat)
    counts = dataset.run(folder, trees, c.traces, c.seed, writer, tokenizer)
    distributed.assert_equal_across_processes("the traces", counts)
    origin = {"model": c.model, "seed": c.seed, "config": run.digest}
    card.write(folder, counts, trees, tokenizer, origin, run.problem_counts or None)
    return counts


def fine_tune(run: RunContext, name: str) -> dict[str, int]:
    """Fine-tune the base model on traces. `name` is "direct-sft" or "astro-sft"."""
    kind = name.removesuffix("-sft")
    config, params, tokenizer = run.load("base", run.train_sharding)
    examples = list(storage.read_jsonl(run.folder / "traces" / f"{kind}.jsonl"))
    if not examples:
        raise AstroError(
            f"{run.folder}: no trace was made: traces/counts.json has what each filter left; raise problems.search"
        )
    # Both kinds get the same documents of the base's corpus.
    replay = islice(_corpus(run, run.c.seed + 1), round(run.c.traces.replay * len(examples)))
    documents = [tokenizer.prompt(e["prompt"]) + tokenizer.encode_after(e["response"]) for e in examples]
    documents += map(tokenizer.encode, replay)
    return train_sft(run.folder / name, run.c.sft, config, params, tokenizer, documents, run.train_sharding, run.c.seed)


def train_sft(
    folder: epath.Path, c: cfg.Sft, config: LlamaConfig, params: Params, tokenizer: Tokenizer,
    texts: Iterable[list[int]], sharding: meshes.Sharding, seed: int,
) -> dict[str, int]:  # fmt: skip
    """Train on tokenized texts, and write checkpoints, metrics.jsonl and the model to `folder`.

    Args:
      texts: token ids of each text; an end token is appended to each.
      seed: of the order of the texts.

    Returns:
      Counts for the manifest: examples, how many were dropped and truncated, and optimizer steps.

    Raises:
      AstroError: when the loss or the gradient is not finite, in several steps in a row or after the last.
    """
    ended = ([*tokens, tokenizer.eos_token_id] for tokens in texts)
    # Wrapped documents are split at the ends of rows: none is too long.
    longest = c.max_length if c.packing_strategy == "first-fit" else sys.maxsize
    documents, counts = data.make_documents(ended, longest, c.overlong)
    for verb, n in counts.items():
        if n:
            log(f"{folder.name}: {n} examples have more than max_length={c.max_length} tokens and are {verb}")
    batches = data.packed_batches(documents, c.batch_size, c.max_length, seed, c.num_train_epochs, c.packing_strategy)
    steps = sum(1 for _ in batches)
    tx = make_optimizer(c, steps)
    like = abstract_state(config, tx, sharding)
    with contextlib.closing(sft.SFTTrainer(c, batches, tx, config, sharding)) as trainer:
        state = loop.run(
            folder, folder.name, place(new_state(params, tx), like), like, trainer.step, trainer.examples, steps,
            c.save_steps, c.max_skipped_steps, trainer.iterator,
        )  # fmt: skip
        if not trainer.is_finite(state.params):
            raise AstroError(
                f"{folder.name}: the loss of the trained model is not finite, so it is not saved; lower learning_rate"
            )
    checkpoint.save(folder / "model", config, state.params, tokenizer)
    return {"examples": len(documents) + counts["dropped"]} | counts | {"steps": steps}


def measure_difficulty(run: RunContext) -> dict[str, Any]:
    """Measure how often the base model solves each RL prompt."""
    p = run.c.problems
    if not p.difficulty_samples:
        raise AstroError("difficulty: set problems.difficulty_samples, the answers to each prompt")
    args = (p.difficulty_samples, run.c.eval, run.policy("base"), run.verifier)
    return difficulty.run(run.folder / "difficulty", run.problems("rl"), *args)


def reinforce(run: RunContext, name: str) -> dict[str, Any]:
    """Train an SFT model by GRPO. `name` is "direct-rl" or "astro-rl"."""
    c, sharding = run.c.grpo, run.train_sharding
    config, params, tokenizer = run.load(STAGES[name].initial_model or "base", sharding)
    tx = make_optimizer(c, c.max_steps * c.steps_per_generation)
    like = abstract_state(config, tx, sharding)
    problems, counts = _rl_prompts(run)
    trainer = grpo.GRPOTrainer(c, name, problems, run.engine(config), tokenizer, run.verifier, tx, config, sharding)
    state = loop.run(
        run.folder / name, name, place(new_state(params, tx), like), like, trainer.step, trainer.examples, c.max_steps,
        c.save_steps, c.max_skipped_steps,
    )  # fmt: skip
    checkpoint.save(run.folder / name / "model", config, state.params, tokenizer)
    return counts


def _rl_prompts(run: RunContext) -> tuple[list[Problem], dict[str, int]]:
    """Return the prompts of RL, moderately hard ones only where difficulty was measured, and their counts."""
    p, problems, left_out = run.c.problems, run.problems("rl"), dict[str, int]()
    if p.difficulty_samples:
        limits = (*p.rl_pass_rate, run.c.grpo.prompts_per_step)
        problems, left_out = difficulty.filter_by_pass_rate(run.folder / "difficulty", problems, *limits)
    return problems, {"prompts": len(problems)} | left_out


def evaluate(run: RunContext) -> None:
    """Evaluate all models on the held-out problems, and Direct's majority vote at ASTRO's number of tokens."""
    folder, c, problems = run.folder / "eval", run.c.eval, run.problems("eval")
    entries: dict[str, Any] = {}
    for name in registry.models_of(run.c.stages):
        entries[name] = evaluation.run(folder, name, problems, c, run.policy(name), run.verifier)
    for direct, astro in (("direct-sft", "astro-sft"), ("direct-rl", "astro-rl")):
        if direct in entries and astro in entries:
            k = max(1, round(entries[astro]["mean_tokens"] / entries[direct]["mean_tokens"]))
            entries[direct]["maj"] = evaluation.majority_vote(direct, problems, c, run.policy(direct), run.verifier, k)
    storage.write_json(folder / "models.json", entries)


def write_report(run: RunContext) -> None:
    """Write results.json (seed, time of all stages, figures of each model) and report.html."""
    if not distributed.is_main_process():
        return
    manifests = [storage.read_json(run.folder / s / "manifest.json") for s in planned(run.c) if s != "report"]
    wall = round(sum(m["wall_s"] for m in manifests), 1)
    models = storage.read_json(run.folder / "eval" / "models.json")
    storage.write_json(run.folder / "results.json", {"seed": run.c.seed, "wall_s": wall, "models": models})
    report.write(run.folder)


FUNCTIONS: dict[str, Callable[[RunContext], dict[str, Any] | None]] = {
    "base": base,
    "search": search,
    "traces": traces,
    "direct-sft": functools.partial(fine_tune, name="direct-sft"),
    "astro-sft": functools.partial(fine_tune, name="astro-sft"),
    "difficulty": measure_difficulty,
    "direct-rl": functools.partial(reinforce, name="direct-rl"),
    "astro-rl": functools.partial(reinforce, name="astro-rl"),
    "eval": evaluate,
    "report": write_report,
}
