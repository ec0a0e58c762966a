"""What `astro bench trees` measures: the files of the steps after a search, at a small size."""

import json

import pytest

from astro_jax.bench import trees as bench
from astro_jax.cli import main
from astro_jax.search.store import shards
from astro_jax.search.tree import node_columns

SMALL = ["--trees", "5", "--nodes", "40", "--lines", "4", "--characters", "50"]


def test_the_command_measures_each_step_and_keeps_the_files_where_asked(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "_SEARCHED", 3)  # two trees are stored twice
    out = tmp_path / "out"
    assert main(["bench", "trees", *SMALL, "--json", "--out", str(out)]) == 0
    result = json.loads(capsys.readouterr().out)
    records = list(shards(bench.epath.Path(out / "search")).read())
    sizes = [len(node_columns(record)["id"]) for record in records]
    assert [record["problem"]["id"] for record in records] == [f"synthetic-{i}" for i in range(5)]
    assert sizes[3:] == sizes[:2] and 30 < sum(sizes) / 5 < 55
    assert result["trees"] == 5 and result["nodes"] == sum(sizes) and result["examples"] > 5
    texts = [text for record in records for text in node_columns(record)["text"][1:]]
    assert 40 < sum(map(len, texts)) / len(texts) < 60
    steps = result["steps"]
    assert list(steps) == ["store", "counts", "traces", "card", "report"]
    files = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    assert result["bytes"] == sum(step["bytes"] for step in steps.values()) == files
    assert steps["store"]["bytes"] == sum(f.stat().st_size for f in (out / "search").iterdir())
    assert result["bytes_per_tree"] == round(steps["store"]["bytes"] / 5)
    assert result["peak_mib"] >= result["start_mib"] > 50 and (out / "report.html").exists()
    assert main(["bench", "trees", *SMALL, "--out", str(out)]) == 2
    assert "exists; nothing was written" in capsys.readouterr().err


def test_the_paper_s_budget_keeps_its_rollouts_merged(capsys):
    """Many rollouts are equal or begin alike: 8 different lines after a node give at most 8 + 64 + 512 nodes."""
    assert main(["bench", "trees", "--trees", "1", "--lines", "3", "--paper"]) == 0
    figures = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert int(figures["rollouts"]) > 300 and int(figures["nodes"]) < int(figures["rollouts"])
    assert figures["report"].startswith("{'seconds'")


@pytest.mark.parametrize("option", ["--trees", "--nodes", "--lines", "--characters"])
def test_a_size_below_1_is_refused_in_one_line(option, capsys):
    assert main(["bench", "trees", option, "0"]) == 2
    assert "are at least 1" in capsys.readouterr().err
