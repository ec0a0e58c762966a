"""Suites with a scripted model: figures against counts by hand, resuming, limits of tokens, two models, the export."""

import contextlib
import json
import types

import numpy as np
import pytest
from etils import epath
from helpers import chat_tokenizer, tiny_config

from astro_jax import config as cfg
from astro_jax.errors import AstroError, TransientError
from astro_jax.evaluate import judged, lm_eval, model_suites, responses, suites
from astro_jax.policy import Policy
from astro_jax.problems import suites as problem_suites
from astro_jax.sampler import Completion
from astro_jax.types import Problem
from astro_jax.verify import Verifier

pytest.importorskip("pyarrow", reason="extra `hub` (pyarrow) is not installed")

PROMPT = "{problem} Box it."
# By problem: level, gold answer, and the text of each of four answers. "|" at the end: cut off, without an end token.
SCRIPT = {
    "What is 1 + 1?": (1, "2", ["\\boxed{2}", "The answer is 2.", "So $x = 2$.", "\\boxed{3}"]),
    "What is 1/2?": (1, "\\frac{1}{2}", ["\\boxed{0.5}", "\\boxed{1/2}", "\\boxed{7}", "\\boxed{2}"]),
    "What is 2 + 2?": (2, "4", ["\\boxed{4}|", "I do not know.", "\\boxed{5}", "\\boxed{5}"]),
}
N = 4
SETTINGS = {
    "model": "scripted",
    "seed": 0,
    "dtype": "float32",
    "chat": {"template": False, "system": None},
    "versions": {},
}


class Scripted:
    """An engine that answers the problems of SCRIPT.

    Attributes:
      asked: the ids of the problems of all requests.
    """

    config = tiny_config(max_positions=400)

    def __init__(self, script):
        self.script, self.asked = script, []

    def generate(
        self, params, requests, sampling, *, prefix_cache=None, stop_fn=None, progress=None, on_completion=None
    ):
        self.asked += [r.request_id[-1] for r in requests]
        return [[self.completion(r, j) for j in range(r.n)] for r in requests]

    def completion(self, request, j):
        tokenizer = chat_tokenizer()
        prompt = tokenizer.decode(list(request.prompt_token_ids))
        (text,) = (answers[j] for problem, (*_, answers) in self.script.items() if prompt == f"{problem} Box it.")
        stopped = not text.endswith("|")
        ids = tokenizer.encode_after(text.rstrip("|")) + [tokenizer.eos_token_id] * stopped
        ids = np.asarray(ids, np.int32)
        return Completion(ids, *2 * [np.zeros(len(ids), np.float32)], "stop" if stopped else "length")


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    path = tmp_path_factory.mktemp("suite") / "sums.jsonl"
    records = [{"problem": p, "answer": gold, "level": level} for p, (level, gold, _) in SCRIPT.items()]
    path.write_text("\n".join(map(json.dumps, records)))
    return problem_suites.load(str(path))


@pytest.fixture(scope="module")
def verifier():
    """One verifier for all tests: its workers take a second to start."""
    with contextlib.closing(Verifier()) as verifier:
        yield verifier


def evaluate(folder, suite, verifier, script=SCRIPT, training=(), **changes):
    c = cfg.Eval(max_tokens=40, num_samples=N, prompt=PROMPT, shard_size=8, **changes)
    engine = Scripted(script)
    policy = Policy(engine, None, chat_tokenizer())
    result = suites.evaluate(epath.Path(folder), suite, c, policy, verifier, SETTINGS, training)
    return result, engine.asked


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, suite, verifier):
    """(folder, result, problems that were asked)"""
    folder = tmp_path_factory.mktemp("evaluated") / "sums"
    return folder, *evaluate(folder, suite, verifier, token_limits=(10,))


def test_figures_equal_counts_by_hand(evaluated):
    _, result, asked = evaluated
    assert len(asked) == 3 and (result["prompts"], result["n"], result["rule"]) == (3, 4, "lenient")
    # Right by rule: strict 1, 2, 0 of 4; lenient 2, 2, 0; math500 3, 2, 1 (the answer that was cut off).
    means = {rule: figures["pass@1"]["mean"] for rule, figures in result["rules"].items()}
    assert means == {"strict": 0.25, "lenient": round(4 / 12, 4), "math500": 0.5}
    assert result["pass@k"]["1"]["mean"] == round(4 / 12, 4)
    assert result["pass@k"]["2"]["mean"] == round((5 / 6 + 5 / 6 + 0) / 3, 4)
    assert result["pass@k"]["4"]["mean"] == round(2 / 3, 4)
    # maj@4: 2 against 3; 1/2 twice, by value; 5 twice. maj@2: blocks of two answers.
    assert result["maj@k"]["4"]["mean"] == round(2 / 3, 4)
    assert result["maj@k"]["2"]["mean"] == round((0.5 + 0.5 + 0) / 3, 4)
    assert result["truncated"] == round(1 / 12, 4) and result["failed"] == 0
    assert result["unparsed"] == round(2 / 12, 4)  # "So $x = 2$." and "I do not know."
    assert result["by_level"]["1"]["mean"] == 0.5 and result["by_level"]["2"]["n"] == 1
    assert result["gold_not_read"] == {"count": 0, "first": []}
    longest = max(len(a.rstrip("|")) + (not a.endswith("|")) for *_, answers in SCRIPT.values() for a in answers)
    assert result["tokens"]["max"] == longest
    settings = result["settings"]
    assert settings["prompt"] == PROMPT and settings["n"] == 4 and settings["model"] == "scripted"


def test_differences_between_rules_are_listed_with_examples(evaluated):
    by_rules = {tuple(d["rules"]): d for d in evaluated[1]["differences"]}
    d = by_rules["strict", "math500"]
    assert (d["right by strict alone"], d["right by math500 alone"]) == (0, 3)
    assert [(x["gold"], x["truncated"]) for x in d["first"]] == [("2", False), ("2", False), ("4", True)]
    assert by_rules["lenient", "math500"]["right by math500 alone"] == 2


def test_same_answers_are_judged_at_smaller_limits(evaluated):
    (row,) = evaluated[1]["token_limits"]
    kept = [[a for a in answers if len(a.rstrip("|")) + (not a.endswith("|")) <= 10] for *_, answers in SCRIPT.values()]
    assert [len(k) for k in kept] == [2, 2, 3]  # "\\boxed{2}" has ten tokens with its end
    assert row["max_tokens"] == 10 and row["truncated"] == round((2 + 2 + 2) / 12, 4)
    assert row["pass@1"]["strict"]["mean"] == round(1 / 12, 4)
    # Cut off, math500 still reads the box of 4, and the numbers at the ends of "So $x = 2" and "\\boxed{1/".
    assert row["pass@1"]["math500"]["mean"] >= row["pass@1"]["strict"]["mean"]


def test_every_response_is_kept_with_its_verdicts(evaluated):
    rows = responses.read_parquet(epath.Path(evaluated[0]) / suites.ANSWERS)
    assert [r["response"] for r in rows] == [a.rstrip("|") for *_, answers in SCRIPT.values() for a in answers]
    assert [r["correct_lenient"] for r in rows[:4]] == [True, True, False, False]
    assert rows[8]["truncated"] and rows[8]["correct_math500"] and not rows[8]["correct_strict"]
    assert {r["sample"] for r in rows} == {0, 1, 2, 3} and rows[0]["gold"] == "2"
    sampled = responses.read_parquet(epath.Path(evaluated[0]) / "responses-00000.parquet")
    assert all(r["text"] == chat_tokenizer().decode(r["token_ids"]) for r in sampled if not r["stopped"])


def test_a_stopped_suite_goes_on_with_the_missing_file(evaluated, suite, verifier, tmp_path):
    folder, result, _ = evaluated
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert sorted(p.name for p in tmp_path.glob("responses-*")) == [
        "responses-00000.parquet",
        "responses-00001.parquet",
    ]
    (tmp_path / "responses-00001.parquet").unlink()
    again, asked = evaluate(tmp_path, suite, verifier, token_limits=(10,))
    assert asked == [suite.problems[2].id] and again == result


def test_responses_of_other_settings_are_refused(evaluated, suite, verifier):
    with pytest.raises(AstroError, match=r"holds responses of other settings \(temperature was 1.0\); choose another"):
        evaluate(evaluated[0], suite, verifier, temperature=0.5)


def test_models_are_compared_on_the_same_problems(evaluated, suite, verifier, tmp_path):
    better = {p: (level, gold, [f"\\boxed{{{gold}}}"] * 4) for p, (level, gold, _) in SCRIPT.items()}
    evaluate(tmp_path / "better", suite, verifier, better)
    d = suites.compare(epath.Path(tmp_path / "better"), epath.Path(evaluated[0]), "strict")
    assert d["difference"] == 0.75 and d["n"] == 3 and 0 < d["low"] <= 0.75 <= d["high"]
    assert suites.compare(epath.Path(evaluated[0]), epath.Path(evaluated[0]), "strict")["difference"] == 0


def test_overlap_with_training_problems_is_counted(suite):
    training = [Problem("x", "what is 1 + 1", "2", task="math"), Problem("y", "What is 9 + 9?", "18", task="math")]
    assert suites.training_overlap(suite, training) == {"compared": 2, "exact": 1, "near": 0, "contained": 0}
    games = problem_suites.load("countdown:count=2,size=3")
    assert suites.training_overlap(games, games.problems[:2]) == {"compared": 2, "exact": 2}


def test_a_lost_connection_does_not_leave_the_overlap_with_training_problems_out():
    def draw(use):
        raise TransientError("the hub is busy")

    with pytest.raises(TransientError):
        model_suites.training_problems(types.SimpleNamespace(draw=draw))


def test_gold_answers_that_are_not_read_are_counted_and_listed(verifier):
    bad = Problem("bad", "What?", "\\frac{1}{", task="math")
    counted = suites.unreadable_gold([bad, Problem("good", "What?", "1", task="math")], "lenient", verifier)
    assert counted == {"count": 1, "first": [{"problem_id": "bad", "gold": "\\frac{1}{"}]}


def test_behaviour_and_errors_stand_in_the_result_and_in_each_row(evaluated):
    folder, result, _ = evaluated
    assert result["behaviour"]["attempts"] == 1 and result["behaviour"]["first_attempt_right"] == round(6 / 12, 4)
    # "So $x = 2$." is right by the rule math500; "I do not know." gives up; the other wrong numbers come from nowhere.
    errors = {name: share for name, share in result["errors"].items() if share}
    expected = {"cut off": 1, "gave up": 1, "format": 1, "copying": 5}
    assert errors == {name: round(n / 12, 4) for name, n in expected.items()}
    rows = responses.read_parquet(epath.Path(folder) / suites.ANSWERS)
    assert [r["error"] for r in rows[8:]] == ["cut off", "gave up", "copying", "copying"]
    assert rows[0]["error"] is None and rows[0]["attempts"] == 1


def test_a_judge_reads_the_answers_with_their_verdicts(evaluated):
    answers = judged.read(epath.Path(evaluated[0]), "math500")
    assert [a.correct for a in answers[:4]] == [True, True, True, False] and not answers[8].response.stopped
    assert answers[0].response.problem.prompt == "What is 1 + 1?" and answers[9].error == "gave up"


def test_export_has_the_form_of_lm_evaluation_harness(evaluated, tmp_path):
    folder, result, _ = evaluated
    out = epath.Path(folder).parent
    (out / "results.json").write_text(
        json.dumps({"model": "org/name", "settings": SETTINGS, "suites": {"sums": result}})
    )
    path = lm_eval.export(out, epath.Path(tmp_path))
    record = json.loads(path.read_text())
    scores = record["results"]["sums"]
    assert scores["exact_match,strict"] == 0.25 and scores["exact_match,math500"] == 0.5
    values = np.asarray([0.25, 0.5, 0])
    assert scores["exact_match_stderr,strict"] == pytest.approx(values.std(ddof=1) / 3**0.5)
    assert record["configs"]["sums"]["repeats"] == 4 and record["n-samples"]["sums"]["effective"] == 3
    assert record["configs"]["sums"]["doc_to_text"] == "{{problem}} Box it."
    (samples,) = tmp_path.glob("samples_sums_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(rows) == 3 * 3 and rows[0]["filter"] == "strict" and rows[0]["exact_match"] == 0.25
    assert rows[0]["resps"] == [SCRIPT["What is 1 + 1?"][2]] and rows[0]["target"] == "2"
    assert rows[0]["arguments"]["gen_args_0"]["arg_0"] == "What is 1 + 1? Box it."
