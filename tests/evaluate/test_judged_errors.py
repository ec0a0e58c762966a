"""Errors that a model names: votes and shares against counts by hand, resuming, labels, and what is refused."""

import json

import pytest
from etils import epath

from astro_jax.errors import AstroError
from astro_jax.evaluate import judged_errors, pooled, responses
from astro_jax.evaluate.behaviour import Behaviour
from astro_jax.evaluate.judged_errors import VERDICTS, elect

pytest.importorskip("pyarrow", reason="extra `hub` (pyarrow) is not installed")

# By response: the problem, the class by the rules (None: right), whether it is open, and what the judge says.
SUMS, READS, PLANS = (f"Hm.\n{verdict}" for verdict in VERDICTS)
ANSWERS = {
    "right": ("a", None, False, []),
    "5 = 6": ("a", "arithmetic", False, []),
    "six": ("a", "planning", True, [SUMS, SUMS, PLANS]),
    "tie": ("b", "copying", True, [SUMS, PLANS, "Hm."]),
    "unread": ("b", "copying", True, [None, "Error: unknown", "arithmetic"]),
    "no room": ("b", "planning", True, []),
}
BY_JUDGE = {"six": "arithmetic", "tie": "copying", "unread": "copying", "no room": "planning"}
LABELS = {"5 = 6": "arithmetic", "six": "arithmetic", "tie": "planning", "no room": "planning"}


def write(folder, **changes):
    """answers.parquet of ANSWERS."""
    rows = [
        {"problem_id": problem, "sample": i, "prompt": "?", "gold": "7", "response": text, "truncated": False,
         "error": error, "error_is_open": is_open} | changes
        for i, (text, (problem, error, is_open, _)) in enumerate(ANSWERS.items())
    ]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    responses.write_parquet(epath.Path(folder / "answers.parquet"), rows)
    return epath.Path(folder)


def sample(text):
    return {"problem_id": ANSWERS[text][0], "sample": list(ANSWERS).index(text)}


class Named:
    """A judge that names the errors of ANSWERS."""

    n = 3

    def __init__(self):
        self.texts = []

    def ask(self, responses, progress=None):
        assert all(r.problem.answer == "7" for r in responses)
        self.texts += [r.text for r in responses]
        return [ANSWERS[r.text][3] for r in responses]


def measure(folder, judge, labels=()):
    wrong, answers = judged_errors.read(folder)
    out = judged_errors.folder_of(folder, "org/judge")
    by_key = {tuple(sample(text).values()): LABELS[text] for text in labels}
    return judged_errors.measure(out, wrong, answers, judge, {"n": 3}, by_key)


def test_shares_and_agreement_equal_counts_by_hand(tmp_path):
    judge = Named()
    result = measure(write(tmp_path), judge, LABELS)
    assert judge.texts == list(BY_JUDGE)  # the rules have decided on the others
    assert (result["answers"], result["wrong"], result["open"]) == (6, 5, 4)
    assert result["unread"] == round(7 / 12, 4) and result["changed"] == 0.25
    rules, errors = result["by_rules"], result["errors"]
    assert (rules["arithmetic"], rules["copying"], rules["planning"]) == (0.1667, 0.3333, 0.3333)
    assert (errors["arithmetic"], errors["copying"], errors["planning"]) == (0.3333, 0.3333, 0.1667)
    # Means over the problems a ("5 = 6" and "six") and b ("tie" and "no room").
    agreement = {group: (x["labelled"], x["rules"]["mean"], x["judge"]["mean"])
                 for group, x in result["agreement"].items()}  # fmt: skip
    assert agreement == {"all": (4, 0.5, 0.75), "open": (3, 0.25, 0.75)}
    assert "agreement" not in measure(epath.Path(tmp_path), judge)
    assert measure(epath.Path(tmp_path), judge, ["5 = 6"])["agreement"]["open"] is None


@pytest.mark.parametrize(
    "votes, elected",
    [({}, "planning"), ({"copying": 1}, "copying"), ({"copying": 2, "arithmetic": 2, "planning": 1}, "planning"),
     ({"planning": 1, "arithmetic": 2}, "arithmetic")],
)  # fmt: skip
def test_the_rules_decide_where_no_class_has_most_votes(votes, elected):
    assert elect(votes, "planning") == elected


def test_a_stopped_judge_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(judged_errors.judged, "_SHARD", 2)
    folder = write(tmp_path)
    result = measure(folder, Named())
    (judged_errors.folder_of(folder, "org/judge") / "judgements-00001.jsonl").unlink()
    again = Named()
    assert measure(folder, again) == result and again.texts == ["unread", "no room"]


def test_pooled_figures_take_the_classes_of_the_judge(tmp_path):
    behaviour = {"tokens": 1, "forced_at": []} | Behaviour(0, 0, 0, 0, (False,), 0).row()
    folder = write(tmp_path, **behaviour)
    with pytest.raises(AstroError, match="errors not judged; run `astro errors org/judge"):
        pooled.read(folder, "org/judge")
    measure(folder, Named())
    by_rules, by_judge = (pooled.read(folder, judge) for judge in (None, "org/judge"))
    assert [a.error for a in by_rules["a"] + by_rules["b"]] == [error for _, error, *_ in ANSWERS.values()]
    assert [a.error for a in by_judge["a"] + by_judge["b"]] == [None, "arithmetic", *BY_JUDGE.values()]
    result = judged_errors.folder_of(folder, "org/judge") / "result.json"
    result.write_text(
        result.read_text()
        .replace('"settings":{', '"settings":{"limit":2,')
        .replace('"settings": {', '"settings": {"limit": 2,')
    )
    with pytest.raises(AstroError, match="to its end, without --limit"):
        pooled.read(folder, "org/judge")
    decided = write(tmp_path / "decided", **behaviour, error="planning", error_is_open=False)
    assert {a.error for a in pooled.read(decided, "org/judge")["a"]} == {"planning"}


@pytest.mark.parametrize(
    "changes, message",
    [({"error_is_open": False}, "5 answers are wrong, and the rules leave none"),
     ({"error": None}, "0 answers are wrong, and the rules leave none")],
)  # fmt: skip
def test_answers_without_an_open_class_are_refused(changes, message, tmp_path):
    with pytest.raises(AstroError, match=message):
        judged_errors.read(write(tmp_path, **changes))


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(AstroError, match="no answers to a suite; give runs/eval/MODEL/SUITE"):
        judged_errors.read(epath.Path(tmp_path))
    responses.write_parquet(epath.Path(tmp_path / "answers.parquet"), [{"problem_id": "a", "error": None}])
    with pytest.raises(AstroError, match="older version; run the same `astro eval` again"):
        judged_errors.read(epath.Path(tmp_path))


@pytest.mark.parametrize(
    "rows, message",
    [
        ([], "no labels; a line needs problem_id, sample and error"),
        ([sample("six") | {"error": "sums"}], "line 1: error is 'sums'; the classes are cut off, gave up, format"),
        ([sample("six") | {"error": "copying"}, sample("right") | {"error": "copying"}],
         "line 2: problem_id 'a', sample 0 is not among the wrong answers"),
    ],
)  # fmt: skip
def test_labels_that_do_not_fit_are_refused(rows, message, tmp_path):
    wrong, _ = judged_errors.read(write(tmp_path))
    path = epath.Path(tmp_path / "labels.jsonl")
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(AstroError, match=message):
        judged_errors.read_labels(path, wrong)
