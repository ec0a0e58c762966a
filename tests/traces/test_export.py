"""The export of the SFT sets: files, the hub, and the command."""

import sys

import datasets
import huggingface_hub
import pyarrow.parquet
import pytest
from etils import epath
from traces_fixtures import read_rows, write_card

from astro_jax import cli, pipeline
from astro_jax.errors import AstroError
from astro_jax.traces import export


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    return write_card(tmp_path_factory.mktemp("made"))


# ---- Files


def expected_records(traces, name):
    return [
        {
            "messages": [{"role": "user", "content": e["prompt"]}, {"role": "assistant", "content": e["response"]}],
            "problem_id": e["problem_id"], "kind": e["kind"], "k": e["k"],
        }
        for e in read_rows(traces / f"{name}.jsonl")
    ]  # fmt: skip


def test_all_readers_read_back_the_same_records(traces, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_BATCH_ROWS", 7)
    export.write(traces, epath.Path(tmp_path / "out"))
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir()} == {
        "astro.parquet", "astro.jsonl", "direct.parquet", "direct.jsonl", "README.md", "card.json",
    }  # fmt: skip
    for name in ("astro", "direct"):
        records = expected_records(traces, name)
        assert read_rows(out / f"{name}.jsonl") == records
        assert pyarrow.parquet.read_table(out / f"{name}.parquet").to_pylist() == records
        for source in (dict(path=str(out), name=name), dict(path="json", data_files=str(out / f"{name}.jsonl"))):
            rows = datasets.load_dataset(**source, split="train", cache_dir=str(tmp_path / "cache"))
            assert rows.to_list() == records and len(records) > 50
    assert (out / "card.json").read_bytes() == (traces / "card.json").read_bytes()
    assert "data_files: astro.parquet" in (out / "README.md").read_text()


def test_an_export_replaces_no_folder_and_leaves_no_partial_folder(traces, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    with pytest.raises(AstroError, match="mine: exists; nothing was written"):
        export.write(traces, epath.Path(tmp_path / "mine"))
    monkeypatch.setattr(export, "_write_parquet", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export.write(traces, epath.Path(tmp_path / "new"))
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


class FakeHub:
    """Records the calls of the hub's client."""

    calls = []

    def create_repo(self, name, *, repo_type, private, exist_ok):
        self.calls.append((name, repo_type, private, exist_ok))

    def upload_folder(self, *, repo_id, repo_type, folder_path):
        self.calls.append((repo_id, repo_type, sorted(p.name for p in epath.Path(folder_path).iterdir())))
        return f"https://hub/{repo_id}"


def test_a_push_uploads_an_export_as_a_private_dataset(traces, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    monkeypatch.setattr(FakeHub, "calls", [])
    assert export.push(traces, "me/traces") == "https://hub/me/traces"
    assert FakeHub.calls == [
        ("me/traces", "dataset", True, True),
        ("me/traces", "dataset",
         ["README.md", "astro.jsonl", "astro.parquet", "card.json", "direct.jsonl", "direct.parquet"]),
    ]  # fmt: skip


def test_a_push_without_a_network_fails_in_one_line(traces, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(AstroError, match=r"--push me/traces: the hub did not take it \(.*is HF_TOKEN set\?$") as e:
        export.push(traces, "me/traces")
    assert "\n" not in str(e.value)


# ---- The command


@pytest.fixture
def command(traces, tmp_path, monkeypatch):
    """`astro traces` of a run whose stage has finished, and (traces.clone, stages) of each call of the pipeline."""
    calls = []

    def execute(c, command, only, *_):
        calls.append((c.traces.clone, only))
        return type("FinishedRun", (), {"folder_of": lambda stage: traces.parent / stage})

    monkeypatch.setattr(pipeline, "execute", execute)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text("out: runs/it\n")
    return lambda *options: cli.main(["traces", "recipe.yaml", *options]), calls


def test_the_command_writes_and_pushes_as_its_options_say(command, tmp_path, monkeypatch, capsys):
    astro, calls = command
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    assert astro() == 0 and capsys.readouterr().out == "" and not (tmp_path / "data").exists()
    assert astro("--clone", "model", "--out", "data", "--push", "me/traces") == 0
    assert capsys.readouterr().out == "written: data\nuploaded: https://hub/me/traces\n"
    assert (tmp_path / "data" / "astro.parquet").exists()
    assert calls == [("template", ("traces",)), ("model", ("traces",))]


def test_an_impossible_export_fails_in_one_line_before_the_stage_runs(command, tmp_path, monkeypatch, capsys):
    astro, calls = command
    (tmp_path / "data").mkdir()
    assert astro("--out", "data") == 2 and "data: exists; nothing was written" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for options in (["--out", "new"], ["--push", "a/b"]):
        assert astro(*options) == 2
        assert f"{options[0]} needs the extra `hub`: pip install pyarrow" in capsys.readouterr().err
    assert not calls
