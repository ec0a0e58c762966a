"""The difficulty of RL prompts, measured with a scripted engine."""

import json

import pytest
import scripted
from etils import epath
from scripted import EVAL, PROBLEMS

from astro_jax import config as cfg
from astro_jax import stage_inputs
from astro_jax.errors import AstroError
from astro_jax.evaluate import difficulty
from astro_jax.verify import Verifier


def test_prompts_are_filtered_by_their_measured_pass_rate(tmp_path):
    folder = epath.Path(tmp_path)

    def measure():
        return difficulty.run(folder, PROBLEMS, 4, EVAL, scripted.policy(), Verifier())

    counts = measure()
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    records = [json.loads(line) for name in sorted(before) for line in before[name].splitlines()]
    rates = {r["problem_id"]: r["right"] / r["n"] for r in records}
    assert set(rates) == {p.id for p in PROBLEMS} and 0 < sum(rates.values()) < len(PROBLEMS)
    values = list(rates.values())
    assert counts == {
        "problems": len(PROBLEMS), "never solved": values.count(0), "always solved": values.count(1)
    }  # fmt: skip
    (tmp_path / sorted(before)[1]).unlink()
    measure()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    moderate = [p for p in PROBLEMS if 0.25 <= rates[p.id] <= 0.75]
    easy, hard = sum(rate > 0.75 for rate in values), sum(rate < 0.25 for rate in values)
    kept, left_out = difficulty.filter_by_pass_rate(folder, PROBLEMS, 0.25, 0.75, len(moderate))
    assert kept == moderate and left_out == {"too easy": easy, "too hard": hard}
    with pytest.raises(
        AstroError, match=rf"{len(moderate)} of \d+ prompts .* takes grpo.prompts_per_step={len(moderate) + 1}; "
    ):
        difficulty.filter_by_pass_rate(folder, PROBLEMS, 0.25, 0.75, len(moderate) + 1)


def test_difficulty_is_a_stage_before_rl_only_if_the_config_asks_for_it():
    assert "difficulty" not in stage_inputs.planned(cfg.Config())
    stages = stage_inputs.planned(cfg.parse({"problems": {"difficulty_samples": 4}}))
    assert stages.index("difficulty") == stages.index("direct-rl") - 1
