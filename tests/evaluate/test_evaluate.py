"""Metrics against closed formulas, and evaluation with a scripted sampler."""

import json
import math
import random
import zlib
from collections import Counter

import numpy as np
import pytest
from etils import epath
from helpers import countdown_tokenizer

from astro_jax import config as cfg
from astro_jax import countdown
from astro_jax.countdown import HIT, MISS, Game
from astro_jax.evaluate import run as evaluation
from astro_jax.evaluate.metrics import majority, rate
from astro_jax.policy import Policy
from astro_jax.sampler import Completion
from astro_jax.verify import Verifier

TOKENIZER = countdown_tokenizer(60)
EOS = TOKENIZER.eos_token_id
GAME = Game(count=2, max_number=9, max_value=60)
PROBLEMS = countdown.problems(GAME, 10, 0, held_out=True)
EVAL = cfg.Eval(max_tokens=21, shard_size=4)
BACK = " Let's restart our solution from the beginning, and"


# ---- Metrics


@pytest.mark.parametrize("right, n", [(0, 5), (5, 5), (1, 30), (300, 1024), (1, 1)])
def test_rates_have_wilsons_interval(right, n):
    z, p = 1.959963984540054, right / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    found = rate([True] * right + [False] * (n - right))
    assert found == {"mean": round(p, 4), "low": pytest.approx(middle - half, abs=6e-5),
                     "high": pytest.approx(middle + half, abs=6e-5), "n": n}  # fmt: skip


@pytest.mark.parametrize(
    "answers, winner",
    [
        (["3", "5", "5"], "5"),
        (["3", "5"], "3"),  # a tie: the first
        (["5", "3", "3", "5"], "5"),
        ([None, None, "7"], "7"),  # what did not parse has no vote
        ([None], None),
        ([], None),
    ],
)
def test_majority(answers, winner):
    assert majority(answers) == winner


# ---- Evaluation


def answer(problem, kind):
    """A response to a problem of two numbers, and whether it was stopped by the end token."""
    numbers, target = tuple(problem.meta["numbers"]), problem.meta["target"]
    (right, *_), wrong = countdown.reachable(numbers, GAME)[target], max(numbers) + min(numbers) + 1
    solution = countdown.attempt_text(numbers, right, target)
    other = next(m for m in countdown.moves(numbers, GAME) if m.result != target)
    miss = countdown.step_text(numbers, other, target)
    return {
        "right": (solution, True),
        "wrong": (miss, True),
        "false": (f" {numbers[0]} + {numbers[1]} = {wrong}{MISS}", True),
        "cut": (solution, False),
        "back": (miss + BACK + countdown.restate(numbers, target) + solution, True),
    }[kind]


KINDS = ("right", "wrong", "false", "cut", "back")


def kind(name, sample, temperature):
    """What the scripted model answers: random, but named by the request."""
    return KINDS[zlib.crc32(repr((name, sample, temperature)).encode()) % len(KINDS)]


class Scripted:
    def __init__(self):
        self.asked = []

    def generate(self, params, requests, *, max_tokens, stop, temperature, progress=None):
        assert max_tokens == 21 and stop == (EOS,)
        self.asked += [r.name[-1] for r in requests]
        by_prompt = {p.prompt: p for p in PROBLEMS}
        found = []
        for r in requests:
            answers = [answer(by_prompt[TOKENIZER.decode(r.prefix)], kind(r.name, j, temperature)) for j in range(r.n)]
            found.append([self.sample(*a) for a in answers])
        return found

    def sample(self, text, stopped):
        ids = np.asarray(TOKENIZER.encode(text) + [EOS] * stopped, np.int32)
        return Completion(ids, *2 * [np.zeros(len(ids), np.float32)], stopped)


def run(folder, sampler=None):
    return evaluation.run(
        epath.Path(folder), "astro-sft", PROBLEMS, EVAL, Policy(sampler or Scripted(), None, TOKENIZER), Verifier()
    )


def records(folder):
    return [json.loads(line) for path in sorted(folder.iterdir()) for line in path.read_text().splitlines()]


def test_records_hold_both_answers_to_each_problem(tmp_path):
    run(tmp_path)
    found = records(tmp_path)
    assert [r["problem_id"] for r in found] == [p.id for p in PROBLEMS]
    expected = {  # correct, valid, truncated, backtracks
        "right": (True, True, False, 0), "wrong": (False, True, False, 0), "false": (False, False, False, 0),
        "cut": (False, False, True, 0), "back": (True, True, False, 1),
    }  # fmt: skip
    seen = set()
    for record, problem in zip(found, PROBLEMS, strict=True):
        assert record["prompt"] == problem.prompt and set(record) == {"problem_id", "prompt", "sampled", "greedy"}
        for way, temperature in (("sampled", 1.0), ("greedy", 0.0)):
            which = kind(("eval", "astro-sft", problem.id), 0, temperature)
            text, stopped = answer(problem, which)
            r = record[way]
            assert (r["correct"], r["valid"], r["truncated"], r["backtracks"]) == expected[which]
            assert r["text"] == text and r["tokens"] == len(TOKENIZER.encode(text)) + stopped
            assert (r["answer"] == problem.answer) == r["correct"] and (r["answer"] is None) == (not r["valid"])
            seen.add(which)
    assert seen == set(KINDS)


def test_the_summary_against_a_recount(tmp_path):
    entry, found = run(tmp_path), records(tmp_path)
    n = len(found)
    assert set(entry) == {"pass@1", "greedy", "mean_tokens", "mean_backtracks", "valid_rate", "truncated_rate"}
    for way, key in (("sampled", "pass@1"), ("greedy", "greedy")):
        right = Counter(HIT in r[way]["text"] and not r[way]["truncated"] for r in found)[True]
        assert entry[key]["mean"] == round(right / n, 4) and entry[key]["n"] == n
    texts = [r["sampled"] for r in found]
    lengths = [len(TOKENIZER.encode(r["text"])) + (not r["truncated"]) for r in texts]
    assert entry["mean_tokens"] == round(sum(lengths) / n, 4)
    assert entry["mean_backtracks"] == round(sum(r["text"].count(BACK) for r in texts) / n, 4)
    assert entry["valid_rate"] == round(sum(r["valid"] for r in texts) / n, 4)
    assert entry["truncated_rate"] == round(sum(r["truncated"] for r in texts) / n, 4)


def test_a_deleted_shard_is_made_again_with_the_same_bytes(tmp_path):
    entry = run(tmp_path)
    files = sorted(tmp_path.iterdir())
    before = [f.read_bytes() for f in files]
    assert [b.count(b"\n") for b in before] == [4, 4, 2]  # waves of EVAL.wave
    files[1].unlink()
    sampler = Scripted()
    assert run(tmp_path, sampler) == entry
    assert [f.read_bytes() for f in sorted(tmp_path.iterdir())] == before
    assert set(sampler.asked) == {p.id for p in PROBLEMS[4:8]}


def test_a_vote_against_a_recount():
    entry = evaluation.vote("direct-sft", PROBLEMS, EVAL, Policy(Scripted(), None, TOKENIZER), Verifier(), 5)
    right, tokens = [], 0
    for p in PROBLEMS:
        kinds = [kind(("eval", "direct-sft/vote", p.id), j, 1.0) for j in range(5)]
        votes = []  # the answers of those that parse
        for which in kinds:
            text, stopped = answer(p, which)
            tokens += len(TOKENIZER.encode(text)) + stopped
            if which in ("right", "wrong", "back"):
                votes.append(text.split(" = ")[-1].split(",")[0])
        most = max(votes.count(v) for v in votes) if votes else 0
        right.append(bool(votes) and next(v for v in votes if votes.count(v) == most) == p.answer)
    assert entry == {"k": 5, **rate(right), "mean_tokens": round(tokens / len(PROBLEMS), 4)}
    assert 0 < sum(right) < len(right)


def test_a_vote_of_one_is_a_sample_of_its_own():
    sampler = Scripted()
    found = evaluation.answers("direct-sft/vote", PROBLEMS, EVAL, Policy(sampler, None, TOKENIZER), Verifier(), 1, 1.0)
    entry = evaluation.vote("direct-sft", PROBLEMS, EVAL, Policy(sampler, None, TOKENIZER), Verifier(), 1)
    assert entry["mean"] == round(sum(a["correct"] for (a,) in found) / len(found), 4)


def test_waves_do_not_change_the_answers(tmp_path):
    order = random.Random(0).sample(PROBLEMS, len(PROBLEMS))
    a = evaluation.answers("base", PROBLEMS, EVAL, Policy(Scripted(), None, TOKENIZER), Verifier(), 2, 1.0)
    b = evaluation.answers("base", order, EVAL, Policy(Scripted(), None, TOKENIZER), Verifier(), 2, 1.0)
    assert dict(zip((p.id for p in PROBLEMS), a, strict=True)) == dict(zip((p.id for p in order), b, strict=True))
