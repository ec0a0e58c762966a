"""Why the search of a tree ends. The methods that search in several simulations or rounds share these rules."""

from __future__ import annotations

import math

from astro_jax import config as cfg
from astro_jax.search.tree import Tree


def token_budget(c: cfg.Search, num_problems: int) -> float:
    """The most tokens of one tree: `max_tree_tokens`, or the tree's equal share of `max_total_tokens` if it is less.

    Each tree gets the same share, whatever the other trees leave. So a tree depends neither on their order nor on the
    number of processes.
    """
    share = max(c.max_total_tokens // num_problems, 1) if c.max_total_tokens else math.inf
    return min(c.max_tree_tokens or math.inf, share)


def has_enough(tree: Tree, c: cfg.Search) -> bool:
    """Whether a tree holds the terminals of `early_stop`."""
    return c.early_stop is not None and tree.has_enough(c.early_stop.correct, c.early_stop.wrong)


def end_reason(tree: Tree, c: cfg.Search, budget: float) -> str:
    """Why a tree needs no further simulation or round; "" if it needs one.

    The rules are checked between simulations or rounds, so a tree may sample more tokens than its budget.

    Returns:
      "enough", "hopeless" or "trivial" (`early_stop`), "tokens" (the budget is spent), or "".
    """
    if has_enough(tree, c):
        return "enough"
    if c.early_stop is not None:
        right, wrong = bool(tree.terminals(True)), any(node.answer for node in tree.terminals(False))
        if not right and tree.rollouts >= (c.early_stop.hopeless or math.inf):
            return "hopeless"
        if right and not wrong and tree.rollouts >= (c.early_stop.trivial or math.inf):
            return "trivial"
    return "tokens" if tree.sampled_tokens >= budget else ""
