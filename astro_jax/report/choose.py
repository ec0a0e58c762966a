"""Which problems the page shows, and how much of their text: chosen by rule, never by hand, the same on every build."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from astro_jax.report.run import MODELS, Json, Run, lines
from astro_jax.storage import Shards

PROBLEMS = 6  # with a trace; one more that search did not solve
TRACES_A_PROBLEM = 4
MAX_NODES = 220  # of one tree
MAX_PIECES = 160  # of one trace
NODE_CHARS = 400
PIECE_CHARS = 1500
ANSWER_CHARS = 4000
HELD_OUT = {"astro": 8, "both": 5, "neither": 6, "direct": 5}  # how many of each outcome after RL


def clip(text: Any, most: int) -> str:
    """The text, its middle cut out when it is longer than `most`: a problem's answer stands at the end."""
    text = str(text or "")
    if len(text) <= most:
        return text
    tail = most // 3
    return f"{text[: most - tail]}\n[… {len(text) - most:,} characters …]\n{text[-tail:]}"


def shuffled(ids: Iterable[Any]) -> list[Any]:
    """An order of problems that has nothing to do with the file's, and is always the same."""
    return sorted(ids, key=lambda i: hashlib.sha256(str(i).encode()).hexdigest())


def problems(run: Run) -> list[Json]:
    """A few trees with the traces made from them: [{"id", "prompt", "label", "nodes", "traces"}]."""
    by_id: dict[Any, list[Json]] = {}
    for kind in ("astro", "direct"):
        for trace in lines(run.path / "traces" / f"{kind}.jsonl"):
            if trace.get("problem_id") is not None:
                by_id.setdefault(trace["problem_id"], []).append(trace)
    chosen = _pick(by_id)
    found = _find_trees(run, chosen)
    shown = [_problem(found[i], by_id[i]) for i in chosen if i in found]
    return shown + [_problem(tree, []) for i, tree in found.items() if i not in chosen]


def _pick(by_id: dict[Any, list[Json]]) -> list[Any]:
    """Problem ids, most telling first, with different kinds of search among them."""
    pools: list[list[Any]] = [[], [], [], []]
    for i in shuffled(by_id):
        pools[min((_rank(trace) for trace in by_id[i]), default=3)].append(i)
    quota = [3, 2, 1, 0]
    chosen = [i for pool, most in zip(pools, quota, strict=True) for i in pool[:most]]
    spare = [i for pool, most in zip(pools, quota, strict=True) for i in pool[most:]]
    return (chosen + spare)[:PROBLEMS]


def _rank(trace: Json) -> int:
    """0: backtracks to a step, not only to the start; 1: backtracks twice; 2: backtracks once; 3: not at all."""
    backs = [piece for piece in trace.get("pieces", []) if piece.get("kind") == "backtrack"]
    if any(piece.get("node") for piece in backs):
        return 0
    return 3 - min(len(backs), 2)


def _find_trees(run: Run, chosen: list[Any]) -> dict[Any, Json]:
    """The trees of the chosen problems and the first tree without a right answer; reads no further than it must.

    Before traces are made nothing is chosen: then these are the first few trees with a right answer.
    """
    found: dict[Any, Json] = {}
    unsolved: dict[Any, Json] = {}
    for tree in Shards(run.path / "search", "trees").read():
        i, nodes = tree.get("problem", {}).get("id"), tree.get("nodes", [])
        solved = any(node.get("terminal") and node.get("correct") for node in nodes)
        if i in chosen or (not chosen and solved and len(found) < PROBLEMS):
            found.setdefault(i, tree)
        elif not unsolved and not solved and len(nodes) > 1:
            unsolved[i] = tree
        if unsolved and len(found) == (len(chosen) or PROBLEMS):
            break
    return found | unsolved


def _problem(tree: Json, traces: list[Json]) -> Json:
    """What the page keeps of one tree and its traces."""
    search = [t for t in traces if t.get("kind") != "direct"]
    direct = [t for t in traces if t.get("kind") == "direct"]
    search.sort(key=lambda t: (_rank(t), -len(t.get("pieces", []))))
    traces = search[: TRACES_A_PROBLEM - 1] + direct[:1]
    problem = tree["problem"]
    return {
        "id": problem["id"],
        "prompt": clip(problem.get("prompt"), ANSWER_CHARS),
        "label": label(problem),
        "answer": clip(problem.get("answer"), 120) if problem.get("answer") is not None else None,
        "size": len(tree["nodes"]),
        "nodes": _prune(tree["nodes"], {p.get("node") for t in traces for p in t.get("pieces", [])}),
        "traces": [_trace(trace) for trace in traces],
    }


def label(problem: Json) -> str:
    """A short name of a problem for a button."""
    meta = problem.get("meta") or {}
    meta = json.loads(meta) if isinstance(meta, str) else meta
    if "target" in meta and "numbers" in meta:
        return f"{meta['target']} from {' '.join(str(n) for n in meta['numbers'])}"
    text = " ".join(str(problem.get("prompt", "")).split())
    return text if len(text) <= 60 else text[:59].rstrip() + "…"


def _trace(trace: Json) -> Json:
    pieces = trace.get("pieces", [])
    return {
        "kind": trace.get("kind"),
        "k": trace.get("k"),
        "cut": max(0, len(pieces) - MAX_PIECES),
        "pieces": [
            {"node": p.get("node"), "kind": p.get("kind"), "text": clip(p.get("text"), PIECE_CHARS)}
            for p in pieces[:MAX_PIECES]
        ],
    }


def _prune(nodes: list[Json], on_trace: set[Any]) -> list[Json]:
    """At most about MAX_NODES nodes: those of the traces, then the most visited, each with all its ancestors.

    A node whose children were left out says how many ("hidden").
    """
    by_id = {node["id"]: node for node in nodes}
    order = sorted(nodes, key=lambda n: (n["id"] not in on_trace, -(n.get("visits") or 0), n["id"]))
    keep: set[Any] = set()
    for node in order:
        if len(keep) >= MAX_NODES and node["id"] not in on_trace:
            break
        i = node["id"]
        while i in by_id and i not in keep:
            keep.add(i)
            i = by_id[i].get("parent")
    hidden: dict[Any, int] = {}
    for node in nodes:
        if node["id"] not in keep:
            hidden[node["parent"]] = hidden.get(node["parent"], 0) + 1
    return [_node(node, hidden.get(node["id"], 0)) for node in nodes if node["id"] in keep]


def _node(node: Json, hidden: int) -> Json:
    small = {key: node.get(key) for key in ("id", "parent", "terminal", "correct", "answer", "visits")}
    small |= {key: _round(node.get(key)) for key in ("value", "prior", "reward")}
    small["answer"] = None if node.get("answer") in (None, "") else clip(node["answer"], 80)
    return small | {"text": clip(node.get("text"), NODE_CHARS), "hidden": hidden}


def _round(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def held_out(run: Run) -> Json:
    """Answers of the models to the same held-out problems, with the count of each outcome after RL.

    {"models": [names], "counts": {outcome: n}, "problems": [{"id", "prompt", "outcome", "answers": {name: answer}}]}.
    The outcome says who solved it with the sampled answer: "astro" (only), "direct" (only), "both" or "neither"; it
    comes from the RL models when both were evaluated, else from the SFT models, else it is None.
    """
    answers = {name: {row.get("problem_id"): row for row in Shards(run.path / "eval", name).read()} for name in MODELS}
    answers = {name: rows for name, rows in answers.items() if rows}
    stage = next((s for s in ("rl", "sft") if f"astro-{s}" in answers and f"direct-{s}" in answers), None)
    ids = shuffled(set.intersection(*(set(rows) for rows in answers.values()))) if answers else []
    outcomes = {i: _outcome(answers, stage, i) for i in ids}
    counts = {name: sum(o == name for o in outcomes.values()) for name in HELD_OUT} if stage else {}
    chosen = [i for name, most in HELD_OUT.items() for i in [i for i in ids if outcomes[i] == name][:most]]
    chosen = chosen or ids[: sum(HELD_OUT.values())]
    return {
        "models": list(answers),
        "stage": stage,
        "counts": counts,
        "problems": [
            {
                "id": i,
                "prompt": clip(next(iter(answers.values()))[i].get("prompt"), ANSWER_CHARS),
                "outcome": outcomes[i],
                "answers": {name: _answers(rows[i]) for name, rows in answers.items()},
            }
            for i in chosen
        ],
    }


def _outcome(answers: dict[str, dict[Any, Json]], stage: str | None, i: Any) -> str | None:
    if stage is None:
        return None
    astro, direct = (
        bool((answers[f"{f}-{stage}"][i].get("sampled") or {}).get("correct")) for f in ("astro", "direct")
    )
    return {(True, True): "both", (True, False): "astro", (False, True): "direct"}.get((astro, direct), "neither")


def _answers(row: Json) -> Json:
    kept = {how: row[how] for how in ("sampled", "greedy") if isinstance(row.get(how), dict)}
    return {how: answer | {"text": clip(answer.get("text"), ANSWER_CHARS)} for how, answer in kept.items()}
