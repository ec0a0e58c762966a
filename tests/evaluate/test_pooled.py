"""Models pooled over seeds: figures against counts by hand, what is paired with what, and folders that do not fit."""

import dataclasses
import json

import pytest
from etils import epath

from astro_jax.cli import main
from astro_jax.errors import AstroError
from astro_jax.evaluate import pooled, responses
from astro_jax.evaluate.behaviour import Behaviour
from astro_jax.report import pooled_tables

pytest.importorskip("pyarrow", reason="extra `hub` (pyarrow) is not installed")

# By seed and problem two answers: the verdict of each attempt, and the error class of the answer.
R, W, N = True, False, None
SEARCH = (
    {"a": [((W, R), None), ((W, W, R), None)], "b": [((R,), None), ((R, W), "planning")],
     "c": [((W,), "planning")] * 2},
    {"a": [((W, R), None), ((W, N, W), "cut off")], "b": [((R, R), None)] * 2, "c": [((W, W), "arithmetic")] * 2},
)  # fmt: skip
DIRECT = ({i: [((i == "b",), None if i == "b" else "planning")] * 2 for i in "abc"},) * 2


def row(problem, sample, rights, error, tokens):
    b = Behaviour(len(rights) - 1, len(rights) - 1, 0, len(rights) - 1, rights, 0)
    cut = error == "cut off"
    return {"problem_id": problem, "sample": sample, "tokens": tokens, "truncated": cut, "error": error,
            "correct_strict": not error, **b.row()}  # fmt: skip


def write(folder, model, seed, suite="games"):
    """The folder of `astro eval MODEL --suite`. An answer has 10 tokens an attempt."""
    rows = [
        row(i, sample, rights, error, 10 * len(rights))
        for i, group in seed.items()
        for sample, (rights, error) in enumerate(group)
    ]
    path = epath.Path(folder)
    (path / suite).mkdir(parents=True)
    responses.write_parquet(path / suite / "answers.parquet", rows)
    (path / "results.json").write_text(json.dumps({"model": model}))
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("eval")
    models = {"astro-sft": SEARCH, "direct-sft": DIRECT, "base": DIRECT}
    return [
        write(root / f"{i}-{name}", f"runs/seed-{i}/{name}/model", seed)
        for name, seeds in models.items()
        for i, seed in enumerate(seeds)
    ]


@pytest.fixture(scope="module")
def result(folders):
    return pooled.pool(folders)["games"]


def value(result, model, section, name):
    return result["models"][model]["figures"][section][name]


def test_figures_equal_counts_by_hand(result):
    expected = {
        ("answers", "right"): (6 / 12, [3 / 6, 3 / 6]),
        ("answers", "first attempt right"): (4 / 12, [2 / 6, 2 / 6]),
        ("answers", "go back"): (9 / 12, [3 / 6, 6 / 6]),
        ("answers", "tokens"): (230 / 12, [100 / 6, 130 / 6]),
        ("backtracks", "right before"): (3 / 9, [1 / 4, 2 / 5]),  # two changes of seed 1 are undecided
        ("backtracks", "repair, of wrong attempts"): (3 / 6, [2 / 3, 1 / 3]),
        ("backtracks", "spoil, of right attempts"): (1 / 3, [1 / 1, 0 / 2]),
        ("errors", "planning"): (3 / 12, [3 / 6, 0.0]),
        ("right by attempts", "2"): (4 / 7, [1 / 2, 3 / 5]),
        ("right within so many backtracks", "0"): (4 / 12, [2 / 6, 2 / 6]),
        ("right within so many backtracks", "1"): (5 / 12, [2 / 6, 3 / 6]),
        ("right within so many backtracks", "2"): (6 / 12, [3 / 6, 3 / 6]),
    }
    for (section, name), (mean, seeds) in expected.items():
        figure = value(result, "astro-sft", section, name)
        assert figure["value"] == pytest.approx(mean, abs=1e-5), name
        assert figure["seeds"] == pytest.approx(seeds, abs=1e-5), name
        assert figure["low"] <= figure["value"] <= figure["high"]


def test_slopes_compare_answers_to_the_same_problem(result):
    figure = value(result, "astro-sft", "slopes", "a backtrack")
    # Backtracks vary in three cells: (1 right, 2 right), (0 right, 1 wrong), (1 right, 2 wrong).
    assert figure["value"] == pytest.approx((-0.5 - 0.5) / (0.5 + 0.5 + 0.5), abs=1e-5)
    assert "a backtrack, at equal tokens" not in result["models"]["astro-sft"]["figures"]["slopes"]  # 10 tokens each
    assert result["models"]["base"]["figures"]["slopes"] == {}
    finished = value(result, "astro-sft", "slopes, answers not cut off", "a backtrack")
    assert finished["value"] == pytest.approx(-0.5, abs=1e-5)  # without (1 right, 2 wrong)


def test_models_are_compared_in_pairs(result):
    assert set(result["differences"]) == {"astro-sft - direct-sft", "astro-sft - base", "direct-sft - base"}
    right = result["differences"]["astro-sft - direct-sft"]["right"]
    assert right["value"] == pytest.approx(1 / 2 - 1 / 3, abs=1e-5)
    assert right["seeds"] == pytest.approx([1 / 6, 1 / 6], abs=1e-5)
    hard, easy = (value(result, "astro-sft", "right by difficulty", name) for name in ("none right", "all right"))
    assert (hard["value"], easy["value"]) == (pytest.approx(3 / 8), pytest.approx(3 / 4))


def test_models_of_a_run_are_found(tmp_path):
    run = write(tmp_path / "run/eval/astro-sft-suites", "unused", SEARCH[0]).parent.parent
    (found,) = pooled.find(run)
    assert (found.model, found.suite) == ("astro-sft", "games")
    own = write(tmp_path / "own", "org/name", SEARCH[0])
    assert list(pooled.pool([run, own])["games"]["models"]) == ["astro-sft", "org/name"]


def test_folders_that_do_not_fit_are_refused(tmp_path, folders):
    with pytest.raises(AstroError, match="no answers to a suite; name runs"):
        pooled.pool([epath.Path(tmp_path)])
    other = write(tmp_path / "other", "org/name", {"x": SEARCH[0]["a"], "a": SEARCH[0]["a"]})
    with pytest.raises(AstroError, match="games: the evaluations have 1 problems in common"):
        pooled.pool([folders[0], other])
    old = tmp_path / "old/games"
    old.mkdir(parents=True)
    responses.write_parquet(epath.Path(old / "answers.parquet"), [{"problem_id": "a", "error": None}])
    (old.parent / "results.json").write_text("{}")
    with pytest.raises(AstroError, match="older version; run the same `astro eval` again"):
        pooled.pool([epath.Path(old.parent)])


def test_two_evaluations_of_a_model_with_the_same_seed_are_no_two_seeds(tmp_path):
    first, again, other = (write(tmp_path / name, "org/name", SEARCH[0]) for name in ("first", "again", "other"))
    for path, seed in ((first, 0), (again, 0), (other, 1)):
        settings = {"model": "org/name", "model_digest": "91f9", "seed": seed}
        (path / "games" / responses.SETTINGS).write_text(json.dumps(settings))
    assert pooled.pool([first, other])["games"]["models"]["org/name"]["seeds"] == 2
    with pytest.raises(AstroError, match=r"first/games and .*again/games: the same model, seed and suite"):
        pooled.pool([first, again])


def test_the_command_prints_tables_and_writes_a_page(folders, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["compare", "--pool", *map(str, folders), "--out", str(page)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| figure | Base (2 seeds) | Direct-SFT (2 seeds) | ASTRO-SFT (2 seeds) |")
    right = next(line for line in lines if line.startswith("| answers: right |"))
    assert right.split(" | ")[3].startswith("50.0 [")
    assert any(line.startswith("| ASTRO-SFT - Direct-SFT | right | +16.7 [") for line in lines)
    assert "slopes: a backtrack" in page.read_text()


def test_cells_have_the_units_of_their_figures():
    figure = {"value": 0.123, "low": -0.01, "high": 0.25}
    assert pooled_tables.cell("answers", "right", figure) == "12.3 [-1.0, 25.0]"
    assert pooled_tables.cell("slopes", "a backtrack", figure) == "+12.3 [-1.0, +25.0]"
    assert pooled_tables.cell("answers", "tokens", figure) == "0.12 [-0.01, 0.25]"
    assert pooled_tables.cell("answers", "right", None) == "–"


def test_an_answer_that_must_end_earlier_is_judged_by_its_last_attempt():
    b = Behaviour(0, 3, 0, 3, (False, None, True, False), 0)
    assert [b.right_after(k, correct=False) for k in range(5)] == [False, False, True, False, False]
    assert Behaviour.from_json(b.row()) == b == Behaviour.from_json(dataclasses.asdict(b))
