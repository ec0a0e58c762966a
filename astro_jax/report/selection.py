"""Selects the trees that the page shows, and shortens their texts: by rule, never by hand, equal on every build."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

from astro_jax.report.run_folder import RunFolder, read_lines
from astro_jax.search.store import shards
from astro_jax.search.tree import node_columns, node_rows
from astro_jax.storage import Json

MAX_PROBLEMS = 200  # with a trace; the page shows one more that search did not solve
MAX_BYTES = 13_000_000  # of all packed trees of a page; the trees that come later are left out
MAX_TRACES = 4  # of one problem
MAX_NODES = 2000  # of one tree
MAX_SEGMENTS = 160  # of one trace
NODE_CHARS = 400
SEGMENT_CHARS = 1500
PROMPT_CHARS = 4000


def shorten(text: Any, max_chars: int) -> str:
    """The text, without its middle when it is longer than `max_chars`: the answer to a problem stands at the end."""
    text = str(text or "")
    if len(text) <= max_chars:
        return text
    tail = max_chars // 3
    return f"{text[: max_chars - tail]}\n[… {len(text) - max_chars:,} characters …]\n{text[-tail:]}"


def shuffled(ids: Iterable[Any]) -> list[Any]:
    """Problem ids in the order of their hashes: unrelated to the order of the file, and always the same."""
    return sorted(ids, key=lambda i: hashlib.sha256(str(i).encode()).hexdigest())


def problems(run: RunFolder, runs: int = 1) -> list[Json]:
    """Some trees with the traces made from them.

    Args:
      run: the run.
      runs: how many runs the page shows; they share MAX_BYTES.

    Returns:
      for each tree `id`, `label`, `traces` (how many), `solved` and `packed`: the rest (`_problem`, its nodes as
      columns) as JSON, compressed by gzip, in base64. The page unpacks a tree when a reader chooses it.
    """
    ranks: dict[Any, int] = {}  # of each problem, the lowest of its traces
    for i, trace in _read_traces(run):
        ranks[i] = min(ranks.get(i, 3), _rank(trace))
    selected = _select(ranks)
    traces: dict[Any, list[Json]] = {i: [] for i in selected}
    for i, trace in _read_traces(run):
        if i in traces:
            traces[i].append(trace)
    trees = _read_trees(run, selected)
    order = [i for i in selected if i in trees] + [i for i in trees if i not in selected]
    packed: list[Json] = []
    size = 0
    for i in order:
        packed.append(_pack(_problem(trees[i], traces.get(i, []))))
        size += len(packed[-1]["packed"])
        if size > MAX_BYTES // runs:
            return packed[:-1]
    return packed


def _pack(problem: Json) -> Json:
    head = {
        "id": problem["id"], "label": problem["label"], "traces": len(problem["traces"]),
        "solved": any(n["terminal"] and n["correct"] for n in problem["nodes"]),
    }  # fmt: skip
    columns = {key: [node[key] for node in problem["nodes"]] for key in problem["nodes"][0]}  # smaller than rows
    text = json.dumps(finite(problem | {"nodes": columns}), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return head | {"packed": base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()}


def finite(value: Any) -> Any:
    """The same value with NaN and infinities as None, since JSON has neither; lone surrogates become "?"."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {finite(str(k)): finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return value


def _read_traces(run: RunFolder) -> Iterator[tuple[Any, Json]]:
    """The traces of both sets with their problem ids, one at a time."""
    for kind in ("astro", "direct"):
        for trace in read_lines(run.folder("traces") / f"{kind}.jsonl"):
            if trace.get("problem_id") is not None:
                yield trace["problem_id"], trace


def _select(ranks: dict[Any, int]) -> list[Any]:
    """Problem ids, of different ranks: three of rank 0, two of rank 1, one of rank 2, then the rest."""
    ranked: list[list[Any]] = [[], [], [], []]
    for i in shuffled(ranks):
        ranked[ranks[i]].append(i)
    quotas = [3, 2, 1, 0]
    first = [i for ids, quota in zip(ranked, quotas, strict=True) for i in ids[:quota]]
    rest = [i for ids, quota in zip(ranked, quotas, strict=True) for i in ids[quota:]]
    return (first + rest)[:MAX_PROBLEMS]


def _rank(trace: Json) -> int:
    """0: backtracks to a step, not only to the start. 1: backtracks twice. 2: backtracks once. 3: never backtracks."""
    backtracks = [s for s in trace.get("segments", []) if s.get("kind") == "backtrack"]
    if any(s.get("node") for s in backtracks):
        return 0
    return 3 - min(len(backtracks), 2)


def _read_trees(run: RunFolder, selected: list[Any]) -> dict[Any, Json]:
    """The trees of the selected problems, and the first tree without a correct answer.

    Before traces are made, no problem is selected; then the first few trees with a correct answer are read. Reading
    stops as soon as all of these are read.
    """
    trees: dict[Any, Json] = {}
    unsolved: dict[Any, Json] = {}
    for tree in shards(run.folder("search")).read():
        i, columns = tree.get("problem", {}).get("id"), node_columns(tree)
        solved = any(columns.get("correct", ()))
        if i in selected or (not selected and solved and len(trees) < MAX_PROBLEMS):
            trees.setdefault(i, tree)
        elif not unsolved and not solved and len(columns["id"]) > 1:
            unsolved[i] = tree
        if unsolved and len(trees) == (len(selected) or MAX_PROBLEMS):
            break
    return trees | unsolved


def _problem(tree: Json, traces: list[Json]) -> Json:
    """One tree and its traces, as the page shows them."""
    search = [t for t in traces if t.get("kind") != "direct"]
    direct = [t for t in traces if t.get("kind") == "direct"]
    search.sort(key=lambda t: (_rank(t), -len(t.get("segments", []))))
    traces = search[: MAX_TRACES - 1] + direct[:1]
    problem, nodes = tree["problem"], node_rows(tree)
    return {
        "id": problem["id"],
        "prompt": shorten(problem.get("prompt"), PROMPT_CHARS),
        "label": label(problem),
        "answer": shorten(problem.get("answer"), 120) if problem.get("answer") is not None else None,
        "size": len(nodes),
        "nodes": prune(nodes, {s.get("node") for t in traces for s in t.get("segments", [])}),
        "traces": [_trace(trace) for trace in traces],
    }


def label(problem: Json) -> str:
    """A short name of a problem, for a button."""
    meta = problem.get("meta") or {}
    meta = json.loads(meta) if isinstance(meta, str) else meta
    if "target" in meta and "numbers" in meta:
        return f"{meta['target']} from {' '.join(str(n) for n in meta['numbers'])}"
    text = " ".join(str(problem.get("prompt", "")).split())
    return text if len(text) <= 60 else text[:59].rstrip() + "…"


def _trace(trace: Json) -> Json:
    segments = trace.get("segments", [])
    return {
        "kind": trace.get("kind"),
        "k": trace.get("k"),
        "omitted": max(0, len(segments) - MAX_SEGMENTS),
        "segments": [
            {"node": s.get("node"), "kind": s.get("kind"), "text": shorten(s.get("text"), SEGMENT_CHARS)}
            for s in segments[:MAX_SEGMENTS]
        ],
    }


def prune(nodes: list[Json], on_trace: set[Any]) -> list[Json]:
    """At most about MAX_NODES nodes: those of the traces, then the most visited, each with all its ancestors.

    The field "hidden" of a node counts the children that are left out.
    """
    by_id = {node["id"]: node for node in nodes}
    order = sorted(nodes, key=lambda n: (n["id"] not in on_trace, -(n.get("visits") or 0), n["id"]))
    kept: set[Any] = set()
    for node in order:
        if len(kept) >= MAX_NODES and node["id"] not in on_trace:
            break
        i = node["id"]
        while i in by_id and i not in kept:
            kept.add(i)
            i = by_id[i].get("parent")
    hidden: dict[Any, int] = {}
    for node in nodes:
        if node["id"] not in kept:
            hidden[node["parent"]] = hidden.get(node["parent"], 0) + 1
    return [_node(node, hidden.get(node["id"], 0)) for node in nodes if node["id"] in kept]


def _node(node: Json, hidden: int) -> Json:
    fields = {key: node.get(key) for key in ("id", "parent", "terminal", "correct", "answer", "visits")}
    fields |= {key: _round(node.get(key)) for key in ("value", "prior", "reward")}
    fields["answer"] = None if node.get("answer") in (None, "") else shorten(node["answer"], 80)
    return fields | {"text": shorten(node.get("text"), NODE_CHARS), "hidden": hidden}


def _round(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value
