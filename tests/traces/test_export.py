"""The data card, and the sets as other trainers read them."""

import json
import re
import sys
from collections import Counter

import datasets
import huggingface_hub
import pyarrow.parquet
import pytest
from etils import epath
from helpers import countdown_tokenizer
from test_switches import TREES, VALID

from astro_jax import cli, pipeline, storage
from astro_jax import config as cfg
from astro_jax.errors import AstroError
from astro_jax.storage import Shards
from astro_jax.traces import card, dataset, export

TOKENIZER = countdown_tokenizer(99)
ORIGIN = {"model": "some/model", "seed": 7, "config": "abc"}


def make(folder, order=1, problems=None):
    """A traces folder with its card."""
    store = Shards(epath.Path(folder) / "search", "trees")
    store.write(0, (t.record() for t in TREES[::order]))
    traces = epath.Path(folder) / "traces"
    counts = dataset.run(traces, store, cfg.Traces(), 7)
    card.write(traces, counts, store, TOKENIZER, ORIGIN, problems)
    return traces


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    return make(tmp_path_factory.mktemp("made"), problems={"read": 99, "after decontamination": 60})


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- The card


def test_a_card_counts_what_the_files_hold(traces):
    data = json.loads((traces / "card.json").read_text())
    for name in ("astro", "direct"):
        examples, described = rows(traces / f"{name}.jsonl"), data["sets"][name]
        tokens = [len(TOKENIZER.encode(e["prompt"] + e["response"])) + 1 for e in examples]
        assert (described["examples"], described["tokens"]) == (len(examples), sum(tokens))
        assert described["longest"] == max(tokens)
        assert described["by_k"] == {str(k): n for k, n in Counter(e["k"] for e in examples).items()}
        assert sum(n for *_, n in described["lengths"]) == len(examples)
        for low, high, n in described["lengths"]:
            assert n == sum(low <= t <= high for t in tokens)
    terminals = Counter(
        "correct" if n.correct else "wrong" if n.answer else "without an answer"
        for t in TREES for n in t.nodes if n.terminal
    )  # fmt: skip
    assert data["counts"]["terminals"] == terminals and data["counts"]["valid trees"] == len(VALID)
    assert data["problems"] == {"read": 99, "after decontamination": 60}
    assert data["origin"].items() >= ORIGIN.items() and data["versions"] == storage.versions()


def test_the_text_says_what_the_json_holds(traces):
    data, text = json.loads((traces / "card.json").read_text()), (traces / "README.md").read_text()
    for line in (
        "| problems: after decontamination | 60 |", f"| valid trees | {len(VALID)} |",
        f"| terminals: correct | {data['counts']['terminals']['correct']} |", "| model | some/model |", "| seed | 7 |",
        f"| trees_sha256 | {data['origin']['trees_sha256']} |", f"astro_jax {storage.versions()['astro_jax']}",
    ):  # fmt: skip
        assert line in text, line
    assert len(data["samples"]) == 10 and len({json.dumps(s) for s in data["samples"]}) == 10
    for sample in data["samples"]:
        assert all(f"    {line}\n" in text for line in sample["response"].splitlines())
        assert sample in rows(traces / "astro.jsonl")
    bars = [len(bar) for bar in re.findall(r"\| (█+) \|", text)]
    assert max(bars) == 40 and len(bars) > 5


def test_the_hash_of_the_trees_is_of_their_content_not_of_their_order(traces, tmp_path):
    def digest(folder):
        return json.loads((folder / "card.json").read_text())["origin"]["trees_sha256"]

    assert digest(make(tmp_path / "turned", order=-1)) == digest(traces)
    assert digest(make(tmp_path / "fewer", order=2)) != digest(traces)


def test_nothing_that_a_model_wrote_is_markdown():
    example = {"problem_id": "a|b\n# c", "k": 0, "prompt": "# Title\n```\n", "response": "---\n| x |\n"}
    data = {
        "origin": ORIGIN, "versions": {}, "problems": None, "counts": {}, "samples": [example],
        "sets": {n: {"examples": 0, "by_k": {}, "tokens": 0, "longest": 0, "lengths": []} for n in card.SETS},
    }  # fmt: skip
    text = card.text(data, "jsonl").partition("drawn at random.")[2].partition("## Origin")[0]
    lines = [line for line in text.splitlines() if line.strip()]
    assert lines == ['Problem "a|b\\n# c", k = 0:', "    # Title", "    ```", "    ---", "    | x |"]


def test_a_folder_without_examples_has_a_card_too(tmp_path):
    store = Shards(epath.Path(tmp_path) / "search", "trees")
    store.write(0, (t.record() for t in TREES if t not in VALID))
    counts = dataset.run(epath.Path(tmp_path) / "traces", store, cfg.Traces(), 0)
    card.write(epath.Path(tmp_path) / "traces", counts, store, TOKENIZER, ORIGIN)
    data = json.loads((tmp_path / "traces" / "card.json").read_text())
    assert data["sets"]["astro"]["lengths"] == [] and data["samples"] == [] and data["problems"] is None


# ---- The export


def expected(traces, name):
    return [
        {
            "messages": [{"role": "user", "content": e["prompt"]}, {"role": "assistant", "content": e["response"]}],
            "problem_id": e["problem_id"], "kind": e["kind"], "k": e["k"],
        }
        for e in rows(traces / f"{name}.jsonl")
    ]  # fmt: skip


def test_an_export_reads_back_the_same_by_every_reader(traces, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_ROWS", 7)
    export.write(traces, epath.Path(tmp_path / "out"))
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir()} == {
        "astro.parquet", "astro.jsonl", "direct.parquet", "direct.jsonl", "README.md", "card.json",
    }  # fmt: skip
    for name in ("astro", "direct"):
        wanted = expected(traces, name)
        assert rows(out / f"{name}.jsonl") == wanted
        assert pyarrow.parquet.read_table(out / f"{name}.parquet").to_pylist() == wanted
        for asked in (dict(path=str(out), name=name), dict(path="json", data_files=str(out / f"{name}.jsonl"))):
            found = datasets.load_dataset(**asked, split="train", cache_dir=str(tmp_path / "cache"))
            assert found.to_list() == wanted and len(wanted) > 50
    assert (out / "card.json").read_bytes() == (traces / "card.json").read_bytes()
    assert "data_files: astro.parquet" in (out / "README.md").read_text()


def test_an_export_replaces_nothing_and_leaves_no_half(traces, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    with pytest.raises(AstroError, match="mine: exists; nothing was written"):
        export.write(traces, epath.Path(tmp_path / "mine"))
    monkeypatch.setattr(export, "_write_parquet", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export.write(traces, epath.Path(tmp_path / "new"))
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


class Hub:
    """The hub's client, with a folder in its place."""

    there = []

    def create_repo(self, name, *, repo_type, private, exist_ok):
        self.there.append((name, repo_type, private, exist_ok))

    def upload_folder(self, *, repo_id, repo_type, folder_path):
        self.there.append((repo_id, repo_type, sorted(p.name for p in epath.Path(folder_path).iterdir())))
        return f"https://hub/{repo_id}"


def test_a_push_uploads_an_export_as_a_private_data_set(traces, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert export.push(traces, "me/traces") == "https://hub/me/traces"
    assert Hub.there == [
        ("me/traces", "dataset", True, True),
        ("me/traces", "dataset",
         ["README.md", "astro.jsonl", "astro.parquet", "card.json", "direct.jsonl", "direct.parquet"]),
    ]  # fmt: skip


def test_a_push_without_a_network_is_one_line(traces, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(AstroError, match=r"--push me/traces: the hub did not take it \(.*is HF_TOKEN set\?$") as e:
        export.push(traces, "me/traces")
    assert "\n" not in str(e.value)


# ---- The command


@pytest.fixture
def command(traces, tmp_path, monkeypatch):
    """`astro traces` of a run whose stage has finished, and the configs that it was called with."""
    called = []

    def execute(c, command, only):
        called.append((c.traces.clone, only))
        return type("Run", (), {"folder": traces.parent})

    monkeypatch.setattr(pipeline, "execute", execute)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text("out: runs/it\n")
    return lambda *options: cli.main(["traces", "recipe.yaml", *options]), called


def test_the_command_writes_and_pushes_what_is_asked_for(command, tmp_path, monkeypatch, capsys):
    astro, called = command
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert astro() == 0 and capsys.readouterr().out == "" and not (tmp_path / "data").exists()
    assert astro("--clone", "model", "--out", "data", "--push", "me/traces") == 0
    assert capsys.readouterr().out == "written: data\nuploaded: https://hub/me/traces\n"
    assert (tmp_path / "data" / "astro.parquet").exists()
    assert called == [("template", ("traces",)), ("model", ("traces",))]


def test_what_cannot_be_written_is_one_line_before_the_stage_runs(command, tmp_path, monkeypatch, capsys):
    astro, called = command
    (tmp_path / "data").mkdir()
    assert astro("--out", "data") == 2 and "data: exists; nothing was written" in capsys.readouterr().err
    for module, options in (("pyarrow", ["--out", "new"]), ("huggingface_hub", ["--push", "a/b"])):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            assert astro(*options) == 2
        assert f"{options[0]} needs the extra `hub`: pip install {module}" in capsys.readouterr().err
    assert not called
