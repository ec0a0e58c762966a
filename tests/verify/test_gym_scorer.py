"""reasoning-gym's scorers, in worker processes."""

import pytest

from astro_jax import config as cfg
from astro_jax.problems import gym
from astro_jax.types import Response
from astro_jax.verify import Verifier

pytest.importorskip("reasoning_gym")
TASKS = ("chain_sum", "simple_equations", "fraction_simplification", "gcd", "leg_counting", "polynomial_equations")


def test_answers_are_scored_in_workers():
    problems = [gym.read(task, 1, seed=1, params={})[0] for task in TASKS]
    verifier = Verifier(cfg.Verify(num_workers=1, timeout_seconds=20))
    right = [Response(p, f"I think <answer>1</answer>, no: <answer>{p.answer}</answer>", True) for p in problems]
    boxed = [Response(p, f"\\boxed{{{p.answer}}}", True) for p in problems[:1]]
    wrong = [Response(p, "<answer>-12345</answer>", True) for p in problems]
    truncated = [Response(p, f"<answer>{p.answer}</answer>", False) for p in problems[:1]]
    statuses = [v.status for v in verifier.judge(right + boxed + wrong + truncated)]
    verifier.close()
    assert statuses == ["correct"] * 7 + ["wrong"] * 6 + ["unparsed"]
