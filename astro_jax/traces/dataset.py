"""The SFT sets: ASTRO's examples, and the Direct control with as many examples or tokens, from the same trees or from
independent samples."""

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
from astro_jax.traces import rewrite
from astro_jax.traces.author import Author
from astro_jax.traces.clone import clone
from astro_jax.traces.direct import best_of_n, by_turns, matched
from astro_jax.traces.linearize import backtracks, sample, wrong_answers
from astro_jax.traces.rewrite import Draft
from astro_jax.traces.self_evaluation import evaluate
from astro_jax.types import Problem


def needs_model(c: cfg.Traces) -> bool:
    """Whether the traces are judged, written or sampled by a model; else they come from templates alone."""
    return bool(c.self_evaluation or rewrite.kinds(c) or c.direct == "best-of-n")


def check(c: cfg.Traces, problems: Sequence[Problem]) -> None:
    """Refuse, before any search, what cannot be made of these problems."""
    if c.backtrack_weights and (len(c.backtrack_weights) != c.max_backtracks or not any(c.backtrack_weights)):
        raise AstroError(
            f"traces.backtrack_weights: a weight for each k from 1 to traces.max_backtracks={c.max_backtracks} is wanted, "
            f"not all of them 0; got {list(c.backtrack_weights)}"
        )
    if (c.self_evaluation or rewrite.kinds(c)) and any(p.task == "countdown" for p in problems):
        raise AstroError(
            "traces: Countdown's language has no words to judge or rewrite a solution in; set traces.clone=template, "
            "traces.phrases=fixed or none and traces.self_evaluation=0, or problems.path"
        )


def run(
    folder: epath.Path, trees: Shards, c: cfg.Traces, seed: int, author: Author | None = None,
    tokenizer: Tokenizer | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write `folder`/astro.jsonl, direct.jsonl and counts.json from a store of trees.

    Each record: problem_id, kind ("search" or "direct"), k, prompt, response, nodes, pieces; and where a model wrote
    it, `rewrites`: how many pieces it was asked for, how many were accepted, and rejections by reason.

    Args:
      author: the model, where a switch needs one; then each wave of trees is first a shard, `folder`/waves-*.jsonl, of
        what it gave: one record a tree with its examples and judgements. A kill loses the wave under way.
      tokenizer: counts tokens for `direct_match: tokens`.

    Returns:
      the table of counts.
    """
    made = [record for wave in _waves(folder, trees, c, seed, author) for record in wave]
    astro, of_each = [e for m in made for e in m["astro"]], [m["direct"] for m in made]
    pool = by_turns(of_each) if c.direct == "best-of-n" else list(itertools.chain(*of_each))
    direct = matched(pool, astro, c.direct_match, lambda example: length(example, tokenizer))
    storage.write_jsonl(folder / "astro.jsonl", astro)
    storage.write_jsonl(folder / "direct.jsonl", direct)
    counts = _counts(made, astro, direct)
    storage.write_json(folder / "counts.json", counts)
    return counts


def length(example: Json, tokenizer: Tokenizer | None) -> int:
    """An example's tokens as it is trained on: the prompt, the response and the end token."""
    assert tokenizer is not None, "tokens are counted with a tokenizer"
    return len(tokenizer.prompt(example["prompt"])) + len(tokenizer.encode_after(example["response"])) + 1


# ---- One wave of trees


def _waves(folder: epath.Path, trees: Shards, c: cfg.Traces, seed: int, author: Author | None) -> Iterator[list[Json]]:
    """What each wave of trees gives, one record a tree; what a model has a part in is kept as it is made."""
    stream, store = map(Tree.from_record, trees.read()), Shards(folder, "waves")
    if author is None:
        yield from (_make([tree], c, seed, None) for tree in stream)
        return
    with ProgressBar("traces", sum(1 for _ in trees.read()), "trees") as bar:
        for i in itertools.count():
            if not (wave := list(itertools.islice(stream, c.shard_size))):
                return
            if not store.has(i):

                def tell(share: float, trees: int = len(wave)) -> None:
                    bar.advance(0, in_progress=share * trees, of_the_wave_written=share)

                store.write(i, _make(wave, c, seed, author, tell))
            yield list(storage.read_jsonl(store.path(i)))
            bar.advance(len(wave))


def _make(
    trees: Sequence[Tree], c: cfg.Traces, seed: int, author: Author | None,
    tell: Callable[[float], None] = lambda share: None,
) -> list[Json]:  # fmt: skip
    """The record of each tree: {"problem_id", "terminals", "evaluation", "astro", "direct"}; `tell` as of rewrite."""
    evaluations: list[Json | None] = [None] * len(trees)
    if author is not None and c.self_evaluation:
        evaluations = [*evaluate(trees, c, author)]
    drafts = [_drafts(tree, c, seed, evaluation) for tree, evaluation in zip(trees, evaluations, strict=True)]
    rewrite.rewrite([d for each in drafts for kind in each for d in kind], c, author, tell)
    records = []
    for tree, evaluation, (astro, direct) in zip(trees, evaluations, drafts, strict=True):
        examples = {"astro": [_example(d) for d in astro], "direct": [_example(d) for d in direct]}
        records.append(
            {"problem_id": tree.problem.id, "terminals": _terminals(tree), "evaluation": evaluation, **examples}
        )
    if author is not None and c.direct == "best-of-n":
        problems = [tree.problem for tree in trees]
        for record, problem, texts in zip(records, problems, best_of_n(problems, c, author), strict=True):
            record["direct"] = [_sampled(problem, text) for text in texts]
    return records


def _drafts(tree: Tree, c: cfg.Traces, seed: int, evaluation: Json | None) -> tuple[list[Draft], list[Draft]]:
    """ASTRO's traces of one tree, and as many of Direct; not written out yet. A tree without a correct terminal, or
    without one that self-evaluation lets pass, gives none."""
    passed = None if evaluation is None else {t["node"] for t in evaluation["terminals"] if t["passed"]}
    if not (tree.terminals(correct=True) if passed is None else passed):
        return [], []
    rng = random.Random(f"{seed}/traces/{tree.problem.id}")

    def draft(kind: str, i: int, sequence: list[int], reflect: bool) -> Draft:
        pieces = clone(tree, sequence, c.min_value_reflect, reflect)
        return Draft(tree, ("traces", kind, tree.problem.id, i), sequence, pieces)

    drawn = (sample(tree, k, rng, c.leave_at, c.merge_at, passed) for k in _draw_ks(tree, c, rng))
    astro = [draft("astro", i, s, c.phrases != "none") for i, s in enumerate(drawn) if s is not None]
    plain = (sample(tree, 0, rng, passed=passed) for _ in astro if c.direct == "trees")
    direct = [draft("direct", i, s, False) for i, s in enumerate(plain) if s is not None]
    return astro, direct


def _draw_ks(tree: Tree, c: cfg.Traces, rng: random.Random) -> list[int]:
    """The k of each solution of one valid tree: 0 for the direct ones, for the search solutions drawn from
    1..max_backtracks, as far as the tree has that many different wrong answers; without any, there are none."""
    ks = [0] * c.direct_examples
    possible = range(1, min(c.max_backtracks, len(wrong_answers(tree))) + 1)
    weights = c.backtrack_weights[: len(possible)]
    if weights:
        return ks + (rng.choices(possible, weights, k=c.search_examples) if any(weights) else [])
    return ks + [rng.randint(1, possible[-1]) for _ in range(c.search_examples) if possible]


def _example(draft: Draft) -> Json:
    k = backtracks(draft.tree, draft.sequence)
    example = {
        "problem_id": draft.tree.problem.id,
        "kind": "search" if k else "direct",
        "k": k,
        "prompt": draft.tree.problem.prompt,
        "response": draft.text,
        "nodes": draft.sequence,
        "pieces": [dataclasses.asdict(p) for p in draft.done],
    }
    return example | ({"rewrites": dict(draft.counts)} if draft.counts else {})


def _sampled(problem: Problem, text: str) -> Json:
    """An example of a sample, which has no tree: its one piece is about no node."""
    return {
        "problem_id": problem.id, "kind": "direct", "k": 0, "prompt": problem.prompt, "response": text, "nodes": [],
        "pieces": [{"node": None, "kind": "step", "text": text}],
    }  # fmt: skip


# ---- Counts


def _terminals(tree: Tree) -> Json:
    wrong = tree.terminals(correct=False)
    unread = sum(node.answer is None for node in wrong)
    return {"correct": len(tree.terminals(correct=True)), "wrong": len(wrong) - unread, "without an answer": unread}


def _counts(made: Sequence[Json], astro: Sequence[Json], direct: Sequence[Json]) -> dict[str, Any]:
    valid = sum(bool(m["terminals"]["correct"]) for m in made)
    counts: dict[str, Any] = {
        "trees": len(made), "valid trees": valid, "yield": _share(valid, len(made)),
        "terminals": {key: sum(m["terminals"][key] for m in made) for key in ("correct", "wrong", "without an answer")},
    }  # fmt: skip
    if evaluations := [m["evaluation"]["terminals"] for m in made if m["evaluation"] is not None]:
        judged = [t for each in evaluations for t in each]
        passed = sum(t["passed"] for t in judged)
        counts["self-evaluation"] = {
            "judged": len(judged), "passed": passed, "share passed": _share(passed, len(judged)),
            **{f"judgements {key}": sum(t[key] for t in judged) for key in ("approved", "rejected", "unread")},
            "trees without any left": sum(bool(each) and not any(t["passed"] for t in each) for each in evaluations),
        }  # fmt: skip
    rewrites = sum((Counter(e.get("rewrites", {})) for m in made for e in (*m["astro"], *m["direct"])), Counter())
    if rewrites:
        pieces, accepted = rewrites.pop("pieces"), rewrites.pop("accepted", 0)
        rejected = {f"rejected: {reason}": n for reason, n in sorted(rewrites.items())}
        counts["rewrites"] = {"pieces": pieces, "accepted": accepted, "share accepted": _share(accepted, pieces)}
        counts["rewrites"] |= {"by the template": pieces - accepted} | rejected
    return counts | {"ASTRO": _count(astro), "Direct": _count(direct)}


def _share(part: int, whole: int) -> float:
    return round(part / max(whole, 1), 4)


def _count(examples: Sequence[Json]) -> dict[str, Any]:
    search = [e for e in examples if e["kind"] == "search"]
    jumps = sum(p["kind"] == "backtrack" for e in examples for p in e["pieces"])
    return {
        "examples": len(examples),
        "direct solutions": len(examples) - len(search),
        "search solutions": len(search),
        "mean k": round(sum(e["k"] for e in search) / max(len(search), 1), 3),
        "mean backtracks": round(jumps / max(len(examples), 1), 3),
        "distinct": len({(e["problem_id"], e["response"]) for e in examples}),
    }
