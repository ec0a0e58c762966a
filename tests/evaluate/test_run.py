"""Evaluation with a scripted engine, against recounts."""

import json
import random
from collections import Counter

import pytest
import scripted
from etils import epath
from scripted import EVAL, KINDS, PROBLEMS, RESTART, TOKENIZER, Scripted, answer, kind

from astro_jax.countdown import HIT
from astro_jax.evaluate import run as evaluation
from astro_jax.evaluate.metrics import success_rate
from astro_jax.verify import Verifier

MODES = (("sampled", 1.0), ("greedy", 0.0))


def run(folder, engine=None):
    return evaluation.run(epath.Path(folder), "astro-sft", PROBLEMS, EVAL, scripted.policy(engine), Verifier())


def sample_and_judge(name, problems, n):
    return evaluation.sample_and_judge(name, problems, EVAL, scripted.policy(), Verifier(), n, 1.0)


def majority_vote(k):
    return evaluation.majority_vote("direct-sft", PROBLEMS, EVAL, scripted.policy(), Verifier(), k)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """(folder, entry in results.json, records)"""
    folder = tmp_path_factory.mktemp("eval")
    entry = run(folder)
    lines = [line for path in sorted(folder.iterdir()) for line in path.read_text().splitlines()]
    return folder, entry, [json.loads(line) for line in lines]


def test_records_hold_both_answers_to_each_problem(evaluated):
    records = evaluated[2]
    assert [r["problem_id"] for r in records] == [p.id for p in PROBLEMS]
    expected = {  # correct, valid, truncated, backtracks
        "right": (True, True, False, 0), "wrong": (False, True, False, 0), "false": (False, False, False, 0),
        "truncated": (False, False, True, 0), "backtrack": (True, True, False, 1),
    }  # fmt: skip
    seen = set()
    for record, problem in zip(records, PROBLEMS, strict=True):
        assert record["prompt"] == problem.prompt and set(record) == {"problem_id", "prompt", "sampled", "greedy"}
        for mode, temperature in MODES:
            answer_kind = kind(("eval", "astro-sft", problem.id), 0, temperature)
            text, stopped = answer(problem, answer_kind)
            r = record[mode]
            assert (r["correct"], r["valid"], r["truncated"], r["backtracks"]) == expected[answer_kind]
            assert r["text"] == text and r["tokens"] == len(TOKENIZER.encode(text)) + stopped
            assert (r["answer"] == problem.answer) == r["correct"] and (r["answer"] is None) == (not r["valid"])
            seen.add(answer_kind)
    assert seen == set(KINDS)


def test_entry_of_results_equals_recount(evaluated):
    _, entry, records = evaluated
    n = len(records)
    rates = {"pass@1", "greedy", "mean_tokens", "mean_backtracks", "valid_rate", "truncated_rate"}
    assert set(entry) == rates | {"behaviour", "errors"}
    for (mode, _), key in zip(MODES, ("pass@1", "greedy"), strict=True):
        right = Counter(HIT in r[mode]["text"] and not r[mode]["truncated"] for r in records)[True]
        assert entry[key]["mean"] == round(right / n, 4) and entry[key]["n"] == n
    sampled = [r["sampled"] for r in records]
    lengths = [len(TOKENIZER.encode(r["text"])) + (not r["truncated"]) for r in sampled]
    assert entry["mean_tokens"] == round(sum(lengths) / n, 4)
    assert entry["mean_backtracks"] == round(sum(r["text"].count(RESTART) for r in sampled) / n, 4)
    assert entry["valid_rate"] == round(sum(r["valid"] for r in sampled) / n, 4)
    assert entry["truncated_rate"] == round(sum(r["truncated"] for r in sampled) / n, 4)


def test_behaviour_and_errors_equal_a_recount(evaluated):
    """The script of each kind of answer says what its attempts are worth, and what is wrong."""
    _, entry, records = evaluated
    kinds = [kind(("eval", "astro-sft", r["problem_id"]), 0, 1.0) for r in records]
    rights = {"right": [True], "truncated": [True], "wrong": [False], "false": [False], "backtrack": [False, True]}
    errors = {"false": "arithmetic", "truncated": "cut off", "wrong": "planning"}
    for name, record in zip(kinds, records, strict=True):
        sampled = record["sampled"]
        assert sampled["behaviour"]["rights"] == rights[name] and sampled["error"] == errors.get(name), name
    assert entry["behaviour"]["changes"] == {"repair": kinds.count("backtrack")}
    assert entry["errors"]["planning"] == round(kinds.count("wrong") / len(kinds), 4)


def test_results_of_older_answers_lack_their_behaviour(evaluated):
    _, entry, records = evaluated
    older = [
        r | {"sampled": {k: v for k, v in r["sampled"].items() if k not in ("behaviour", "error")}} for r in records
    ]
    assert evaluation.summarize(older) == {k: v for k, v in entry.items() if k not in ("behaviour", "errors")}


def test_deleted_shard_is_made_again_with_same_bytes(evaluated):
    folder, entry, _ = evaluated
    files = sorted(folder.iterdir())
    before = [f.read_bytes() for f in files]
    assert [b.count(b"\n") for b in before] == [4, 4, 2]  # EVAL.shard_size
    files[1].unlink()
    engine = Scripted()
    assert run(folder, engine) == entry
    assert [f.read_bytes() for f in sorted(folder.iterdir())] == before
    assert set(engine.problem_ids) == {p.id for p in PROBLEMS[4:8]}


def test_majority_vote_equals_recount():
    outcomes, tokens = [], 0
    for p in PROBLEMS:
        votes = []  # the answers that parse
        for j in range(5):
            answer_kind = kind(("eval", "direct-sft/vote", p.id), j, 1.0)
            text, stopped = answer(p, answer_kind)
            tokens += len(TOKENIZER.encode(text)) + stopped
            if answer_kind in ("right", "wrong", "backtrack"):
                votes.append(text.split(" = ")[-1].split(",")[0])
        most = max(votes.count(v) for v in votes) if votes else 0
        outcomes.append(bool(votes) and next(v for v in votes if votes.count(v) == most) == p.answer)
    assert majority_vote(5) == {"k": 5, **success_rate(outcomes), "mean_tokens": round(tokens / len(PROBLEMS), 4)}
    assert 0 < sum(outcomes) < len(outcomes)


def test_majority_vote_of_one_is_a_sample_of_its_own():
    answers = sample_and_judge("direct-sft/vote", PROBLEMS, 1)
    assert majority_vote(1)["mean"] == round(sum(a["correct"] for (a,) in answers) / len(answers), 4)


def test_order_of_problems_does_not_change_answers():
    shuffled = random.Random(0).sample(PROBLEMS, len(PROBLEMS))
    answers, again = (sample_and_judge("base", problems, 2) for problems in (PROBLEMS, shuffled))
    by_id = dict(zip((p.id for p in PROBLEMS), answers, strict=True))
    assert by_id == dict(zip((p.id for p in shuffled), again, strict=True))
