"""Completions of RL: `astro show --rollouts`, and the choice for the page."""

import json

import pytest

from astro_jax.cli import main
from astro_jax.errors import AstroError
from astro_jax.report import rollout_texts, run_data, run_folder


def group(step, problem="p", text="1 + 2 = 3", **completion):
    completion = {"text": text, "status": "correct", "reward": 1.0, "advantage": 0.5, "tokens": 4, "stopped": True,
                  "backtracks": 0} | completion  # fmt: skip
    return {"step": step, "problem": problem, "prompt": "1 2 to 3", "beginning": "", "completions": [completion]}


@pytest.fixture
def run(tmp_path):
    def write(*groups):
        (tmp_path / "astro-rl").mkdir(exist_ok=True)
        (tmp_path / "astro-rl/rollouts.jsonl").write_text("".join(json.dumps(g) + "\n" for g in groups))
        return tmp_path

    return write


def test_show_prints_the_completions_of_a_step(run, capsys):
    folder = run(group(1), group(2, "a"), group(2, "b", "[bold]no", status="wrong", reward=None, stopped=False))
    assert main(["show", str(folder), "--rollouts", "astro-rl"]) == 0
    out = capsys.readouterr().out
    assert "step 2  a" in out and "step 1" not in out and "[bold]no" in out
    assert "wrong, reward none, advantage +0.50, 4 tokens, 0 backtracks, cut off" in out
    assert main(["show", str(folder), "--rollouts", "astro-rl", "--step", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"groups": [group(1)]}


def test_missing_step_or_stage_is_one_clear_line(run, capsys):
    folder = run(group(3), group(4))
    with pytest.raises(AstroError, match="no step 9; the steps are 3 to 4"):
        rollout_texts.read(folder, "astro-rl", 9)
    with pytest.raises(AstroError, match=r"direct-rl/rollouts\.jsonl: no completions"):
        rollout_texts.read(folder, "direct-rl")
    assert main(["show", str(folder), "--step", "1"]) == 2 and "--rollouts astro-rl" in capsys.readouterr().err


def test_page_has_steps_from_the_first_to_the_last_and_short_texts(run):
    folder = run(*(group(i, text="x" * 9000) for i in range(1, 101)), group(100, "second"))
    chosen = run_data(run_folder.read(folder))["rollouts"]["astro-rl"]
    assert len(chosen) == rollout_texts.MAX_STEPS and (chosen[0]["step"], chosen[-1]["step"]) == (1, 100)
    assert chosen[-1]["problem"] == "p" and "5,000 characters" in chosen[0]["completions"][0]["text"]
