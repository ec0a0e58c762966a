"""Problems that RL does not train on, and the share of them that the policy solves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from astro_jax import config as cfg
from astro_jax.policy import Policy
from astro_jax.sampler import SamplingParams
from astro_jax.train import data
from astro_jax.train.rewards import Rewarder
from astro_jax.types import Problem


def hold_out(problems: Sequence[Problem], share: float, seed: int) -> tuple[list[Problem], list[Problem]]:
    """Split problems at random.

    Args:
      share: of the problems that are held out, at least one.

    Returns:
      (the problems to train on, those held out), in order.

    Raises:
      AstroError: when no problem is left to train on.
    """
    held_out = data.held_out_prompts([p.id for p in problems], share, seed)
    return [p for p in problems if p.id not in held_out], [p for p in problems if p.id in held_out]


class HeldOut:
    """Measures the solve rate of held-out problems while RL runs.

    Args:
      c: the settings.
      name: the stage, which names the random draws. The draws are the same in each measurement, so that two steps
        differ by their policies alone.
      problems: at least one.
      rewarder: judges the answers, and records its verdicts for a replay after a kill. It is of these measurements
        alone, and has no function of the user.
    """

    def __init__(self, c: cfg.Grpo, name: str, problems: Sequence[Problem], rewarder: Rewarder):
        self.c, self.name, self.problems, self.rewarder = c, name, problems, rewarder

    def is_due(self, step: int) -> bool:
        """Return whether the policy is measured after a step, from 1."""
        return step % self.c.eval_steps == 0 or step == self.c.max_steps

    def measure(self, policy: Policy, step: int) -> dict[str, float]:
        """Answer each problem once at temperature 1 and once greedily.

        Args:
          step: from 1.

        Returns:
          `eval_solve_rate`, which is pass@1, `eval_solve_rate_greedy`, and `eval_mean_backtracks` at temperature 1.
        """
        requests = [policy.request(p.prompt, 1, "held out", self.name, p.id) for p in self.problems]
        answers = []
        for temperature in (1.0, 0.0):
            groups = policy.generate(requests, SamplingParams(self.c.max_completion_length, temperature))
            answers.append([(policy.response(p, s), s) for p, (s,) in zip(self.problems, groups, strict=True)])
        measurement = -(-step // self.c.eval_steps)
        sampled, greedy = ([j.verdict for j in js] for js in self.rewarder.judge(measurement, answers))
        return {
            "eval_solve_rate": float(np.mean([v.correct for v in sampled])),
            "eval_solve_rate_greedy": float(np.mean([v.correct for v in greedy])),
            "eval_mean_backtracks": float(np.mean([v.backtracks for v in sampled])),
        }
