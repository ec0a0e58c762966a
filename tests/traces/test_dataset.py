"""The SFT sets: sizes, contents, counts and bytes."""

import json
import weakref
from collections import Counter

import pytest
from etils import epath
from traces_fixtures import TREES, VALID, num_wrong_answers, pets_tree, write_dataset

from astro_jax import config as cfg
from astro_jax import countdown
from astro_jax.errors import AstroError
from astro_jax.phrases import CORRECT, DOUBT
from astro_jax.storage import Shards
from astro_jax.traces import dataset
from astro_jax.verify import verify


@pytest.mark.parametrize("direct_examples, search_examples, largest_k", [(1, 3, 2), (2, 1, 1), (0, 4, 3), (3, 0, 2)])
def test_a_tree_gives_the_configured_number_of_examples(tmp_path, direct_examples, search_examples, largest_k):
    sizes = dict(direct_examples=direct_examples, search_examples=search_examples, max_backtracks=largest_k)
    _, astro, direct = write_dataset(tmp_path, **sizes)
    for tree in TREES:
        ks = [e["k"] for e in astro if e["problem_id"] == tree.problem.id]
        possible = min(largest_k, num_wrong_answers(tree))
        assert ks.count(0) == direct_examples * (tree in VALID)
        assert len(ks) - ks.count(0) == search_examples * (tree in VALID and possible > 0)
        assert all(k <= possible for k in ks)
    if search_examples:
        assert {e["k"] for e in astro if e["k"]} == set(range(1, largest_k + 1))
    assert all(e["kind"] == ("search" if e["k"] else "direct") for e in astro)
    assert [e["problem_id"] for e in direct] == [e["problem_id"] for e in astro]
    assert all(e["kind"] == "direct" and e["k"] == 0 for e in direct)


def test_the_fields_of_an_example_agree_with_each_other_and_with_the_verifier(tmp_path):
    _, astro, direct = write_dataset(tmp_path, min_value_reflect=0.5)
    problems = {t.problem.id: t.problem for t in TREES}
    for e in astro + direct:
        problem = problems[e["problem_id"]]
        verdict = verify(problem, e["response"], True)
        assert verdict.correct and verdict.valid and verdict.backtracks == e["k"]
        assert e["prompt"] == problem.prompt and e["response"] == "".join(s["text"] for s in e["segments"])
        assert e["nodes"] == [s["node"] for s in e["segments"] if s["kind"] == "step"]
    assert all(s["kind"] == "step" for e in direct for s in e["segments"])
    assert all(e["response"].endswith(DOUBT + CORRECT) for e in astro)


def test_counts_equal_a_recount(tmp_path):
    counts, astro, direct = write_dataset(tmp_path)
    assert json.loads((tmp_path / "traces" / "counts.json").read_text()) == counts
    assert (counts["trees"], counts["valid trees"]) == (60, len(VALID)) and 10 < len(VALID) < 60
    assert counts["yield"] == round(len(VALID) / 60, 4)
    for name, examples in (("ASTRO", astro), ("Direct", direct)):
        search = [e for e in examples if e["k"]]
        backtracks = sum(e["response"].count("Let's go back") + e["response"].count("Let's restart") for e in examples)
        assert counts[name] == {
            "examples": len(examples), "direct solutions": len(examples) - len(search),
            "search solutions": len(search), "mean k": round(sum(e["k"] for e in search) / (len(search) or 1), 3),
            "mean backtracks": round(backtracks / len(examples), 3),
            "distinct": len(Counter((e["problem_id"], e["response"]) for e in examples)),
        }  # fmt: skip
    assert counts["ASTRO"]["search solutions"] and not counts["Direct"]["search solutions"]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_dataset(tmp_path / name, seed)
    a, b, c = ([(tmp_path / n / "traces" / f).read_bytes() for f in ("astro.jsonl", "direct.jsonl", "counts.json")]
               for n in "abc")  # fmt: skip
    assert a == b and a[0] != c[0] and a[1] != c[1]


def test_at_most_so_many_traces_are_a_choice_of_the_same_problems_for_both(tmp_path):
    _, astro, direct = write_dataset(tmp_path / "all")
    _, few_astro, few_direct = write_dataset(tmp_path / "few", max_examples=20)
    for few, all_examples in ((few_astro, astro), (few_direct, direct)):
        rest = iter(all_examples)
        assert len(few) == 20 and all(example in rest for example in few)  # in the same order
        assert few != all_examples[:20]
    assert [e["problem_id"] for e in few_astro] == [e["problem_id"] for e in few_direct]
    assert write_dataset(tmp_path / "same", max_examples=10**6)[1:] == (astro, direct)


class IdentityRecord(dict):
    """A record that a set of weak references can hold."""

    __hash__ = object.__hash__


def test_the_traces_of_earlier_trees_do_not_stay_in_memory(tmp_path, monkeypatch):
    """20,700 trees of 1,000 nodes had 800 MB of traces, and all of them were in memory."""
    alive, most, make_records = weakref.WeakSet(), 0, dataset.make_records

    def watch(*args):
        nonlocal most
        (record,) = make_records(*args)
        most = max(most, len(alive))
        alive.add(record := IdentityRecord(record))
        return [record]

    monkeypatch.setattr(dataset, "make_records", watch)
    counts, *_ = write_dataset(tmp_path)
    assert counts["trees"] == len(TREES) > 20 and most <= 2


def test_a_tree_added_to_the_store_leaves_the_examples_of_the_others_unchanged(tmp_path):
    _, all_examples, _ = write_dataset(tmp_path)
    store = Shards(epath.Path(tmp_path) / "few", "trees")
    store.write(0, (t.record() for t in TREES[30:]))
    dataset.run(epath.Path(tmp_path) / "less", store, cfg.Traces(), 0)
    few = [json.loads(line) for line in (tmp_path / "less" / "astro.jsonl").read_text().splitlines()]
    assert all_examples[-len(few) :] == few and len(few) < len(all_examples)


@pytest.mark.parametrize("changes", [{"clone": "model"}, {"phrases": "model"}, {"self_evaluation": 1}])
def test_countdown_is_not_judged_or_written_by_a_model(changes):
    with pytest.raises(AstroError, match=r"Countdown's language has no words.*problems\.path"):
        dataset.check(cfg.Traces(**changes), [countdown.make_problem((2, 3), 5)])
    dataset.check(cfg.Traces(**changes), [pets_tree().problem])
    dataset.check(cfg.Traces(direct="best-of-n"), [countdown.make_problem((2, 3), 5)])


def test_a_model_is_needed_only_where_a_switch_asks_one():
    templates_only = cfg.Traces(
        merge_at="root", leave_at="inside", phrases="none", direct_match="tokens", backtrack_weights=(1.0, 2.0)
    )
    assert not dataset.needs_model(templates_only)
    for change in ({"clone": "model"}, {"phrases": "model"}, {"self_evaluation": 1}, {"direct": "best-of-n"}):
        assert dataset.needs_model(cfg.Traces(**change))
