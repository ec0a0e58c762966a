"""The problems of a run: read from one source or several, split and decontaminated."""

from collections import Counter

import pytest
from jsonl_file import write

from astro_jax import config as cfg
from astro_jax.errors import AstroError
from astro_jax.problems import source
from astro_jax.problems.description import describe


@pytest.mark.parametrize("sources", [{"path": "p", "dataset": "d"}, {"path": "p", "gym": {"task": "chain_sum"}}])
def test_two_sources_are_refused(sources):
    with pytest.raises(AstroError, match="set one of path, dataset, gym"):
        cfg.parse({"problems": sources})


def test_each_source_is_a_key_of_the_config():
    assert tuple(source.SOURCES) == cfg.SOURCE_KINDS and set(source.SOURCES) <= set(cfg.Source.model_fields)
    assert not source.has_source(cfg.Problems())


def test_gym_tasks_are_one_source_with_each_text_once():
    """The problems of two tasks are those that each task gives alone. A task that is listed twice adds none."""
    pytest.importorskip("reasoning_gym")
    tasks = [{"task": "chain_sum", "size": 30}, {"task": "gcd", "size": 20}]
    c = cfg.parse({"problems": {"gym": [*tasks, tasks[0]], "search": 5, "rl": 5, "eval": 5}})
    problems = source.load(c.problems, 0).problems
    alone = [p for t in tasks for p in source.load(cfg.parse({"problems": {"gym": t}}).problems, 0).problems]
    assert sorted(p.id for p in problems) == sorted(p.id for p in alone)
    description = describe(c)
    assert description["source"] == "reasoning-gym chain_sum, gcd, chain_sum"
    assert description["of tasks"] == Counter(p.meta["task"] for p in problems) and len(description["of tasks"]) == 2


def test_evaluation_set_needs_no_answers(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    path = str(write(tmp_path / "test.jsonl", {"problem": "Prove it.", "answer": "proof"}, {"problem": "And this?"}))
    assert source._texts(path) == ["Prove it.", "And this?"]
    calls = []

    def load_dataset(name, subset, split):
        calls.append((name, subset, split))
        return [{"question": "Why?"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert source._texts("org/aime:train") == source._texts("org/aime") == ["Why?"]
    assert calls == [("org/aime", None, "train"), ("org/aime", None, "test")]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, split: [{"text": "Why?"}])
    with pytest.raises(AstroError, match="no column `problem` or `question` of texts"):
        source._texts("org/aime")


def test_training_has_no_problem_of_the_held_out_side_or_of_an_evaluation_set(tmp_path):
    shared = "In how many ways can seven people sit around a table if two of them will not sit together?"
    records = [{"problem": f"What is {i} times {i * i} plus the number {7 * i}?", "answer": i} for i in range(200)]
    path = str(write(tmp_path / "p.jsonl", *records, {"problem": shared, "answer": 1}))
    evaluation_set = str(write(tmp_path / "test.jsonl", {"problem": shared + " Find it.", "answer": "480"}))
    plain = source.load(cfg.Problems(path=path), 0)
    cleaned = source.load(cfg.Problems(path=path, decontaminate=(evaluation_set,)), 0)
    removed = {p.prompt for p in plain.training} - {p.prompt for p in cleaned.training}
    assert removed == {shared} or shared in {p.prompt for p in plain.evaluation}
    counts = cleaned.counts
    assert counts["read"] == 201
    assert (
        counts["for training"]
        == len(cleaned.training)
        == 201 - len(cleaned.evaluation) - sum(counts["dropped"].values())
    )


# ---- Several sources, and evaluation sets


def records(texts, answer="1"):
    return [{"problem": text, "answer": answer} for text in texts]


def three_sources(folder):
    """Three files that share some texts: 40, 30 and 20 problems, of which 10 and 5 are in an earlier file."""
    texts = [f"How many legs have {i} cats in house {i * i}?" for i in range(75)]
    a = write(folder / "a.jsonl", *records(texts[:40]))
    b = write(folder / "b.jsonl", *records([t.upper() for t in texts[30:60]], answer="x^2"))  # capitals do not matter
    c = write(folder / "c.jsonl", *records(texts[55:75]))
    return [{"path": str(a)}, {"path": str(b), "task": "math"}, {"path": str(c)}]


def test_a_text_of_several_sources_counts_once_for_the_first_of_them(tmp_path):
    listed = three_sources(tmp_path)
    problems = source.load(cfg.Problems(sources=listed, overlap_threshold=1), 0)
    assert len({p.prompt.lower() for p in problems.problems}) == len(problems.problems) == 75
    assert [sum(p.task == task for p in problems.problems) for task in ("number", "math")] == [55, 20]
    names = [f"{i}: {entry['path']}" for i, entry in enumerate(listed, 1)]
    by_source = problems.counts["sources"]
    assert list(by_source) == names and list(problems.training_groups) == names
    assert [by_source[name]["read"] for name in names] == [40, 20, 15]
    assert [by_source[name]["skipped"]["a text of an earlier source"] for name in names] == [0, 10, 5]
    for key in ("read", "held out", "for training"):
        assert problems.counts[key] == sum(counts[key] for counts in by_source.values())
    assert problems.counts["skipped"] == {"a text of an earlier source": 15}
    assert problems.counts["read"] == problems.counts["held out"] + problems.counts["for training"]


def test_a_list_of_one_source_holds_the_problems_of_that_source(tmp_path):
    path = three_sources(tmp_path)[0]["path"]
    single, listed = (source.load(cfg.Problems(**keys), 0) for keys in ({"path": path}, {"sources": [{"path": path}]}))
    assert single == listed


def test_sources_without_a_task_have_the_task_of_the_section(tmp_path):
    path = str(write(tmp_path / "a.jsonl", *records(["Find x.", "Find y."], answer="\\sqrt{2}")))
    problems = source.load(cfg.Problems(task="math", sources=[{"path": path}]), 0).problems
    assert {p.task for p in problems} == {"math"}


def test_training_overlaps_with_no_evaluation_set_though_nothing_is_held_out(tmp_path):
    texts = [f"What is {i} times {i * i} plus the number {7 * i}?" for i in range(100)]
    train = str(write(tmp_path / "train.jsonl", *records(texts)))
    test = str(write(tmp_path / "test.jsonl", *records(t.replace("What", "what") + "!" for t in texts[90:])))
    c = cfg.Problems(path=train, evaluation=[{"path": test}], held_out=0, overlap_threshold=1)
    problems = source.load(c, 0)
    assert {p.prompt for p in problems.training} == set(texts[:90])
    assert [p.prompt for p in problems.evaluation] == [f"w{t[1:]}!" for t in texts[90:]]
    assert problems.counts["dropped"]["exact"] == 10 and problems.counts["for training"] == 90
    assert problems.counts["evaluation sets"] == {test: {"read": 10, "skipped": {}}}
    held_out = source.load(c.model_copy(update={"held_out": 0.3}), 0)  # a share may be left out all the same
    assert len(held_out.evaluation) == 10 and 0 < len(held_out.training) < 90


def test_evaluation_set_of_a_gym_task_has_other_problems_than_training():
    pytest.importorskip("reasoning_gym")
    task = {"gym": {"task": "chain_sum", "size": 300}}
    problems = source.load(cfg.Problems(sources=[task], evaluation=[task], held_out=0), 0)
    prompts = [{p.prompt for p in side} for side in (problems.training, problems.evaluation)]
    assert not prompts[0] & prompts[1] and len(problems.training) > 250 and len(problems.evaluation) > 250


def test_gym_problems_that_an_evaluation_set_holds_are_dropped(tmp_path):
    pytest.importorskip("reasoning_gym")
    gym = {"task": "chain_sum", "size": 30}
    prompts = [p.prompt for p in source.load(cfg.Problems(gym=gym), 0).training[:3]]
    test = str(write(tmp_path / "test.jsonl", *records(prompts)))
    problems = source.load(cfg.Problems(gym=gym, decontaminate=[test]), 0)
    assert not {p.prompt for p in problems.training} & set(prompts) and problems.counts["dropped"] == {"exact": 3}
