"""Countdown: combine numbers, two at a time, until one number is left. The last number must be the target.

Example: make 29 from 11, 6 and 3. `6 * 3 = 18` leaves 11 and 18; `18 + 11 = 29` hits the target.

Modules:
  game: the rules, the moves, the brute-force solver, and the split into training and evaluation.
  language: how states and steps are written.
  problem_set: problems drawn from one side of the split.
  corpus: the documents that a base model learns the rules from.
  tokenizer: the tokenizer of the language. It imports transformers, so the package does not import it.

The import of the package is light: it imports neither JAX nor transformers.
"""

from astro_jax.countdown.corpus import corpus
from astro_jax.countdown.game import (
    Game,
    Move,
    Numbers,
    after,
    apply,
    is_held_out,
    moves,
    multisets,
    reachable,
    remove,
    targets,
)
from astro_jax.countdown.language import HIT, MISS, attempt_text, numbers_left, prompt, restate, step_text
from astro_jax.countdown.problem_set import make_problem, other_problems, problems

__all__ = [
    "HIT",
    "MISS",
    "Game",
    "Move",
    "Numbers",
    "after",
    "apply",
    "attempt_text",
    "corpus",
    "is_held_out",
    "make_problem",
    "moves",
    "multisets",
    "numbers_left",
    "other_problems",
    "problems",
    "prompt",
    "reachable",
    "remove",
    "restate",
    "step_text",
    "targets",
]
