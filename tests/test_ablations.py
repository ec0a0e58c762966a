"""Configs with a base, and the ablations, each of which changes only the keys that its header names."""

import re
from pathlib import Path

import pytest
import yaml

from astro_jax import config as cfg
from astro_jax import pipeline
from astro_jax.errors import AstroError

FOLDER = Path(__file__).parents[1] / "configs" / "ablations"
ABLATIONS = sorted(FOLDER.glob("*.yaml"))


def write(folder, **files):
    """Write NAME.yaml for each name, and return the path of the first."""
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return str(folder / f"{next(iter(files))}.yaml")


def test_a_file_overrides_the_keys_of_its_base(tmp_path):
    (tmp_path / "deep").mkdir()
    write(
        tmp_path,
        under="seed: 3\nsft: {num_train_epochs: 2, batch_size: 8}\nstages: [base, eval]\nbase_sft: {batch_size: 4}\n",
    )
    path = write(
        tmp_path / "deep",
        top="base: middle.yaml\nsft: {num_train_epochs: 5}\n",
        middle="base: ../under.yaml\nsft: {num_train_epochs: 4, max_length: 64}\nstages: [base]\nbase_sft: null\n",
    )
    c = cfg.load(path, ["sft.max_length=32"])
    assert (c.seed, c.stages, c.base_sft) == (3, ("base",), None)  # a list and null replace the value of the base
    assert (c.sft.num_train_epochs, c.sft.batch_size, c.sft.max_length) == (5, 8, 32)


@pytest.mark.parametrize(
    "files, message",
    [
        ({"a": "base: b.yaml", "b": "base: c.yaml", "c": "base: b.yaml"}, r"rests on itself \(.*b.* -> .*c.* -> .*b"),
        ({"a": "base: a.yaml"}, "rests on itself"),
        ({"a": "base: ./x/../a.yaml"}, "rests on itself"),
        ({"a": "base: none.yaml"}, r"none\.yaml \(the base of .*a\.yaml\): cannot be read"),
        ({"a": "base: 3"}, r"a\.yaml: base: the path of a YAML config is wanted, got 3"),
        ({"a": "base: b.yaml", "b": "- 1"}, r"b\.yaml: a config is a mapping"),
        ({"a": "base: b.yaml", "b": "sft: {epoch: 1}"}, r"sft\.epoch: no such key"),
    ],
)  # fmt: skip
def test_a_bad_base_is_refused_in_one_line(tmp_path, files, message):
    with pytest.raises(AstroError, match=message) as e:
        cfg.load(write(tmp_path, **files))
    assert "\n" not in str(e.value)


def test_the_folder_of_a_run_holds_the_merged_config(tmp_path):
    path = write(
        tmp_path, top="base: under.yaml\nseed: 5\n", under=f"seed: 3\nout: {tmp_path / 'run'}\nsft: {{batch_size: 8}}\n"
    )
    pipeline.execute(cfg.load(path), only=("base",))
    merged = pipeline.storage.read_json(pipeline.epath.Path(tmp_path / "run" / "config.json"))["config"]
    assert (merged["seed"], merged["sft"]["batch_size"]) == (5, 8) and "base" not in merged


def flat(value, prefix=""):
    """Nested keys as dotted ones: {"a": {"b": 1}} becomes {"a.b": 1}."""
    if not isinstance(value, dict):
        return {prefix.removesuffix("."): value}
    return {k: v for name, inner in value.items() for k, v in flat(inner, f"{prefix}{name}.").items()}


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda p: p.stem)
def test_an_ablation_changes_only_the_keys_of_its_header(path):
    text = path.read_text()
    c = cfg.load(str(path))
    base = cfg.load(str(FOLDER / yaml.safe_load(text)["base"]))
    values, base_values = flat(c.model_dump(mode="json")), flat(base.model_dump(mode="json"))
    changed = {k for k in values.keys() | base_values.keys() if values.get(k) != base_values.get(k)}
    header = re.search(r"^#   changes   (.*)$", text, re.MULTILINE)[1].split(", ")
    assert changed == {*header, "out"} and c.out == f"runs/ablations/{path.stem}"
    pipeline.dataset.check(c.traces, [])
    command = re.search(r"^#   command   astro run (\S+)( problems\.path=problems\.jsonl)?$", text, re.MULTILINE)
    assert command[1] == f"configs/ablations/{path.name}" and bool(command[2]) == ("smollm2" in text)
    assert re.search(r"^#   paper     section", text, re.MULTILINE)


def test_the_documentation_lists_all_ablations():
    page = (FOLDER.parents[1] / "docs" / "traces.md").read_text()
    listed = re.findall(r"^\| `([\w-]+)` \|", page.partition("## Ablations")[2], re.MULTILINE)
    assert sorted(listed) == sorted(p.stem for p in ABLATIONS) and len(ABLATIONS) >= 12
