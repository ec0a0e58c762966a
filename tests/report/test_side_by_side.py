"""Several runs in one page, and `astro compare`."""

import json

import pytest
from fake_run import dump, fake_run
from test_report import Page

from astro_jax import report
from astro_jax.cli import main
from astro_jax.report import side_by_side


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs: the second has another learning rate and other data, and gets every fourth answer of ASTRO-RL wrong."""
    folder = tmp_path_factory.mktemp("runs")
    a, b = (fake_run(folder / name / "seed-0", trees=4, held_out=40) for name in ("default", "other"))
    config = json.loads((b / "config.json").read_text())
    config["config"] |= {"grpo": {"max_steps": 100, "learning_rate": 1e-6}, "out": "runs/other"}
    dump(b / "config.json", config)
    dump(b / "traces/manifest.json", json.loads((b / "traces/manifest.json").read_text()) | {"digest": "another"})
    path = b / "eval/astro-rl/answers-00001.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows[::4]:
        row["sampled"]["correct"] = False
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return a, b


@pytest.fixture(scope="module")
def page(runs):
    return Page(report.build(runs))


def test_runs_are_compared_on_the_same_problems(runs, page):
    rows = {row["model"]: row for row in page.data["compared"]["models"]}
    solved = [
        {r["problem_id"]: r["sampled"]["correct"] for f in sorted((run / "eval/astro-rl").glob("answers-*"))
         for r in map(json.loads, f.read_text().splitlines())} for run in runs
    ]  # fmt: skip
    expected = sum(solved[1][i] - solved[0][i] for i in solved[0]) / 40
    assert expected < 0 and rows["astro-rl"]["differences"][0] == {}
    assert rows["astro-rl"]["differences"][1]["difference"] == pytest.approx(expected, abs=1e-4)
    assert rows["astro-rl"]["differences"][1]["n"] == 40
    assert rows["base"]["differences"][1]["difference"] == 0


def test_settings_and_stages_that_differ_are_named(page):
    settings = {row["key"]: row["values"] for row in page.data["compared"]["settings"]}
    assert settings == {"grpo.num_generations": [8, None], "grpo.learning_rate": [None, 1e-6]}
    stages = {row["stage"]: row["digests"] for row in page.data["compared"]["stages"]}
    assert stages["traces"] == ["9f2c4e7a1b3d5f60", "another"] and len(set(stages["search"])) == 1


def test_headline_names_the_runs_and_the_paired_difference(page):
    assert "ASTRO runs default/seed-0, other/seed-0" in page.text
    assert (
        "ASTRO-RL solves 63.7% in default/seed-0 (60.8 to 66.6%) and 63.7% in other/seed-0 (60.8 to 66.6%; -"
        in page.text
    )
    shown = [[p["id"] for p in run["held_out"]["problems"]] for run in page.data["runs"]]
    assert shown[0] == shown[1]


def test_names_are_as_long_as_needed():
    assert side_by_side.names(["runs/a", "runs/b"]) == ["a", "b"]
    assert side_by_side.names(["x/default/seed-0", "x/merge/seed-0"]) == ["default/seed-0", "merge/seed-0"]
    assert side_by_side.names(["one"]) == ["one"]


def test_compare_writes_the_page_and_prints_tables(runs, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert main(["compare", *map(str, runs), "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "| ASTRO-RL | other/seed-0 | 63.7% (60.8 to 66.6%) | -" in printed.out and str(out) in printed.err
    assert "| grpo.learning_rate | null | 1e-06 |" in printed.out
    assert out.read_text() == report.build(runs)
    assert main(["compare", *map(str, runs), "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"] == ["default/seed-0", "other/seed-0"]


@pytest.mark.parametrize("count", [1, 2])
def test_one_run_is_not_compared_with_itself(runs, count, tmp_path, capsys):
    assert main(["compare", *[str(runs[0])] * count, "--out", str(tmp_path / "page.html")]) == 2
    assert "name two different runs or more" in capsys.readouterr().err and not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("words", [("show", "empty"), ("compare", "empty", "other")])
def test_a_folder_without_a_run_is_refused(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "other"):
        (tmp_path / name).mkdir()
    assert main([*words]) == 2
    assert "empty: holds no run; name the folder that `out` names" in capsys.readouterr().err
    assert not (tmp_path / "compare.html").exists()
