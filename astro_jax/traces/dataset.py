"""The traces stage: the SFT sets of ASTRO and of the Direct control, from a store of search trees."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections import Counter
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
from astro_jax.traces import direct as direct_control
from astro_jax.traces.linearize import count_backtracks, linearize, wrong_answers
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
    records = [record for shard in _shards(folder, trees, c, seed, writer) for record in shard]
    astro, direct_by_problem = [e for r in records for e in r["astro"]], [r["direct"] for r in records]
    astro = _at_most(astro, c.max_examples, seed)
    if c.direct == "best-of-n":
        pool = direct_control.interleave(direct_by_problem)
    else:
        pool = _at_most(list(itertools.chain(*direct_by_problem)), c.max_examples, seed)
    direct = direct_control.match_size(pool, astro, c.direct_match, lambda example: length(example, tokenizer))
    storage.write_jsonl(folder / "astro.jsonl", astro)
    storage.write_jsonl(folder / "direct.jsonl", direct)
    counts = _counts(records, astro, direct)
    storage.write_json(folder / "counts.json", counts)
    return counts


def _at_most(examples: list[Json], limit: int | None, seed: int) -> list[Json]:
    """Choose examples at random, in their order: of ASTRO and of Direct, with as many, those of the same problems."""
    if limit is None or len(examples) <= limit:
        return examples
    return [
        examples[i] for i in sorted(random.Random(f"{seed}/traces/max_examples").sample(range(len(examples)), limit))
    ]


def length(example: Json, tokenizer: Tokenizer | None) -> int:
    """The number of tokens that SFT trains on: the prompt, the response and the end token."""
    assert tokenizer is not None, "tokens are counted with a tokenizer"
    return len(tokenizer.prompt(example["prompt"])) + len(tokenizer.encode_after(example["response"])) + 1


# ---- The examples of one shard of trees


def _shards(
    folder: epath.Path, trees: Shards, c: cfg.Traces, seed: int, writer: TraceWriter | None
) -> Iterator[list[Json]]:
    """The records of each shard of trees. Records that a model writes are kept in files."""
    stream, store = map(Tree.from_record, trees.read()), Shards(folder, "shards")
    if writer is None:
        yield from (make_records([tree], c, seed, None) for tree in stream)
        return
    with ProgressBar("traces", sum(1 for _ in trees.read()), "trees") as bar:
        for i in itertools.count():
            if not (shard := list(itertools.islice(stream, c.shard_size))):
                return
            if not store.has(i):

                def report(share: float, trees: int = len(shard)) -> None:
                    bar.advance(0, share * trees, of_the_shard_written=share)

                store.write(i, make_records(shard, c, seed, writer, report))
            yield list(storage.read_jsonl(store.path(i)))
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
    pending = [_draw_traces(tree, c, seed, evaluation) for tree, evaluation in zip(trees, evaluations, strict=True)]
    rewrite([trace for sets in pending for traces in sets for trace in traces], c, writer, report)
    records = []
    for tree, evaluation, (astro, direct) in zip(trees, evaluations, pending, strict=True):
        examples = {"astro": [_example(trace) for trace in astro], "direct": [_example(trace) for trace in direct]}
        records.append(
            {"problem_id": tree.problem.id, "terminals": _terminals(tree), "evaluation": evaluation, **examples}
        )
    if writer is not None and c.direct == "best-of-n":
        problems = [tree.problem for tree in trees]
        solutions = direct_control.sample_solutions(problems, c, writer)
        for record, problem, texts in zip(records, problems, solutions, strict=True):
            record["direct"] = [_sampled_example(problem, text) for text in texts]
    return records


def _draw_traces(
    tree: Tree, c: cfg.Traces, seed: int, evaluation: Json | None
) -> tuple[list[PendingTrace], list[PendingTrace]]:
    """Draw ASTRO's traces of one tree, and as many of the Direct control, from templates.

    A tree without a correct terminal, or without one that self-evaluation lets pass, gives none.
    """
    passed = None if evaluation is None else {t["node"] for t in evaluation["terminals"] if t["passed"]}
    if not (tree.terminals(correct=True) if passed is None else passed):
        return [], []
    rng = random.Random(f"{seed}/traces/{tree.problem.id}")

    def trace(kind: str, i: int, sequence: list[int], reflect: bool) -> PendingTrace:
        segments = clone(tree, sequence, c.min_value_reflect, reflect, c.reflect_confidence, c.max_reflect_rate)
        return PendingTrace(tree, ("traces", kind, tree.problem.id, i), sequence, segments)

    sequences = (linearize(tree, k, rng, c.leave_at, c.merge_at, passed) for k in _draw_ks(tree, c, rng))
    astro = [trace("astro", i, s, c.phrases != "none") for i, s in enumerate(sequences) if s is not None]
    solutions = (linearize(tree, 0, rng, passed=passed) for _ in astro if c.direct == "trees")
    direct = [trace("direct", i, s, False) for i, s in enumerate(solutions) if s is not None]
    return astro, direct


def _draw_ks(tree: Tree, c: cfg.Traces, rng: random.Random) -> list[int]:
    """Draw the k of each solution of one valid tree.

    k is 0 for the direct solutions. For the search solutions k is drawn from 1 to `max_backtracks`, or to the number of
    different wrong answers in the tree if that is smaller. A tree without wrong answers has no search solutions.
    """
    ks = [0] * c.direct_examples
    possible = range(1, min(c.max_backtracks, len(wrong_answers(tree))) + 1)
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
        "segments": [dataclasses.asdict(segment) for segment in trace.done],
    }
    return example | ({"rewrites": dict(trace.counts)} if trace.counts else {})


def _sampled_example(problem: Problem, text: str) -> Json:
    """The example of an independent sample, which has no tree. Its one segment is about no node."""
    return {
        "problem_id": problem.id, "kind": "direct", "k": 0, "prompt": problem.prompt, "response": text, "nodes": [],
        "segments": [{"node": None, "kind": "step", "text": text}],
    }  # fmt: skip


# ---- Counts


def _terminals(tree: Tree) -> Json:
    wrong = tree.terminals(correct=False)
    unread = sum(node.answer is None for node in wrong)
    return {"correct": len(tree.terminals(correct=True)), "wrong": len(wrong) - unread, "without an answer": unread}


def _counts(records: Sequence[Json], astro: Sequence[Json], direct: Sequence[Json]) -> dict[str, Any]:
    valid = sum(bool(r["terminals"]["correct"]) for r in records)
    kinds = ("correct", "wrong", "without an answer")
    counts: dict[str, Any] = {
        "trees": len(records), "valid trees": valid, "yield": _share(valid, len(records)),
        "terminals": {kind: sum(r["terminals"][kind] for r in records) for kind in kinds},
    }  # fmt: skip
    if evaluations := [r["evaluation"]["terminals"] for r in records if r["evaluation"] is not None]:
        counts["self-evaluation"] = _evaluation_counts(evaluations)
    rewrites = sum((Counter(e.get("rewrites", {})) for r in records for e in (*r["astro"], *r["direct"])), Counter())
    if rewrites:
        segments, accepted = rewrites.pop("segments"), rewrites.pop("accepted", 0)
        rejected = {f"rejected: {reason}": n for reason, n in sorted(rewrites.items())}
        counts["rewrites"] = {"segments": segments, "accepted": accepted, "share accepted": _share(accepted, segments)}
        counts["rewrites"] |= {"by the template": segments - accepted} | rejected
    return counts | {"ASTRO": _example_counts(astro), "Direct": _example_counts(direct)}


def _evaluation_counts(evaluations: Sequence[Sequence[Json]]) -> Json:
    judged = [terminal for terminals in evaluations for terminal in terminals]
    passed = sum(terminal["passed"] for terminal in judged)
    return {
        "judged": len(judged), "passed": passed, "share passed": _share(passed, len(judged)),
        **{f"judgements {key}": sum(t[key] for t in judged) for key in ("approved", "rejected", "unread")},
        "trees without any left": sum(
            bool(terminals) and not any(t["passed"] for t in terminals) for terminals in evaluations
        ),
    }  # fmt: skip


def _share(count: int, total: int) -> float:
    return round(count / max(total, 1), 4)


def _example_counts(examples: Sequence[Json]) -> dict[str, Any]:
    search = [e for e in examples if e["kind"] == "search"]
    backtracks = sum(segment["kind"] == "backtrack" for e in examples for segment in e["segments"])
    return {
        "examples": len(examples),
        "direct solutions": len(examples) - len(search),
        "search solutions": len(search),
        "mean k": round(sum(e["k"] for e in search) / max(len(search), 1), 3),
        "mean backtracks": round(backtracks / max(len(examples), 1), 3),
        "distinct": len({(e["problem_id"], e["response"]) for e in examples}),
    }
