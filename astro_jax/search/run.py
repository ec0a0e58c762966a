"""The search stage: a tree for each of many problems.

At most `search.max_concurrent_trees` trees are active at once. When a tree ends, the next problem starts.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Sequence
from typing import Any

from etils import epath

from astro_jax import config as cfg
from astro_jax import sessions, storage, termination
from astro_jax.errors import AstroError
from astro_jax.policy import Policy
from astro_jax.progress import ProgressBar, log
from astro_jax.search import cost
from astro_jax.search.best_of_n import BestOfN
from astro_jax.search.cost import CostMeter
from astro_jax.search.mcts import MCTS
from astro_jax.search.rounds import RolloutRounds
from astro_jax.search.store import Shard, TreeStore, shards
from astro_jax.search.tree import Tree, node_columns
from astro_jax.types import Problem
from astro_jax.verify import Verifier

Searcher = MCTS | BestOfN | RolloutRounds
SAVE_SECONDS = 15.0  # at least, between two saves of the active trees. A kill costs the work since the last save.
SAVE_SHARE = 0.05  # of the time, at most, goes into saves: large trees are saved less often


def make_search(c: cfg.Search, policy: Policy, verifier: Verifier, num_problems: int) -> Searcher:
    """Make the search that `search.method` names."""
    if c.method == "best-of-n":
        return BestOfN(c, policy, verifier)
    if c.method == "rounds":
        return RolloutRounds(c, policy, verifier, num_problems)
    return MCTS(c, policy, verifier, num_problems)


def search(problems: Sequence[Problem], c: cfg.Search, policy: Policy, verifier: Verifier) -> list[Tree]:
    """Search all problems at the same time, in memory, and return one finished tree a problem."""
    searcher = make_search(c, policy, verifier, len(problems))
    trees = [searcher.init(problem) for problem in problems]
    while active := [tree for tree in trees if not tree.end_reason]:
        searcher.step(active)
    return trees


def run(
    folder: epath.Path,
    problems: Sequence[Problem],
    c: cfg.Search,
    policy: Policy,
    verifier: Verifier,
    digest: str = "",
    shard: Shard = (0, 1),
) -> dict[str, Any]:
    """Search the problems of one process into the tree store `folder`.

    A problem whose prompt leaves no room in the model's context is skipped, and its id is logged.

    Args:
      digest: the hash of the run's configuration, for `TreeStore`.
      shard: (i, n), the i-th of n processes that share the search.

    Returns:
      the counts of all trees in the folder (`count`).

    Raises:
      AstroError: when no problem fits the context, and as `TreeStore`.
    """
    searcher = make_search(c, policy, verifier, len(problems))
    fitting = [p for p in problems if searcher.sampler.fits(policy.tokenizer.prompt(p.prompt))]
    skipped = sorted({p.id for p in problems} - {p.id for p in fitting})
    if skipped:
        log(f"search: too long for the model's context, skipped: {', '.join(skipped)}")
    if not fitting:
        raise AstroError(
            "search: no problem fits the model's context; lower search.max_rollout_tokens or max_step_tokens"
        )
    with sessions.restoring():
        store = TreeStore(folder, fitting, c.shard_size, digest, shard)
    meter = CostMeter(folder / f"cost-{shard[0]}-of-{shard[1]}.json", searcher.sampler, store.torn)
    _search_all(store, meter, searcher)
    store.close()
    return count(folder, skipped)


def _search_all(store: TreeStore, meter: CostMeter, searcher: Searcher) -> None:
    """Search all trees of this process that have not ended."""
    c = searcher.c
    active, queue = store.active, collections.deque(store.waiting)
    ended = valid = 0
    simulations_before = sum(tree.simulations for tree in active)
    saved, pause = time.monotonic(), SAVE_SECONDS
    with ProgressBar("search", store.total, "problems", store.total - store.remaining) as bar:
        while active or queue:
            free = min(c.max_concurrent_trees - len(active), len(queue))
            active += [searcher.init(queue.popleft()) for _ in range(free)]
            nodes_before = sum(len(tree.nodes) for tree in active)
            searcher.step(active)
            meter.nodes += sum(len(tree.nodes) for tree in active) - nodes_before
            finished = [tree for tree in active if tree.end_reason]
            active = [tree for tree in active if not tree.end_reason]
            for tree in finished:
                store.add(tree)
            ended, valid = ended + len(finished), valid + sum(bool(tree.terminals(True)) for tree in finished)
            is_stopped = termination.is_due()
            start = time.monotonic()
            if is_stopped or start - saved >= pause:
                store.save(active)
                meter.save()
                saved = time.monotonic()
                pause = max(SAVE_SECONDS, (saved - start) / SAVE_SHARE)
            if is_stopped:
                termination.end("search")
            simulations = sum(tree.simulations for tree in active) - simulations_before
            bar.advance(
                len(finished), simulations / searcher.num_steps,
                **{"yield": valid / max(ended, 1)}, **cost.rates(meter.sums()),
            )  # fmt: skip
    if ended or meter.torn:
        meter.save()


def count(folder: epath.Path, skipped: Sequence[str] = ()) -> dict[str, Any]:
    """Count the trees of a store, and add up their cost over all processes.

    Args:
      folder: of the store.
      skipped: the problems that were skipped.

    Returns:
      trees, nodes, valid_trees (those with a correct terminal), and the share of valid trees, the yield; no_data, the
      other trees by end_reason, from which no trace can be made;
      sampled_tokens; unfinished, the nodes after which no proposed step was complete; ended, the trees by end_reason;
      the problems skipped; the trees torn; the seconds of all processes; and the rates of `cost.rates`.
    """
    trees = nodes = valid = tokens = unfinished = 0
    end_reasons: collections.Counter[str] = collections.Counter()
    no_data: collections.Counter[str] = collections.Counter()
    for record in shards(folder).read():
        correct = node_columns(record)["correct"]
        trees, nodes, valid = trees + 1, nodes + len(correct), valid + any(correct)
        tokens, unfinished = tokens + record["sampled_tokens"], unfinished + record["unfinished"]
        end_reasons[record["end_reason"]] += 1
        no_data[record["end_reason"]] += not any(correct)
    sums = cost.add_up(storage.read_json(path) for path in folder.glob("cost-*.json"))
    return {
        "trees": trees, "nodes": nodes, "valid_trees": valid, "yield": round(valid / max(trees, 1), 4),
        "no_data": {reason: n for reason, n in no_data.items() if n},
        "sampled_tokens": tokens, "unfinished": unfinished, "ended": dict(end_reasons), "skipped": list(skipped),
        "torn": int(sums["torn"]), "seconds": sums["seconds"],
    } | {name: round(value, 4) for name, value in cost.rates(sums).items()}  # fmt: skip
