"""The search of many problems: a few trees in flight, and the next problem begins as soon as a tree has ended."""

from __future__ import annotations

import collections
import time
from collections.abc import Sequence
from typing import Any

from etils import epath

from astro_jax import config as cfg
from astro_jax import storage
from astro_jax.errors import AstroError
from astro_jax.policy import Policy
from astro_jax.progress import ProgressBar, log
from astro_jax.search import meter as meters
from astro_jax.search.mcts import Driver
from astro_jax.search.meter import Meter
from astro_jax.search.store import Part, Store
from astro_jax.types import Problem
from astro_jax.verify import Verifier

SAVE_SECONDS = 15.0  # between two looks at the trees under way: what a kill may cost


def run(
    folder: epath.Path,
    problems: Sequence[Problem],
    c: cfg.Search,
    policy: Policy,
    verifier: Verifier,
    digest: str = "",
    part: Part = (0, 1),
) -> dict[str, Any]:
    """Search the problems of one part, `c.max_concurrent_trees` at a time, into the tree store `folder` (store.Store).

    A problem whose prompt leaves no room in the model's context is named and skipped.

    Returns:
      counts of all that the folder holds (_counts).

    Raises:
      AstroError: when no problem fits the context, and as the Store.
    """
    driver = Driver(c, policy, verifier, len(problems))
    short = [p for p in problems if driver.fits(policy.tokenizer.prompt(p.prompt))]
    skipped = sorted({p.id for p in problems} - {p.id for p in short})
    if skipped:
        log(f"search: too long for the model's context, skipped: {', '.join(skipped)}")
    if not short:
        raise AstroError(
            "search: no problem fits the model's context; lower search.max_rollout_tokens or max_step_tokens"
        )
    store = Store(folder, short, c.shard_size, digest, part)
    meter = Meter(folder / f"cost-{part[0]}-of-{part[1]}.json", driver)
    meter.torn = store.torn
    _grow(store, meter, driver)
    store.close()
    return _counts(folder, store, skipped)


def _grow(store: Store, meter: Meter, driver: Driver) -> None:
    """Grow all trees that have not ended."""
    flight, queue = store.under_way, collections.deque(store.waiting)
    ended = valid = 0
    begun = sum(tree.iterations for tree in flight)
    saved = time.monotonic()
    with ProgressBar("search", store.total, "problems", store.total - store.left) as bar:
        while flight or queue:
            flight += [
                driver.plant(queue.popleft())
                for _ in range(min(driver.c.max_concurrent_trees - len(flight), len(queue)))
            ]
            meter.nodes -= sum(len(tree.nodes) for tree in flight)
            driver.grow(flight)
            meter.nodes += sum(len(tree.nodes) for tree in flight)
            done = [tree for tree in flight if tree.ended]
            flight = [tree for tree in flight if not tree.ended]
            for tree in done:
                store.end(tree)
            ended, valid = ended + len(done), valid + sum(bool(tree.terminals(True)) for tree in done)
            if time.monotonic() - saved >= SAVE_SECONDS:
                store.save(flight)
                meter.save()
                saved = time.monotonic()
            bar.advance(
                len(done), (sum(tree.iterations for tree in flight) - begun) / driver.c.num_simulations,
                **{"yield": valid / max(ended, 1)}, **meters.shares(meter.here()),
            )  # fmt: skip
    if ended or meter.torn:
        meter.save()


def _counts(folder: epath.Path, store: Store, skipped: Sequence[str]) -> dict[str, Any]:
    """What the folder holds, and what it has cost all processes that wrote to it.

    Returns:
      trees, nodes, valid_trees (those with a correct terminal) and their share, the yield; sampled_tokens; unfinished,
      nodes after which the model ended no step; why trees ended; problems skipped; records torn; and meter.shares, with
      the seconds that they are shares of.
    """
    trees = nodes = valid = tokens = unfinished = 0
    why: collections.Counter[str] = collections.Counter()
    for tree in store.read():
        trees, nodes, valid = trees + 1, nodes + len(tree.nodes), valid + bool(tree.terminals(True))
        tokens, unfinished = tokens + tree.sampled, unfinished + tree.unfinished
        why[tree.ended] += 1
    cost = meters.total(storage.read_json(path) for path in folder.glob("cost-*.json"))
    return {
        "trees": trees, "nodes": nodes, "valid_trees": valid, "yield": round(valid / max(trees, 1), 4),
        "sampled_tokens": tokens, "unfinished": unfinished, "ended": dict(why), "skipped": list(skipped),
        "torn": int(cost["torn"]), "seconds": cost["seconds"],
    } | {name: round(value, 4) for name, value in meters.shares(cost).items()}  # fmt: skip
