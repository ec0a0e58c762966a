"""The SFT sets: ASTRO's examples, and the Direct control from the same trees with the same number of examples."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from etils import epath

from astro_jax import config as cfg
from astro_jax import storage
from astro_jax.search.tree import Tree
from astro_jax.storage import Json, Shards
from astro_jax.traces.clone import clone
from astro_jax.traces.linearize import sample, wrong_answers


def run(folder: epath.Path, trees: Shards, c: cfg.Traces, seed: int) -> dict[str, Any]:
    """Write `folder`/astro.jsonl, direct.jsonl and counts.json from a store of trees.

    Each record: problem_id, kind ("search" or "direct"), k, prompt, response, nodes, pieces.

    Returns:
      the table of counts.
    """
    astro, direct, valid, total = [], [], 0, 0
    for record in trees.read():
        tree = Tree.from_record(record)
        total += 1
        if not tree.terminals(correct=True):
            continue
        valid += 1
        rng = random.Random(f"{seed}/traces/{tree.problem.id}")
        mine = astro_examples(tree, c, rng)
        astro += mine
        direct += [_example(tree, 0, c, rng, reflect=False) for _ in mine]
    storage.write_jsonl(folder / "astro.jsonl", astro)
    storage.write_jsonl(folder / "direct.jsonl", direct)
    counts = {
        "trees": total,
        "valid trees": valid,
        "yield": round(valid / max(total, 1), 4),
        "ASTRO": _count(astro),
        "Direct": _count(direct),
    }
    storage.write_json(folder / "counts.json", counts)
    return counts


def astro_examples(tree: Tree, c: cfg.Traces, rng: random.Random) -> list[Json]:
    """The direct and the search solutions of one valid tree. k is drawn from 1..max_backtracks, as far as the tree has
    that many different wrong answers; a tree without any gives no search solutions."""
    ks = [0] * c.direct_examples
    most = min(c.max_backtracks, len(wrong_answers(tree)))
    if most:
        ks += [rng.randint(1, most) for _ in range(c.search_examples)]
    return [_example(tree, k, c, rng, reflect=True) for k in ks]


def _example(tree: Tree, k: int, c: cfg.Traces, rng: random.Random, reflect: bool) -> Json:
    sequence = sample(tree, k, rng)
    assert sequence is not None, "k is bounded by the wrong answers, and the tree is valid"
    pieces = clone(tree, sequence, c.min_value_reflect, reflect)
    return {
        "problem_id": tree.problem.id,
        "kind": "search" if k else "direct",
        "k": k,
        "prompt": tree.problem.prompt,
        "response": "".join(p.text for p in pieces),
        "nodes": sequence,
        "pieces": [{"node": p.node, "kind": p.kind, "text": p.text} for p in pieces],
    }


def _count(examples: Iterable[Json]) -> dict[str, Any]:
    examples = list(examples)
    search = [e for e in examples if e["kind"] == "search"]
    backtracks = sum(p["kind"] == "backtrack" for e in examples for p in e["pieces"])
    return {
        "examples": len(examples),
        "direct solutions": len(examples) - len(search),
        "search solutions": len(search),
        "mean k": round(sum(e["k"] for e in search) / max(len(search), 1), 3),
        "mean backtracks": round(backtracks / max(len(examples), 1), 3),
        "distinct": len({(e["problem_id"], e["response"]) for e in examples}),
    }
