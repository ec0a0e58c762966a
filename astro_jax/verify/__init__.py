"""Decide whether a response is correct. Model output is parsed, never evaluated as code.

Modules:
  verifier: the Verifier, which judges many responses in one call.
  tasks: the table from a problem's task to its verifier. A new kind of problem is one new row.
  countdown, numeric_answer: verifiers that run in this process.
  math, gym_scorer, second_grader: verifiers that use large libraries and run in worker processes.
  answer, number: the final answer of a response, and the reader of numbers.
  pool, worker, preload: the worker processes.
  user_reward, reward_function: a reward that the user wrote (`grpo.reward`), and its side in the workers.
  verdict_counts: the verdicts of a stage.
  stream: `astro verify`.
"""

from astro_jax.verify.tasks import verify
from astro_jax.verify.verifier import Verifier

__all__ = ["Verifier", "verify"]
