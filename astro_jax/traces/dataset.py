"""The traces stage: the SFT sets of ASTRO and of the Direct control, from a store of search trees."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from etils import epath

from astro_jax import config as cfg
from astro_jax import storage
from astro_jax.errors import AstroError
from astro_jax.llama.tokenizer import Tokenizer
from astro_jax.progress import ProgressBar
from astro_jax.search.tree import Tree
from astro_jax.storage import Json, Shards
from astro_jax.traces.counts import TraceCounts, count_terminals
from astro_jax.traces.direct import interleave, match_size, sample_solutions
from astro_jax.traces.linearize import Terminals, count_backtracks, linearize
from astro_jax.traces.pool import ExamplePool, PooledExample
from astro_jax.traces.procedure_cloning import clone
from astro_jax.traces.rewriting import PendingTrace, model_kinds, rewrite
from astro_jax.traces.self_evaluation import evaluate
from astro_jax.traces.writer import TraceWriter
from astro_jax.types import Problem


def needs_model(c: cfg.Traces) -> bool:
    """Whether a model judges, writes or samples the traces. Otherwise they come from templates alone."""
    return bool(c.self_evaluation or model_kinds(c) or c.direct == "best-of-n")


def check(c: cfg.Traces, problems: Sequence[Problem]) -> None:
    """Refuse, before any search, settings that these problems cannot have.

    Raises:
      AstroError: for weights that fit no k, and for Countdown with a switch that asks a model.
    """
    if c.backtrack_weights and (len(c.backtrack_weights) != c.max_backtracks or not any(c.backtrack_weights)):
        raise AstroError(
            f"traces.backtrack_weights: give one weight for each k from 1 to traces.max_backtracks={c.max_backtracks}, "
            f"not all of them 0; got {list(c.backtrack_weights)}"
        )
    if (c.self_evaluation or model_kinds(c)) and any(p.task == "countdown" for p in problems):
        raise AstroError(
            "traces: Countdown's language has no words to judge or rewrite a solution in; set traces.clone=template, "
            "traces.phrases=fixed or none and traces.self_evaluation=0, or problems.path"
        )


def run(
    folder: epath.Path, trees: Shards, c: cfg.Traces, seed: int, writer: TraceWriter | None = None,
    tokenizer: Tokenizer | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write `folder`/astro.jsonl, direct.jsonl and counts.json from a store of trees.

    Each record: problem_id, kind ("search" or "direct"), k, prompt, response, nodes, segments. A record that a model
    wrote also has `rewrites`: the segments that the model was asked for, those accepted, and rejections by reason.

    Args:
      writer: the model, where a switch needs one (`needs_model`). Its output is kept in `folder`/shards-*.jsonl, one
        record a tree and `shard_size` trees a file. A kill loses only the shard that is being written.
      tokenizer: counts tokens for `direct_match: tokens`.

    Returns:
      the counts.
    """
    counts = TraceCounts()

    def size(example: Json) -> int:
        return length(example, tokenizer) if c.direct_match == "tokens" else 1

    with ExamplePool() as pool:
        astro: list[PooledExample] = []
        direct_by_problem: list[list[PooledExample]] = []
        for record in _records(folder, trees, c, seed, writer):
            counts.add_tree(record)
            astro += [pool.add(example, size(example)) for example in record["astro"]]
            direct_by_problem.append([pool.add(example, size(example)) for example in record["direct"]])
        astro = _at_most(astro, c.max_examples, seed)
        if c.direct == "best-of-n":
            candidates = interleave(direct_by_problem)
        else:
            candidates = _at_most(list(itertools.chain(*direct_by_problem)), c.max_examples, seed)
        direct = match_size(candidates, sum(example.size for example in astro))
        storage.write_lines(folder / "astro.jsonl", pool.lines(astro))
        storage.write_lines(folder / "direct.jsonl", pool.lines(direct))
    figures = counts.figures(astro, direct)
    storage.write_json(folder / "counts.json", figures)
    return figures


def _at_most(examples: list[PooledExample], limit: int | None, seed: int) -> list[PooledExample]:
    """Choose examples at random, in their order: of ASTRO and of Direct, with as many, those of the same problems."""
    if limit is None or len(examples) <= limit:
        return examples
    chosen = random.Random(f"{seed}/traces/max_examples").sample(range(len(examples)), limit)
    return [examples[i] for i in sorted(chosen)]


def length(example: Json, tokenizer: Tokenizer | None) -> int:
    """The number of tokens that SFT trains on: the prompt, the response and the end token."""
    assert tokenizer is not None, "tokens are counted with a tokenizer"
    return len(tokenizer.prompt(example["prompt"])) + len(tokenizer.encode_after(example["response"])) + 1


# ---- The examples of each tree


def _records(folder: epath.Path, trees: Shards, c: cfg.Traces, seed: int, writer: TraceWriter | None) -> Iterator[Json]:
    """The record of each tree (`make_records`). Records that a model writes are kept in files."""
    stream, store = trees.read(), Shards(folder, "shards")
    with ProgressBar("traces", sum(1 for _ in trees.read_lines()), "trees") as bar:
        if writer is None:
            for record in stream:
                yield from make_records([Tree.from_record(record)], c, seed, None)
                bar.advance()
            return
        for i in itertools.count():
            if not (shard := list(itertools.islice(stream, c.shard_size))):
                return
            if not store.has(i):

                def report(share: float, trees: int = len(shard)) -> None:
                    bar.advance(0, share * trees, of_the_shard_written=share)

                store.write(i, make_records([Tree.from_record(r) for r in shard], c, seed, writer, report))
            yield from storage.read_jsonl(store.path(i))
            bar.advance(len(shard))


def make_records(
    trees: Sequence[Tree], c: cfg.Traces, seed: int, writer: TraceWriter | None,
    report: Callable[[float], None] = lambda share: None,
) -> list[Json]:  # fmt: skip
    """Make the examples of some trees.

    Args:
      report: as in `rewriting.rewrite`.

    Returns:
      for each tree {"problem_id", "terminals", "evaluation", "astro", "direct"}: its examples, the counts of its
      terminals and the record of self-evaluation (None without).
    """
    evaluations: list[Json | None] = [None] * len(trees)
    if writer is not None and c.self_evaluation:
        evaluations = [*evaluate(trees, c, writer)]
    terminals = [Terminals.of(tree) for tree in trees]
    pending = [_draw_traces(*inputs, c, seed) for inputs in zip(trees, terminals, evaluations, strict=True)]
    rewrite([trace for sets in pending for traces in sets for trace in traces], c, writer, report)
    records = []
    for tree, ends, evaluation, (astro, direct) in zip(trees, terminals, evaluations, pending, strict=True):
        examples = {"astro": [_example(trace) for trace in astro], "direct": [_example(trace) for trace in direct]}
        records.append(
            {"problem_id": tree.problem.id, "terminals": count_terminals(ends), "evaluation": evaluation, **examples}
        )
    if writer is not None and c.direct == "best-of-n":
        problems = [tree.problem for tree in trees]
        solutions = sample_solutions(problems, c, writer)
        for record, problem, texts in zip(records, problems, solutions, strict=True):
            record["direct"] = [_sampled_example(problem, text) for text in texts]
    return records


def _draw_traces(
    tree: Tree, terminals: Terminals, evaluation: Json | None, c: cfg.Traces, seed: int
) -> tuple[list[PendingTrace], list[PendingTrace]]:
    """Draw ASTRO's traces of one tree, and as many of the Direct control, from templates.

    A tree without a correct terminal, or without one that self-evaluation lets pass, gives none.
    """
    passed = None if evaluation is None else {t["node"] for t in evaluation["terminals"] if t["passed"]}
    if not (terminals.correct if passed is None else passed):
        return [], []
    rng = random.Random(f"{seed}/traces/{tree.problem.id}")

    def trace(kind: str, i: int, sequence: list[int], reflect: bool) -> PendingTrace:
        segments = clone(tree, sequence, c.min_value_reflect, reflect, c.reflect_confidence, c.max_reflect_rate)
        return PendingTrace(tree, ("traces", kind, tree.problem.id, i), sequence, segments)

    ks = _draw_ks(terminals, c, rng)
    sequences = (linearize(tree, k, rng, c.leave_at, c.merge_at, passed, terminals) for k in ks)
    astro = [trace("astro", i, s, c.phrases != "none") for i, s in enumerate(sequences) if s is not None]
    solutions = (linearize(tree, 0, rng, passed=passed, terminals=terminals) for _ in astro if c.direct == "trees")
    direct = [trace("direct", i, s, False) for i, s in enumerate(solutions) if s is not None]
    return astro, direct


def _draw_ks(terminals: Terminals, c: cfg.Traces, rng: random.Random) -> list[int]:
    """Draw the k of each solution of one valid tree.

    k is 0 for the direct solutions. For the search solutions k is drawn from 1 to `max_backtracks`, or to the number of
    different wrong answers in the tree if that is smaller. A tree without wrong answers has no search solutions.
    """
    ks = [0] * c.direct_examples
    possible = range(1, min(c.max_backtracks, len(terminals.wrong_answers)) + 1)
    weights = c.backtrack_weights[: len(possible)]
    if weights:
        return ks + (rng.choices(possible, weights, k=c.search_examples) if any(weights) else [])
    return ks + [rng.randint(1, possible[-1]) for _ in range(c.search_examples) if possible]


def _example(trace: PendingTrace) -> Json:
    k = count_backtracks(trace.tree, trace.sequence)
    example = {
        "problem_id": trace.tree.problem.id,
        "kind": "search" if k else "direct",
        "k": k,
        "prompt": trace.tree.problem.prompt,
        "response": trace.text,
        "nodes": trace.sequence,
        "segments": [dict(vars(segment)) for segment in trace.done],
    }
    return example | ({"rewrites": dict(trace.counts)} if trace.counts else {})


def _sampled_example(problem: Problem, text: str) -> Json:
    """The example of an independent sample, which has no tree. Its one segment is about no node."""
    return {
        "problem_id": problem.id, "kind": "direct", "k": 0, "prompt": problem.prompt, "response": text, "nodes": [],
        "segments": [{"node": None, "kind": "step", "text": text}],
    }  # fmt: skip
