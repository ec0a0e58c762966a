"""The rates of a judge against counts by hand, and the answers that it reads."""

import json

import numpy as np
import pytest
from etils import epath

from astro_jax.errors import AstroError
from astro_jax.evaluate import judged
from astro_jax.evaluate.judged import JudgedAnswer
from astro_jax.judge import Judgements
from astro_jax.storage import Shards
from astro_jax.types import Problem, Response


def answer(problem, text, correct, error=None):
    return JudgedAnswer(Response(Problem(problem, "?", ""), text, True), correct, error)


# Two problems: of the first two wrong answers pass and fail, of the second all pass.
ANSWERS = [
    answer("a", "1", True), answer("a", "2", False, "planning"), answer("a", "3", False, "arithmetic"),
    answer("b", "4", False, "planning"), answer("b", "5", True),
]  # fmt: skip
APPROVED, REJECTED = np.asarray([2, 2, 1, 2, 0]), np.asarray([0, 0, 1, 0, 1])


def test_rates_are_means_over_problems():
    rates = judged.rates(ANSWERS, APPROVED, REJECTED, 2)
    assert (rates["answers"], rates["right"], rates["unread"]) == (5, 2, 0.1)
    half, whole = rates["by_share"]
    assert (half["share"], half["fooled"]["mean"], half["missed"]["mean"], half["agreement"]) == (0.5, 1.0, 0.5, 0.2)
    assert (whole["share"], whole["fooled"]["mean"], whole["missed"]["mean"], whole["agreement"]) == (1, 0.75, 0.5, 0.4)
    assert rates["fooled_by_error"] == {"arithmetic": 0.0, "planning": 1.0}
    right = judged.rates(ANSWERS[:1], APPROVED[:1], REJECTED[:1], 2)
    assert right["by_share"][0]["fooled"] is None and right["by_share"][0]["missed"]["mean"] == 0


class Asked:
    """A judge that approves the answers of ANSWERS as APPROVED says."""

    n = 2

    def __init__(self):
        self.texts = []

    def judge(self, responses, progress=None):
        self.texts += [r.text for r in responses]
        rows = {a.response.text: Judgements(2, int(x), int(y), []) for a, x, y in zip(ANSWERS, APPROVED, REJECTED)}  # noqa: B905
        return [rows[r.text] for r in responses]


def test_a_stopped_judge_goes_on_and_other_answers_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(judged, "_SHARD", 2)
    whole, out = Asked(), epath.Path(tmp_path / "out")
    result = judged.measure(out, ANSWERS, whole, {"n": 2})
    (out / "judgements-00001.jsonl").unlink()
    again = Asked()
    assert judged.measure(out, ANSWERS, again, {"n": 2}) == result and again.texts == ["3", "4"]
    assert json.loads((out / "result.json").read_text()) == result
    with pytest.raises(AstroError, match="other settings"):
        judged.measure(out, ANSWERS[:4], Asked(), {"n": 2})


def test_the_answers_of_a_run_are_read(tmp_path):
    sampled = {"text": "so 3", "correct": False, "truncated": True}
    Shards(epath.Path(tmp_path), "answers").write(0, [{"problem_id": "p", "prompt": "1 + 1?", "sampled": sampled}])
    (read,) = judged.read(epath.Path(tmp_path), "lenient")
    assert read == JudgedAnswer(Response(Problem("p", "1 + 1?", ""), "so 3", False), False)
    with pytest.raises(AstroError, match="no answers of an evaluation; give runs/eval/MODEL/SUITE"):
        judged.read(epath.Path(tmp_path / "none"), "lenient")
