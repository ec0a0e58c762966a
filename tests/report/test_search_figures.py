"""Caps on backtracks and slopes within problems in the report: counts by hand, and answers that cannot be used."""

import pytest
from etils import epath
from fake_run import dump_lines

from astro_jax.evaluate import responses
from astro_jax.evaluate.behaviour import Behaviour
from astro_jax.report import run_folder
from astro_jax.report.search_figures import search_figures

pytest.importorskip("pyarrow", reason="extra `hub` (pyarrow) is not installed")

R, W = True, False
# By problem the verdict of each attempt of each answer.
SEARCH = {"a": [(W, R), (W, W, R)], "b": [(R,), (W, W, W)], "c": [(R, W), (W, W)]}


def write(run, name, answers):
    """The first answer to each problem as that of the held-out problems, and all as those of a suite."""
    (held_out, rows) = ([], [])
    for problem, group in answers.items():
        for i, rights in enumerate(group):
            b = Behaviour(0, len(rights) - 1, 0, len(rights) - 1, rights, 0)
            error = None if rights[-1] else "planning"
            facts = {"correct": rights[-1], "tokens": 10 * len(rights), "truncated": False, "error": error}
            rows.append({"problem_id": problem, "sample": i, **facts, "forced_at": [], **b.row()})
            if not i:
                held_out.append({"problem_id": problem, "sampled": facts | {"behaviour": vars(b)}})
    dump_lines(run / f"eval/{name}/answers-00000.jsonl", held_out)
    suite = epath.Path(run) / f"eval/{name}-suites/games"
    suite.mkdir(parents=True)
    responses.write_parquet(suite / "answers.parquet", rows)
    return suite


def figures(run):
    return search_figures(run_folder.read(run))


def means(rows):
    return {name: figure["mean"] for name, figure in rows.items()}


def test_caps_and_slopes_equal_counts_by_hand(tmp_path):
    write(tmp_path, "astro-sft", SEARCH)
    write(tmp_path, "base", {i: [(i == "b",)] * 2 for i in "abc"})
    sets = figures(tmp_path)
    assert set(sets) == {"held-out", "games"} and set(sets["games"]) == {"astro-sft", "base"}
    limits, slopes = sets["games"]["astro-sft"]["limits"], sets["games"]["astro-sft"]["slopes"]
    right = {"0": 2 / 6, "1": 2 / 6, "2": 3 / 6, "any": 3 / 6} | dict.fromkeys("3456", 3 / 6)
    assert means(limits) == pytest.approx(right, abs=1e-5)
    assert all(f["low"] <= f["mean"] <= f["high"] and f["n"] == 3 for f in limits.values())
    # Backtracks vary by 1 in "a", both right; by 2 in "b", where more are wrong; and not in "c".
    assert means(slopes) == pytest.approx({"a backtrack": -1.0 / 2.5, "10 tokens": -1.0 / 2.5}, abs=1e-5)
    # The first answers alone, in which no two are to the same problem.
    assert sets["held-out"]["astro-sft"]["slopes"] == {}
    assert means(sets["held-out"]["astro-sft"]["limits"])["1"] == pytest.approx(2 / 3, abs=1e-5)
    # A model that never goes back.
    assert means(sets["games"]["base"]["limits"]) == {"any": pytest.approx(1 / 3, abs=1e-5)}


def test_answers_that_cannot_be_used_are_left_out_and_named(tmp_path, capsys):
    assert figures(tmp_path) == {}
    suite = write(tmp_path, "astro-rl", SEARCH)
    old = {"problem_id": "a", "sampled": {"correct": True, "text": "", "truncated": False, "tokens": 3}}
    dump_lines(tmp_path / "eval/astro-rl/answers-00001.jsonl", [old])
    responses.write_parquet(suite / "answers.parquet", [{"problem_id": "a", "error": None}])
    assert figures(tmp_path) == {}
    assert "the report leaves out the caps and slopes of a suite" in capsys.readouterr().err
