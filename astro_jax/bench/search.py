"""Benchmark a search: what a budget gives, and what it costs, on a synthetic policy (`synthetic.World`).

The search is the one of the search stage (`search.run.search`), with the same settings. It samples from a world with
known properties in the place of a model, so hundreds of trees take seconds.
"""

from __future__ import annotations

import collections
import dataclasses
import statistics
import time
from collections.abc import Iterator, Sequence

from astro_jax import config as cfg
from astro_jax.bench.synthetic import RIGHT, SyntheticVerifier, World
from astro_jax.errors import AstroError
from astro_jax.policy import Policy
from astro_jax.sampler import SamplingParams
from astro_jax.search.run import search
from astro_jax.search.tree import Tree
from astro_jax.storage import Json
from astro_jax.types import Problem

PLAIN_SAMPLES = 48  # independent samples of a problem, which say what a tree of the problem can hold
WRONG_ANSWERS = 2  # that a usable tree holds, as the paper's traces use up to 2
PAPER = {"method": "mcts", "num_proposals": 8, "num_rollouts": 16, "num_simulations": 32, "max_depth": 50,
         "keep_rollouts": True, "num_parallel_leaves": 1, "rollout_rounds": (), "lines_per_step": 1, "early_stop": None,
         "max_tree_tokens": None, "max_total_tokens": None}  # fmt: skip
_TREES_PER_CALL = 4  # a tree of the paper's budget with kept rollouts has up to 50,000 nodes


def compare(world: World, c: cfg.Search, trees: int, paper_trees: int) -> Json:
    """Measure a search, and the paper's budget with kept rollouts on the first problems of the same world.

    Args:
      world: the policy and its problems.
      c: the settings of the search.
      trees: the number of problems.
      paper_trees: the number of problems that are also searched with the paper's budget (section 2.2). 0: none.

    Returns:
      `world`, `search` (the settings that differ from the defaults), the figures of `measure`, and under `paper` those
      of the paper's budget, with `tokens_ratio`: tokens per usable tree of the paper's budget over those of the search.

    Raises:
      AstroError: for a property or a number out of range.
    """
    if trees < 1 or paper_trees < 0 or world.lines < 1 or world.distinct < 1:
        raise AstroError("bench: --trees, --lines and --distinct are at least 1, --paper-trees at least 0")
    if not (0 <= world.solve <= 1 and 0 <= world.unfinished <= 1):
        raise AstroError("bench: --solve and --unfinished are between 0 and 1")
    result: Json = {
        "world": dataclasses.asdict(world), "search": c.model_dump(exclude_defaults=True), **measure(world, c, trees)
    }  # fmt: skip
    if paper_trees:
        paper = c.model_copy(update=PAPER)
        result["paper"] = measure(world, paper, min(paper_trees, trees))
        ours, theirs = result["tokens_per_usable_tree"], result["paper"]["tokens_per_usable_tree"]
        result["paper"]["tokens_ratio"] = round(theirs / ours, 1) if ours and theirs else None
    return result


def measure(world: World, c: cfg.Search, trees: int) -> Json:
    """Search the first problems of a world, and count what the trees hold.

    A tree is usable when traces can be made from it: it holds a right terminal, and wrong terminals with two different
    answers. It may hold fewer where 48 independent samples of the problem hold fewer.

    Returns:
      trees; right: the share of trees with a right terminal; right_and_wrong: with a wrong one too; usable: the share
      of usable trees; solvable: the share of problems of which 48 samples hold a right one; usable_of_solvable: the
      share of usable trees among these; depth: the mean depth of the deepest node; nodes: a tree;
      tokens_per_tree and tokens_per_usable_tree (None if no tree is usable), in lines, since a line is one token;
      ended: trees by the reason of their end; seconds.
    """
    start = time.monotonic()
    policy = world.policy()
    rows = [_figures(tree, policy, world) for tree in in_parts(world.problems(trees), c, policy)]
    usable = sum(row.usable for row in rows)
    solvable = [row for row in rows if row.solvable]
    tokens = sum(row.tokens for row in rows)
    return {
        "trees": trees,
        "right": _share(row.right for row in rows),
        "right_and_wrong": _share(row.right and row.wrong > 0 for row in rows),
        "usable": _share(row.usable for row in rows),
        "solvable": len(solvable) / trees,
        "usable_of_solvable": _share(row.usable for row in solvable),
        "depth": round(statistics.mean(row.depth for row in rows), 2),
        "nodes": round(statistics.mean(row.nodes for row in rows), 1),
        "tokens_per_tree": round(tokens / trees, 1),
        "tokens_per_usable_tree": round(tokens / usable, 1) if usable else None,
        "ended": dict(sorted(collections.Counter(row.end_reason for row in rows).items())),
        "seconds": round(time.monotonic() - start, 2),
    }


def in_parts(problems: Sequence[Problem], c: cfg.Search, policy: Policy) -> Iterator[Tree]:
    """Search a few problems at a time, so that few trees are in memory. A tree does not depend on the others."""
    for i in range(0, len(problems), _TREES_PER_CALL):
        yield from search(problems[i : i + _TREES_PER_CALL], c, policy, SyntheticVerifier())


@dataclasses.dataclass(frozen=True)
class _Figures:
    """What one tree holds. The tree itself is not kept."""

    right: bool
    wrong: int
    usable: bool
    solvable: bool
    depth: int
    nodes: int
    tokens: int
    end_reason: str


def _figures(tree: Tree, policy: Policy, world: World) -> _Figures:
    right, wrong = bool(tree.terminals(True)), len({n.answer for n in tree.terminals(False) if n.answer})
    answers = _plain_answers(tree.problem, policy, world)
    needed = min(WRONG_ANSWERS, len(answers - {RIGHT})) if RIGHT in answers else WRONG_ANSWERS
    depths = [0]
    for node in tree.nodes[1:]:  # a parent stands before its children
        depths.append(depths[node.parent] + 1)
    return _Figures(
        right, wrong, right and wrong >= needed, RIGHT in answers, max(depths), len(tree.nodes), tree.sampled_tokens,
        tree.end_reason,
    )  # fmt: skip


def _plain_answers(problem: Problem, policy: Policy, world: World) -> set[str]:
    """The different answers of independent samples of a problem."""
    request = policy.request(problem.prompt, PLAIN_SAMPLES, "plain", problem.id)
    (completions,) = policy.generate([request], SamplingParams(world.lines))
    verdicts = SyntheticVerifier().judge([policy.response(problem, completion) for completion in completions])
    return {verdict.answer for verdict in verdicts if verdict.answer is not None}


def _share(outcomes: Iterator[bool]) -> float | None:
    """The share of true outcomes. None without any outcome."""
    counts = collections.Counter(outcomes)
    return round(counts[True] / counts.total(), 4) if counts else None
