"""What `astro problems` shows."""

import json

from jsonl_file import write

from astro_jax import cli
from astro_jax.problems.description import format_description


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
    assert "answers compared as text  count 1" in format_description(description)
    assert cli.main(["problems", str(config), "problems.search=500"]) == 2
    assert "500 asked for, the source has" in capsys.readouterr().err
    assert cli.main(["problems", "configs/quickstart.yaml"]) == 2


def test_too_few_problems_after_decontamination_are_not_blamed_on_the_source(tmp_path, capsys):
    text = "A box holds red and blue jars in rows of six, and somebody takes {} of them away. How many are left?"
    path = write(tmp_path / "p.jsonl", *({"problem": text.format(i), "answer": i} for i in range(40)))
    config = tmp_path / "c.yaml"
    config.write_text(f"problems: {{path: {path}, search: 9, rl: 9, eval: 1, held_out: 0.3}}\n")
    assert cli.main(["problems", str(config)]) == 2
    error = capsys.readouterr().err
    assert "9 asked for, the source has 0 for search and RL after decontamination, which dropped" in error
    assert "raise problems.overlap_threshold" in error


def test_problems_command_counts_each_source(tmp_path, capsys):
    a = write(tmp_path / "a.jsonl", *({"problem": f"Add {i} and {i}.", "answer": 2 * i} for i in range(60)))
    b = write(tmp_path / "b.jsonl", *({"problem": f"Double {i}.", "answer": 2 * i} for i in range(50)))
    test = write(tmp_path / "test.jsonl", *({"problem": f"Half of {i}?", "answer": i / 2} for i in range(9)))
    config = tmp_path / "c.yaml"
    config.write_text(
        "problems:\n"
        "  sources:\n"
        f"    - {{path: {a}, search: 20, rl: 10}}\n"
        f"    - {{path: {b}, search: 5, rl: 30}}\n"
        f"  evaluation: [{{path: {test}, eval: 8}}]\n"
        "  held_out: 0\n"
    )
    assert cli.main(["problems", str(config), "--json"]) == 0
    description = json.loads(capsys.readouterr().out)
    names = [f"1: {a}", f"2: {b}"]
    assert description["source"] == ", ".join(names) and list(description["sources"]) == names
    assert description["drawn"] == {
        "search": dict(zip(names, [20, 5], strict=True)),
        "rl": dict(zip(names, [10, 30], strict=True)),
    }
    assert description["evaluation sets"] == {str(test): {"read": 9, "skipped": {}}}
    assert description["RL prompts that are searched"] > 0
    assert cli.main(["problems", str(config), "problems.rl_prompts=disjoint"]) == 0
    text = capsys.readouterr().out
    assert f"drawn search  1: {a} 20, 2: {b} 5\n" in text and "RL prompts that are searched  0\n" in text
    assert f"sources 1: {a}  read 60, held out 0, for training 60\n" in text
