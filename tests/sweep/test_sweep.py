"""Sweeps: the variants, the stages that run once, and the paired differences with their intervals."""

import itertools
import json
import shutil

import jax
import numpy as np
import pytest
import yaml
from etils import epath
from micro_run import MICRO, files

from astro_jax import cli, pipeline
from astro_jax.errors import AstroError
from astro_jax.sweep import compare, page, variants

jax.devices()  # all eight are there before a run asks for one


def test_a_key_gives_a_variant_of_each_value_and_a_file_gives_one():
    parsed = variants.parse("quickstart", ["traces.max_backtracks=1,2", "sft.betas=[0.8, 0.9]", "ablations/merge-root"])
    assert [v.name for v in parsed] == [
        "default", "traces.max_backtracks=1", "traces.max_backtracks=2", "sft.betas=[0.8, 0.9]", "ablations/merge-root",
    ]  # fmt: skip
    runs = variants.make_runs(epath.Path("runs/s"), parsed, [0, 1], ["scale=0.5", "from=runs/a"])
    assert len(runs) == 10 and all(run.c.scale == 0.5 for run in runs)
    assert runs[3].c.traces.max_backtracks == 1 and (runs[3].seed, runs[3].c.seed) == (1, 1)
    assert runs[6].c.sft.betas == (0.8, 0.9) and runs[8].c.traces.merge_at == "root"
    assert len({run.c.out for run in runs}) == 10
    assert runs[0].c.from_runs == ("runs/a",) and runs[3].c.from_runs == ("runs/a", runs[1].c.out, runs[2].c.out)


@pytest.mark.parametrize("vary", [["=1"], ["a.b="], ["a.b=1,"], ["search.c_puct=1,1"]])
def test_variants_that_cannot_be_read_are_one_line(vary):
    with pytest.raises(AstroError, match="--vary"):
        variants.parse("quickstart", vary)


def test_variants_whose_names_differ_in_punctuation_have_folders_of_their_own():
    names = [v.folder for v in variants.parse("quickstart", ["problems.ops=+*,+/", "grpo.epsilon=0.1"])]
    assert len(set(names)) == 4 and names[0] == "default" and names[3] == "grpo.epsilon=0.1"


@pytest.mark.parametrize("seeds, overrides", [([0, 0], []), ([0], ["seed=3"])])
def test_seeds_of_a_sweep_come_once_and_from_its_option(seeds, overrides):
    with pytest.raises(AstroError, match="--seeds"):
        variants.make_runs(epath.Path("runs/s"), variants.parse("quickstart", []), seeds, overrides)


def test_the_interval_of_a_difference_covers_it_in_95_percent_of_simulations():
    """Two variants of 0.3 and 0.4, correlated over problems; one seed."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(400):
        hard = rng.random(200)
        a, b = (hard * 0.6 + rng.random(200) * 0.4 < p for p in (0.3, 0.4))
        pair = tuple({str(i): float(x) for i, x in enumerate(side)} for side in (a, b))
        result = compare.difference({0: pair})
        # P(0.6 u + 0.4 v < p) for uniform u, v: the area below the line is p^2 / (2 x 0.24) up to p = 0.4.
        covered += result["low"] <= (0.4**2 - 0.3**2) / 0.48 <= result["high"]
    assert 0.93 <= covered / 400 <= 0.97


def test_a_difference_pairs_the_problems_of_each_seed():
    a, b = {"x": 1.0, "y": 0.0, "z": 0.0}, {"x": 1.0, "y": 1.0}
    result = compare.difference({0: (a, b), 1: (b, b)})
    assert result["difference"] == 0.25 and result["n"] == 4 and result["low"] <= 0 < result["high"]
    assert compare.difference({0: (a, {})}) == {}


def test_the_page_shows_each_variant_and_escapes_its_name():
    rows = [
        {"variant": name, "model": "astro-sft", "metric": "pass@1", "mean": 0.5, "seeds": [0.4, 0.6], **change}
        for name, change in (
            ("default", {}), ("<b>x</b>", {"difference": 0.1, "low": 0.05, "high": 0.2, "n": 9}),
            ("y", {"difference": 0.1, "low": -0.05, "high": 0.2, "n": 9}),
        )
    ]  # fmt: skip
    text = page.html("s", "astro sweep", rows)
    assert "&lt;b&gt;x&lt;/b&gt;" in text and "<b>x" not in text and text.count('class="clear"') == 1
    assert "| <b>x</b> | 50.0 | +10.0 [+5.0, +20.0] | 40.0, 60.0 |" in page.markdown_tables(rows)


def test_the_page_shows_accuracy_over_the_tokens_of_the_search():
    rows = [
        {"variant": name, "model": "astro-sft", "metric": "pass@1", "mean": mean, "seeds": [mean],
         "mean_low": mean - 0.1, "mean_high": mean + 0.1, "search_tokens": tokens}
        for name, mean, tokens in (("default", 0.5, 1000.0), ("few", 0.4, 100.0), ("many", 0.6, 10000.0))
    ]  # fmt: skip
    (few, default, many) = sorted(page._tokens_plot(rows)["dots"], key=lambda dot: dot["x"])
    assert (few["name"], default["name"], many["name"]) == ("few", "default", "many")
    assert default["x"] - few["x"] == pytest.approx(many["x"] - default["x"], abs=0.2)  # powers of ten
    assert few["low"] > few["y"] > few["high"] and few["y"] - default["y"] == pytest.approx(default["y"] - many["y"])
    assert "few: 40.0%, 100 tokens" in page.html("s", "astro sweep", rows)
    assert page._tokens_plot([row | {"search_tokens": 5.0} for row in rows]) == {} == page._tokens_plot([])


def test_labels_of_neighbouring_dots_lie_apart_in_the_picture_of_the_search():
    rows = [
        {"variant": f"search.num_samples={n}", "mean": mean, "mean_low": 0.4, "mean_high": 0.7, "search_tokens": tokens}
        for n, mean, tokens in ((8, 0.502, 100), (16, 0.5, 110), (32, 0.501, 120), (4, 0.6, 100), (64, 0.5, 10000))
    ]  # fmt: skip
    dots = page._tokens_plot(rows)["dots"]
    heights = [dot["label_y"] for dot in dots]
    assert all(abs(a - b) >= 14 for a, b in itertools.combinations(heights[:4], 2))
    assert [dot["label_y"] == dot["y"] for dot in dots] == [
        True,
        False,
        False,
        True,
        True,
    ]  # the others stay where they are


@pytest.mark.nightly
@pytest.mark.slow
def test_a_sweep_runs_each_stage_once_and_goes_on_after_a_kill(tmp_path, monkeypatch, capsys):
    raw = {**MICRO, "stages": ["base", "search", "traces", "astro-sft", "eval", "report"]}
    (tmp_path / "micro.yaml").write_text(yaml.safe_dump(raw))
    (tmp_path / "few.yaml").write_text("base: micro.yaml\ntraces: {max_backtracks: 1}\n")
    out = tmp_path / "sweep"
    recipe, few = str(tmp_path / "micro.yaml"), str(tmp_path / "few.yaml")
    command = ["sweep", recipe, "--vary", "sft.learning_rate=0.001", "--vary", few, f"out={out}"]
    assert cli.main([*command, "--dry-run"]) == 0 and not out.exists()
    # Three runs of six stages and parts: base, search, traces, SFT, two evaluations and the report.
    assert "3 runs, 21 stages, 14 of them different" in capsys.readouterr().err

    ran, run_stage, limit = [], pipeline.run_stage, 9

    def count(run, plan):
        if len(ran) == limit:
            raise KeyboardInterrupt
        ran.append((str(run.folder), plan.inputs.stage))
        run_stage(run, plan)

    monkeypatch.setattr(pipeline, "run_stage", count)
    assert cli.main(command) == 130
    limit = 99
    assert cli.main(command) == 0
    assert len(ran) == len(set(ran)) == 14
    rows = json.loads((out / "sweep.json").read_text())["rows"]
    assert [(r["variant"], r["model"]) for r in rows if r["metric"] == "greedy"] == [
        (v, m) for v in ("default", "sft.learning_rate=0.001", "few") for m in ("base", "astro-sft")
    ]
    assert all(r["difference"] == 0 for r in rows if r["model"] == "base" and r["variant"] != "default")
    manifest = json.loads((out / "default/seed-0/search/manifest.json").read_text())
    for r in rows:
        assert r["mean_low"] <= r["mean"] <= r["mean_high"] and r["search_tokens"] == manifest["sampled_tokens"] > 0
    assert "ASTRO-SFT, pass@1" in (out / "sweep.html").read_text() and "ASTRO-SFT" in capsys.readouterr().out
    before = {name: p.stat().st_mtime_ns for name, p in files(out).items() if "/" in name and ".lock" not in name}
    assert cli.main(command) == 0
    assert {n: p.stat().st_mtime_ns for n, p in files(out).items() if "/" in n and ".lock" not in n} == before
    shutil.rmtree(out / "default")
    (out / "sweep.json").unlink()
    assert cli.main(command) == 2 and "not empty and not a sweep" in capsys.readouterr().err
