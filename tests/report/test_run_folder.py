"""The files of a run: checked, and read while a stage is still running."""

import json
import math

import pytest
from fake_run import dump, dump_lines, fake_results

from astro_jax.errors import AstroError
from astro_jax.report import run_folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("models"), r"results\.json: models is missing: run the evaluation again"),
        (lambda r: r["models"]["base"].pop("greedy"), r"models\.base\.greedy is missing"),
        (lambda r: r["models"].update(base=3), r"models\.base must be an object, found 3"),
        (lambda r: r["models"]["base"]["pass@1"].update(mean=63.7), "less than or equal to 1, found 63.7"),
        (lambda r: r["models"]["base"]["pass@1"].update(low=-0.1), "greater than or equal to 0, found -0.1"),
        (
            lambda r: r["models"]["base"]["pass@1"].update(n=True),
            r"base\.pass@1\.n must be a valid integer, found True",
        ),
        (lambda r: r["models"]["base"].update(mean_tokens=None), "mean_tokens must be a valid number, found None"),
        (lambda r: r["models"]["base"].update(mean_tokens=math.inf), "mean_tokens must be a finite number, found inf"),
        (lambda r: r["models"]["direct-rl"]["maj"].pop("k"), r"direct-rl\.maj\.k is missing"),
    ],
)
def test_bad_results_are_one_clear_line(tmp_path, change, message):
    fake_results(tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    change(results)
    dump(tmp_path / "results.json", results)
    with pytest.raises(AstroError, match=message) as e:
        run_folder.read(tmp_path)
    assert "\n" not in str(e.value)


def test_bad_manifest_is_one_clear_line(tmp_path):
    dump(tmp_path / "search" / "manifest.json", {"stage": "search", "digest": "a", "parents": [], "wall_s": "long"})
    with pytest.raises(AstroError, match=r"search/manifest\.json: wall_s must be a valid number, found 'long': remove"):
        run_folder.read(tmp_path)


def test_bad_json_is_an_error_but_a_torn_last_line_is_not(tmp_path):
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(AstroError, match=r"results\.json: not valid JSON"):
        run_folder.read(tmp_path)
    (tmp_path / "results.json").unlink()
    (tmp_path / "astro-rl").mkdir()
    metrics = tmp_path / "astro-rl" / "metrics.jsonl"
    metrics.write_text('{"step": 0, "solve_rate": 0.5}\n{"step": 1, "so')  # killed while it wrote
    assert run_folder.read(tmp_path).metrics["astro-rl"] == [{"step": 0, "solve_rate": 0.5}]
    metrics.write_text('{"step": 0, "so\n{"step": 1, "solve_rate": 0.5}\n')
    with pytest.raises(AstroError, match=r"metrics\.jsonl, line 1: not valid JSON"):
        run_folder.read(tmp_path)


def test_folder_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(AstroError, match="no such run folder"):
        run_folder.read(tmp_path / "nowhere")


def test_folder_of_an_evaluation_is_named_with_the_command_that_compares_it(tmp_path):
    dump(tmp_path / "results.json", {"model": "m", "settings": {}, "suites": {}})
    with pytest.raises(AstroError, match="astro compare --pool"):
        run_folder.read(tmp_path)


def test_of_a_repeated_step_the_last_row_counts(tmp_path):
    rows = [{"step": 0, "solve_rate": 0.1}, {"step": 1, "solve_rate": 0.2}, {"step": 1, "solve_rate": 0.3}]
    dump_lines(tmp_path / "astro-rl" / "metrics.jsonl", [*rows[1:], rows[0]])
    assert run_folder.read(tmp_path).metrics["astro-rl"] == [rows[0], rows[2]]


def test_manifests_are_in_the_order_of_the_pipeline(tmp_path):
    for stage in ("extra", "eval/base", "difficulty", "search", "base"):
        manifest = {"stage": stage, "digest": "a", "parents": [], "wall_s": 1.5, "versions": {}}
        dump(tmp_path / stage / "manifest.json", manifest)
    assert list(run_folder.read(tmp_path).manifests) == ["base", "search", "difficulty", "eval/base", "extra"]
