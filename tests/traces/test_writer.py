"""Traces that a model judges and writes, with a script in the model's place: self-evaluation, rewriting, best-of-N."""

import dataclasses
import json
import random
import types

import numpy as np
import pytest
from etils import epath
from helpers import tiny_config, tiny_params
from test_words import chatting

from astro_jax import config as cfg
from astro_jax import countdown, llama, pipeline, prompts, storage
from astro_jax.errors import AstroError
from astro_jax.phrases import CORRECT, DOUBT, GO_BACK, UNSURE
from astro_jax.policy import Policy
from astro_jax.sampler import Completion
from astro_jax.search.tree import Tree
from astro_jax.storage import Shards
from astro_jax.traces import check, dataset
from astro_jax.traces.author import Author, Question
from astro_jax.traces.clone import Piece
from astro_jax.traces.self_evaluation import verdict
from astro_jax.types import Problem
from astro_jax.verify import Verifier, verify

TOKENIZER = dataclasses.replace(chatting(), chat=cfg.Chat(template=True, system="Solve the problem."))
PROMPTS = prompts.load({})
TEXTS = ["First he buys 2 cats.\n", "The answer is 7.\n", "Then 2 + 3 = 5.\n", "The answer is 5.\n", "So 6.\n"]


def pets(name="pets"):
    """root -> 1 "2 cats" -> 2 "answer 7", wrong; 1 -> 3 "2 + 3 = 5" -> 4 "answer 5", right; root -> 5 -> 6 right."""
    tree = Tree(Problem(name, "Tom has 2 cats and 3 dogs. How many pets?", "5", {}, "number"))
    for parent, text in zip((0, 1, 1, 3, 0, 5), [*TEXTS, "By luck the answer is 5.\n"], strict=True):
        tree.add(parent, (), text, 1.0)
    for node, answer in ((2, "7"), (4, "5"), (6, "5")):
        end = tree.nodes[node]
        end.terminal, end.answer, end.correct = True, answer, answer == "5"
    return tree


class Scripted:
    """A sampler that asks a function: (the request's name, the text of its prompt, which sample) -> its answer. An
    answer that begins with "…" comes to no end."""

    config = types.SimpleNamespace(max_positions=8192)

    def __init__(self, answer):
        self.answer, self.calls = answer, []

    def generate(self, params, requests, *, max_tokens, stop, temperature, cut=None, progress=None):
        self.calls.append((max_tokens, temperature, requests))
        return [[self.one(r, j, cut) for j in range(r.n)] for r in requests]

    def one(self, request, j, cut):
        text = self.answer(request.name, TOKENIZER.decode(request.prefix), j)
        tokens = TOKENIZER.encode_after(text.removeprefix("…"))
        tokens = tokens[: cut(tokens)] if cut is not None and cut(tokens) is not None else tokens + [TOKENIZER.end]
        nothing = np.zeros(len(tokens), np.float32)
        return Completion(np.asarray(tokens, np.int32), nothing, nothing, not text.startswith("…"))

    @property
    def names(self):
        return [r.name for *_, requests in self.calls for r in requests]


def author(answer):
    sampler = Scripted(answer)
    return Author(Policy(sampler, None, TOKENIZER), Verifier(), PROMPTS), sampler


def make(answer, trees=None, **changes):
    """(records, sampler) of some trees."""
    who, sampler = author(answer)
    return dataset._make(trees or [pets()], cfg.Traces(**changes), 0, who), sampler


# ---- How the model is asked


def test_a_prompt_goes_through_the_chat_template_without_the_problems_system_prompt():
    who, sampler = author(lambda *_: "yes")
    assert who.ask([Question("Well?", 2, ("a",))], 9, 0.5) == [["yes", "yes"]]
    ((most, temperature, (request,)),) = sampler.calls
    assert TOKENIZER.decode(request.prefix) == "<user>Well?<assistant>" and (most, temperature) == (9, 0.5)
    assert request.name == ("a",)


def test_an_answer_without_an_end_is_none_and_a_question_that_is_too_long_is_not_asked():
    who, _ = author(lambda name, *_: "…on and on" if name == ("cut",) else "yes")
    questions = [Question("a" * n, 1, (name,)) for n, name in ((9, "cut"), (8192, "long"), (9, "fine"))]
    assert who.ask(questions, 100, 1.0) == [[None], [], ["yes"]]
    with pytest.raises(AstroError, match=r"no room for 8192 new tokens; lower traces\.\*_tokens"):
        who.ask(questions, 8192, 1.0)


# ---- Self-evaluation


@pytest.mark.parametrize(
    "text, approves",
    [("All is well.\nVerdict: correct", True), ("Verdict: incorrect.\n", False), ("Verdict: correct.", True),
     ("verdict: correct", None), ("It is correct", None), ("Verdict: correct\nOr not?", None), ("", None), (None, None),
     ("Verdict: correct or incorrect", None), ("The Verdict: correct", None), ("Verdict: correctly", None)],
)  # fmt: skip
def test_a_verdict_is_read_to_the_letter(text, approves):
    assert verdict(text) is approves


def judge(by_node):
    """Approves so many of the judgements of each node, first ones first."""
    return lambda name, text, j: f"Hm.\nVerdict: {'correct' if j < by_node[name[3]] else 'incorrect'} and more"


@pytest.mark.parametrize(
    "votes, needed, kept",
    [({4: 8, 6: 7}, 1.0, {4}), ({4: 8, 6: 7}, 0.8, {4, 6}), ({4: 3, 6: 4}, 0.5, {6}), ({4: 7, 6: 7}, 1.0, set())],
)
def test_only_terminals_that_enough_judgements_approve_of_give_traces(votes, needed, kept):
    settings = dict(self_evaluation=8, self_evaluation_pass=needed, direct_examples=20, search_examples=20)
    (record,), sampler = make(judge(votes), **settings)
    assert {e["nodes"][-1] for e in record["astro"] + record["direct"]} == kept
    assert {t["node"]: t["approved"] for t in record["evaluation"]["terminals"]} == votes
    ((most, temperature, requests),) = sampler.calls  # all terminals in one call
    assert (most, temperature, [r.n for r in requests]) == (256, 1.0, [8, 8])
    shown = TOKENIZER.decode(requests[0].prefix)
    assert "Tom has 2 cats" in shown and TEXTS[0] + TEXTS[2] + TEXTS[3].strip() in shown and TEXTS[1] not in shown


def test_without_self_evaluation_no_model_is_asked_and_every_right_terminal_serves():
    (record,), sampler = make(judge({}), direct_examples=20)
    assert {e["nodes"][-1] for e in record["astro"]} == {4, 6} and not sampler.calls and record["evaluation"] is None


# ---- Rewriting


def copyist(name, text, j):
    """Rewrites well: says "so", then the step it was shown; goes back by the step's own words; reflects."""
    step = text.split("Draft of the next step: ")[-1].split("\nRewritten step:")[0]
    if "Draft" in text:
        return f"So, {step}\n\nProblem: another"
    if "Step returned to: " in text:
        return " said this: " + text.split("Step returned to: ")[-1].split("\n")[0]
    return (
        "Sure?  Yes, it looks right."
        if text.endswith("it looks right\nSaid:<assistant>")
        else "Sure? No, it looks odd."
    )


def drawn(record, nodes):
    return next(e for e in record["astro"] if e["nodes"] == nodes)


BOTH = [1, 2, 3, 4]
MODEL = dict(clone="model", search_examples=20)


def test_the_model_writes_steps_and_ways_back_each_with_the_text_before_it_in_view():
    (record,), sampler = make(copyist, **MODEL)
    example = drawn(record, BOTH)
    assert example["response"] == (
        "So, First he buys 2 cats.\nSo, The answer is 7.\n" + DOUBT + UNSURE +
        GO_BACK + " said this: First he buys 2 cats.\nSo, Then 2 + 3 = 5.\nSo, The answer is 5.\n" + DOUBT + CORRECT
    )  # fmt: skip
    assert example["rewrites"] == {"pieces": 5, "accepted": 5}
    assert verify(pets().problem, example["response"], True).correct
    asked = [TOKENIZER.decode(r.prefix) for *_, requests in sampler.calls for r in requests]
    second = next(a for a in asked if "Draft of the next step: Then 2 + 3 = 5.\n" in a and UNSURE in a)
    assert "Solution so far:\nSo, First he buys 2 cats.\nSo, The answer is 7.\n" + DOUBT in second
    assert {most for most, *_ in sampler.calls} == {128} and {t for _, t, _ in sampler.calls} == {0.7}
    assert all(
        e["rewrites"]["accepted"] == 2 * (len(e["nodes"]) == 2) + 3 * (len(e["nodes"]) == 3) for e in record["direct"]
    )


def test_many_traces_are_written_at_once_and_each_as_if_alone():
    trees = [pets(f"pets {i}") for i in range(6)]
    together, sampler = make(copyist, trees, clone="model")
    alone = [make(copyist, [tree], clone="model")[0][0] for tree in trees]
    assert together == alone and len(set(sampler.names)) == len(sampler.names)
    pieces = [sum(p["kind"] != "reflect" for p in e["pieces"]) for r in together for e in r["astro"] + r["direct"]]
    assert len(sampler.calls) <= max(pieces) and len(sampler.calls[0][2]) == len(pieces) == 6 * 8


def test_the_model_may_write_the_reflections_alone():
    (record,), _ = make(copyist, phrases="model", search_examples=20)
    example = drawn(record, BOTH)
    assert example["response"] == (
        TEXTS[0] + TEXTS[1] + " Sure? No, it looks odd.\n" + GO_BACK + " wrote: First he buys 2 cats.\n" + TEXTS[2]
        + TEXTS[3] + " Sure?  Yes, it looks right.\n"
    )  # fmt: skip
    assert example["rewrites"] == {"pieces": 2, "accepted": 2}


def failing(bad, times):
    """The first `times` tries of a step are bad."""
    return lambda name, text, j: bad if "Draft" in text and name[-1] < times else copyist(name, text, j)


@pytest.mark.parametrize(
    "times, retries, accepted, tries", [(1, 2, True, 1), (2, 2, True, 2), (3, 2, False, 3), (1, 0, False, 1)]
)
def test_a_rejected_piece_is_asked_for_again_and_then_taken_from_the_template(times, retries, accepted, tries):
    settings = dict(clone="model", clone_retries=retries, search_examples=0)
    (record,), sampler = make(failing("So 99.", times), **settings)
    (example,) = record["astro"]
    steps = len(example["nodes"])
    assert example["response"].startswith("So, " if accepted else ("First", "So 6", "By"))
    assert example["rewrites"] == {"pieces": steps, "numbers": tries * steps} | (
        {"accepted": steps} if accepted else {}
    )
    assert len(set(sampler.names)) == len(sampler.names)  # each try draws anew


def test_a_trace_that_outgrows_the_models_context_goes_on_by_the_template():
    who, sampler = author(copyist)
    c = cfg.Traces(clone="model", direct_examples=20)
    dataset._make([pets()], c, 0, who)
    shown = max(len(r.prefix) for r in sampler.calls[0][2])
    sampler.config = types.SimpleNamespace(max_positions=shown + 128)
    (record,) = dataset._make([pets()], c, 0, who)
    example = next(e for e in record["astro"] if e["nodes"] == [1, 3, 4])
    assert example["response"].startswith("So, First he buys 2 cats.\n" + TEXTS[2])
    assert example["rewrites"] == {"pieces": 3, "accepted": 1, "too long to ask": 2}  # not asked for again


@pytest.mark.parametrize(
    "node, kind, text, reason",
    [
        (3, "step", "Next we add: 2 + 3 = 5.", None),
        (3, "step", "Next we add: 2 + 3 = 05.0.", None),
        (3, "step", " \n", "empty"),
        (3, "step", "...", "empty"),
        (3, "step", "We add 2 + 3.\nThat is 5.", "more than one step"),
        (3, "step", "We add 2 and 3.", "numbers"),
        (3, "step", "We add 2 + 3 = 5, not 6.", "numbers"),
        (3, "step", "2 + 3 = 5, so the answer is 5.", "answer given away"),
        (3, "step", r"2 + 3 = \boxed{5}", "answer given away"),
        (1, "step", "First he buys 2 cats, and in the end has 5.", "numbers"),
        (1, "step", "He buys 2 cats, and 3 dogs.", None),  # a number of the problem
        (3, "step", "Draft of the next step: 2 + 3 = 5", "copied prompt"),
        (3, "step", "Keep every number and every result of the draft 2 + 3 = 5", "copied prompt"),
        (3, "step", "But wait, are we solving the problem correctly so far? Hmm... 2 + 3 = 5", "phrase"),
        (1, "backtrack", GO_BACK + " counted the cats.", None),
        (1, "backtrack", GO_BACK + " counted 2.", None),
        (1, "backtrack", GO_BACK + " made an error.", "nothing of the step"),
        (1, "backtrack", GO_BACK + " counted the cats, and got 4.", "numbers"),
        (1, "backtrack", GO_BACK + " counted\nthe cats.", "more than one step"),
        (1, "backtrack", GO_BACK + ".", "empty"),
        (4, "reflect", " Is this right? I do not think so.", None),
        (4, "reflect", " Is this right? It should be 5.", "answer given away"),
        (4, "reflect", " Is this right? It should be 8.", "numbers"),
        (4, "reflect", " Let's go back to where we began.", "phrase"),
    ],
)
def test_what_a_piece_must_keep_to(node, kind, text, reason):
    prompt = PROMPTS[{"step": "rewrite", "backtrack": "go_back", "reflect": "reflect"}[kind]]
    before = "" if node == 1 and kind == "step" else "First he buys 2 cats, 5 in all.\n"
    assert check.reason(pets(), Piece(node, kind, "x\n"), text + "\n", before, prompt) == reason


def test_an_answer_given_away_is_found_though_the_problem_names_its_number():
    tree = Tree(Problem("x", "Of 5 cats and 3 dogs, how many are cats?", "5", {}, "number"))
    tree.add(0, (), "There are 3 dogs.\n", 1.0)
    assert check.reason(tree, Piece(1, "step", "x"), "There are 3 dogs and 5 cats.", "", PROMPTS["rewrite"]) == (
        "answer given away"
    )


@pytest.mark.parametrize("answer, given", [(r"\frac{3}{4}", True), (r"\frac {3} {4}", True), ("x + 1", False)])
def test_an_answer_that_is_no_number_is_found_whatever_its_spaces(answer, given):
    tree = Tree(Problem("x", "Give 3 and 4.", answer, {}, "number"))
    tree.add(0, (), "With 3 and 4.\n", 1.0)
    found = check.reason(tree, Piece(1, "step", "x"), r"With 3 and 4: \frac{3}{4}", "", PROMPTS["rewrite"])
    assert found == ("answer given away" if given else None)


def test_a_last_step_that_changes_the_answer_is_rejected():
    def drift(name, text, j):  # all its numbers are known, but the verifier reads another answer
        return "7 dogs, or 2" if "next step: The answer is 7." in text else copyist(name, text, j)

    (record,), _ = make(drift, **MODEL)
    example = drawn(record, BOTH)
    assert TEXTS[1] in example["response"] and "So, The answer is 5.\n" in example["response"]
    assert example["rewrites"] == {"pieces": 5, "accepted": 4, "final answer": 3}


# ---- Best of N


def lucky(name, text, j):
    """Of the problem's eight samples: right, right again, wrong, right in other words, cut off, ..."""
    problem = name[2]
    return [
        "The answer is 5.",
        "The answer is 5.",
        "The answer is 6.",
        f"{problem}: 5",
        "…The answer is 5.",
        "",
        "?",
        "8",
    ][j]


def test_best_of_n_keeps_the_different_right_samples_of_all_problems_solved_or_not():
    unsolved = pets("p2")
    for node in unsolved.nodes:
        node.correct = False if node.terminal else None
    records, sampler = make(lucky, [pets("p1"), unsolved], direct="best-of-n", direct_tokens=50)
    assert [[e["response"] for e in r["direct"]] for r in records] == [
        ["The answer is 5.", f"{p}: 5"] for p in ("p1", "p2")
    ]
    assert not records[1]["astro"] and all(e["pieces"][0]["node"] is None for r in records for e in r["direct"])
    ((most, temperature, requests),) = sampler.calls
    assert (most, temperature, [r.n for r in requests]) == (50, 1.0, [8, 8])
    assert TOKENIZER.decode(requests[0].prefix).startswith("<system>Solve the problem.<user>Tom")  # as in evaluation
    records, _ = make(lucky, [pets("p1")], direct="best-of-n", direct_samples=1)
    assert [e["response"] for e in records[0]["direct"]] == ["The answer is 5."]


# ---- The stage


class Stop(Exception):
    """Where a run is cut off."""


EVERYTHING = dict(
    clone="model", phrases="model", self_evaluation=2, self_evaluation_pass=0.5, direct="best-of-n", wave=2
)


def moody(name, text, j):
    """Judges, writes and answers at random, named by the request."""
    rng = random.Random(repr((name, j)))
    if name[1] == "evaluate":
        return rng.choice(["Verdict: correct", "Verdict: incorrect", "Hm."])
    if name[1] == "best-of-n":
        return rng.choice(["The answer is 5.", "5", "6"])
    return rng.choice([copyist(name, text, j), "So 99.", "…and", ""])


def stage(folder, answer, trees=5, **changes):
    store = Shards(epath.Path(folder) / "search", "trees")
    store.write(0, (pets(f"pets {i}").record() for i in range(trees)))
    who, sampler = author(answer)
    counts = dataset.run(epath.Path(folder) / "traces", store, cfg.Traces(**(EVERYTHING | changes)), 0, who, TOKENIZER)
    return counts, sampler


def read(folder):
    return {p.name: p.read_bytes() for p in sorted((folder / "traces").iterdir())}


def test_a_stage_that_is_killed_goes_on_and_ends_with_the_same_bytes(tmp_path):
    counts, whole = stage(tmp_path / "whole", moody, wave=1)
    total, calls, stops = len(whole.calls), 0, 0

    def stopping(*asked):
        nonlocal calls
        calls += 1
        if calls % 100 == 0:
            raise Stop
        return moody(*asked)

    for _ in range(20):
        try:
            again, sampler = stage(tmp_path / "killed", stopping, wave=1)
            break
        except Stop:
            stops += 1
    assert stops >= 2 and again == counts and read(tmp_path / "killed") == read(tmp_path / "whole")
    assert len(sampler.calls) < total  # finished waves were not made again
    _, sampler = stage(tmp_path / "killed", moody, wave=1)
    assert not sampler.calls


def test_the_size_of_a_wave_changes_no_trace(tmp_path):
    for wave in (1, 2, 5):
        stage(tmp_path / str(wave), moody, wave=wave)
        shards = sorted((tmp_path / str(wave) / "traces").glob("waves-*.jsonl"))
        assert len(shards) == -(-5 // wave)
    files = [{n: b for n, b in read(tmp_path / str(w)).items() if not n.startswith("waves")} for w in (1, 2, 5)]
    assert files[0] == files[1] == files[2] and len(files[0]) == 3


def test_the_bar_moves_inside_a_wave_and_comes_to_all_trees_once(tmp_path, monkeypatch):
    seen, advance = [], dataset.Bar.advance

    def watch(bar, n=1, in_progress=0.0, **metrics):
        advance(bar, n, in_progress, **metrics)
        seen.append((bar.count, in_progress))

    monkeypatch.setattr(dataset.Bar, "advance", watch)
    stage(tmp_path, moody, wave=3)
    worked = [count + part for count, part in seen]
    assert worked == sorted(worked) and len({w for w in worked if 0 < w < 3}) > 3
    assert [at for at in seen if at[0] and not at[1]] == [(3, 0), (5, 0)]
    assert all(0 <= part <= (3 if count == 0 else 2) for count, part in seen)


def test_counts_say_what_was_judged_and_written(tmp_path):
    counts, _ = stage(tmp_path, moody)
    records = [json.loads(x) for p in sorted((tmp_path / "traces").glob("waves-*")) for x in p.read_text().splitlines()]
    terminals = [t for r in records for t in r["evaluation"]["terminals"]]
    said = [verdict(j) for t in terminals for j in t["judgements"]]
    found = counts["self-evaluation"]
    assert (found["judged"], found["judgements approved"], found["judgements unread"]) == (
        10, said.count(True), said.count(None)
    )  # fmt: skip
    assert found["passed"] == sum(any(map(verdict, t["judgements"])) for t in terminals)
    assert found["share passed"] == found["passed"] / 10 and 0 < found["passed"] < 10
    empty = [r for r in records if not r["astro"]]
    assert found["trees without any left"] == len(empty)
    rewrites = [e["rewrites"] for r in records for e in r["astro"]]
    pieces, accepted = (sum(r.get(k, 0) for r in rewrites) for k in ("pieces", "accepted"))
    assert counts["rewrites"]["share accepted"] == round(accepted / pieces, 4) and 0 < accepted < pieces
    assert counts["rewrites"]["by the template"] == pieces - accepted
    assert counts["rewrites"]["rejected: cut off"] == sum(r.get("cut off", 0) for r in rewrites) > 0
    assert counts["terminals"] == {"correct": 10, "wrong": 5, "without an answer": 0}
    assert counts["Direct"]["examples"] == counts["ASTRO"]["examples"]


@pytest.mark.parametrize("changes", [{"clone": "model"}, {"phrases": "model"}, {"self_evaluation": 1}])
def test_countdown_is_not_judged_or_written_by_a_model(changes):
    with pytest.raises(AstroError, match=r"Countdown's language has no words.*problems\.path"):
        dataset.check(cfg.Traces(**changes), [countdown.make_problem((2, 3), 5)])
    dataset.check(cfg.Traces(**changes), [pets().problem])
    dataset.check(cfg.Traces(direct="best-of-n"), [countdown.make_problem((2, 3), 5)])


def test_a_model_is_needed_only_where_a_switch_asks_one():
    plain = cfg.Traces(
        merge_at="root", leave_at="inside", phrases="none", direct_match="tokens", backtrack_weights=(1.0, 2.0)
    )
    assert not dataset.needs_model(plain)
    for change in ({"clone": "model"}, {"phrases": "model"}, {"self_evaluation": 1}, {"direct": "best-of-n"}):
        assert dataset.needs_model(cfg.Traces(**change))


def test_the_stage_asks_a_real_model_through_the_runs_prompts(tmp_path):
    """A tiny Llama of random weights: what it writes is noise, but each call is a real one."""
    short = {"evaluate": "{{ problem }}{{ solution }}", "rewrite": "{{ problem }}{{ solution }}{{ step }}"}
    for name, text in short.items():
        (tmp_path / f"{name}.txt").write_text(text)
    config = tiny_config(vocab_size=len(TOKENIZER), n_layers=1, max_positions=320)
    run = pipeline.Run(cfg.parse({
        "out": str(tmp_path / "run"), "sampler": {"slots": 1, "block": 256},
        "traces": {"self_evaluation": 1, "clone": "model", "self_evaluation_tokens": 8, "clone_retries": 0},
        "prompts": {name: str(tmp_path / f"{name}.txt") for name in short},
    }))  # fmt: skip
    llama.save(run.folder / "base" / "model", config, tiny_params(config), TOKENIZER)
    Shards(run.folder / "search", "trees").write(0, [pets().record()])
    for parent in ("base", "search"):
        storage.write_manifest(run.folder / parent, parent, run.digest, [], 0.0)
    run.execute("traces")
    counts = json.loads((tmp_path / "run" / "traces" / "counts.json").read_text())
    assert (counts["self-evaluation"]["judged"], counts["self-evaluation"]["judgements unread"]) == (2, 2)
    assert counts["self-evaluation"]["trees without any left"] == 1 and counts["ASTRO"]["examples"] == 0
    who = Author(run.policy("base"), run.verifier, run.prompts)
    (record,) = dataset._make([pets()], cfg.Traces(clone="model", clone_tokens=8, search_examples=0), 0, who)
    for e in record["astro"] + record["direct"]:
        assert e["rewrites"]["pieces"] >= 2 and sum(e["rewrites"].values()) > e["rewrites"]["pieces"]
        assert verify(pets().problem, e["response"], True).correct
