"""The problems of a run: one source, split, decontaminated, and shown by `astro problems`."""

import json
from collections import Counter

import pytest
from jsonl_file import write

from astro_jax import cli
from astro_jax import config as cfg
from astro_jax.errors import AstroError
from astro_jax.problems import source


@pytest.mark.parametrize("sources", [{"path": "p", "dataset": "d"}, {"path": "p", "gym": {"task": "chain_sum"}}])
def test_two_sources_are_refused(sources):
    with pytest.raises(AstroError, match="set one of path, dataset and gym"):
        cfg.parse({"problems": sources})


def test_each_source_is_a_key_of_the_config():
    assert set(source.SOURCES) <= set(cfg.Problems.model_fields)
    assert not source.has_source(cfg.Problems())


def test_gym_tasks_are_one_source_with_each_text_once():
    """The problems of two tasks are those that each task gives alone. A task that is listed twice adds none."""
    pytest.importorskip("reasoning_gym")
    tasks = [{"task": "chain_sum", "size": 30}, {"task": "gcd", "size": 20}]
    c = cfg.parse({"problems": {"gym": [*tasks, tasks[0]], "search": 5, "rl": 5, "eval": 5}})
    problems = source.load(c.problems, 0).problems
    alone = [p for t in tasks for p in source.load(cfg.parse({"problems": {"gym": t}}).problems, 0).problems]
    assert sorted(p.id for p in problems) == sorted(p.id for p in alone)
    description = source.describe(c)
    assert description["source"].startswith("reasoning-gym chain_sum, gcd")
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


def test_problems_command_shows_what_a_run_draws(tmp_path, capsys):
    records = [{"problem": f"Find the {i}-th one.", "answer": f"x^{i % 90}"} for i in range(99)]
    path = write(tmp_path / "p.jsonl", *records, {"problem": "And this?", "answer": "\\frac{1}"})
    config = tmp_path / "c.yaml"
    config.write_text(
        f"problems: {{path: {path}, task: math, search: 20, rl: 20, eval: 5, overlap_threshold: 1}}\n"
        "verify: {num_workers: 1}\n"
    )
    assert cli.main(["problems", str(config), "--json"]) == 0
    description = json.loads(capsys.readouterr().out)
    assert description["read"] == 100 and description["task"] == "math" and len(description["samples"]) == 3
    assert description["answers compared as text"] == {"count": 1, "first": ["\\frac{1}"]}
    assert "answers compared as text  count 1" in source.format_description(description)
    assert cli.main(["problems", str(config), "problems.search=500"]) == 2
    assert "500 asked for, the source has" in capsys.readouterr().err
    assert cli.main(["problems", "configs/quickstart.yaml"]) == 2
