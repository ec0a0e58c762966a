"""The examples of docs/python-api.md run as they stand on the page."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import pytest

from astro_jax import api, countdown
from astro_jax import config as cfg
from astro_jax.errors import AstroError
from astro_jax.policy import Policy

PAGE = (Path(__file__).parents[1] / "docs" / "python-api.md").read_text()
EXAMPLES = dict(re.findall(r"^## (.*?)\n.*?^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))


def run(name, folder, monkeypatch, capsys):
    """Run one example in a folder of its own. Return what it printed, and its variables."""
    monkeypatch.chdir(folder)
    variables = {}
    exec(compile(EXAMPLES[name], f"docs/python-api.md, {name}", "exec"), variables)
    return capsys.readouterr().out, variables


def test_the_page_has_five_examples_of_less_than_twenty_lines():
    assert len(EXAMPLES) == 5 == PAGE.count("```python")
    assert all(code.count("\n") < 20 for code in EXAMPLES.values())


def test_load_a_model(tmp_path, monkeypatch, capsys):
    printed, variables = run("Load a model", tmp_path, monkeypatch, capsys)
    assert variables["logits"].shape == (1, variables["tokens"].shape[1], variables["config"].vocab_size)
    assert printed.startswith("4 (1, ")


def test_generate_text(tmp_path, monkeypatch, capsys):
    printed, _ = run("Generate text", tmp_path, monkeypatch, capsys)
    assert len(re.findall(r"^(?:stop|length) -\d", printed, re.MULTILINE)) == 4 and "left" in printed


@pytest.mark.slow
def test_search_one_problem(tmp_path, monkeypatch, capsys):
    printed, variables = run("Search one problem", tmp_path, monkeypatch, capsys)
    lines, tree = printed.splitlines(), variables["tree"]
    assert lines[0] == "Let us make 29 from 11 6 3." and len(lines) == len(tree.nodes) + 1
    first = tree.nodes[tree.nodes[0].children[0]]
    stats = f"  N={first.visits} Q={first.value:.2f} P={first.prior:.2f}  "
    assert lines[1] == f"{stats}{first.text.strip()}" + ("  (wrong)" if first.terminal else "")
    assert sum(line.endswith(("(correct)", "(wrong)")) for line in lines) == sum(n.terminal for n in tree.nodes)
    assert lines[-1] == f"{len(tree.terminals(correct=True))} correct terminals"


@pytest.mark.slow
def test_fine_tune_on_your_own_data(tmp_path, monkeypatch, capsys):
    printed, _ = run("Fine-tune on your own data", tmp_path, monkeypatch, capsys)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "my-model" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.5 * losses[0] and printed.startswith(f"{tmp_path}/my-model/model ")


def test_evaluate_a_model(tmp_path, monkeypatch, capsys):
    printed, variables = run("Evaluate a model", tmp_path, monkeypatch, capsys)
    assert re.fullmatch(r"greedy 0\.\d\d \[0\.\d\d, 0\.\d\d\] of 16 problems\n", printed), printed
    answers = [json.loads(line) for line in (tmp_path / "answers" / "answers-00000.jsonl").read_text().splitlines()]
    assert [a["problem_id"] for a in answers] == [p.id for p in variables["problems"]]


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_names_its_code(name):
    section = PAGE.partition(f"## {name}\n")[2].partition("\n## ")[0]
    for path in re.findall(r"`(astro_jax/[\w/.]+)`", section.partition("Code: ")[2]):
        assert (Path(__file__).parents[1] / path).exists(), path


def test_a_folder_with_results_of_other_inputs_is_refused(tmp_path):
    policy = Policy.load("countdown-base", max_num_seqs=4)
    problems, c = countdown.problems(countdown.Game(), 3, seed=0, held_out=True), cfg.Eval(max_tokens=4)
    results = api.evaluate(policy, problems, tmp_path / "answers", c)
    assert api.evaluate(policy, problems, tmp_path / "answers", c) == results
    other = dataclasses.replace(policy, params=jax.tree.map(lambda x: 2 * x, policy.params))
    for inputs, changed in (((other, problems), "model"), ((policy, problems[:2]), "problems")):
        with pytest.raises(AstroError, match=rf"answers: its results have other inputs \({changed}\)"):
            api.evaluate(*inputs, tmp_path / "answers", c)
