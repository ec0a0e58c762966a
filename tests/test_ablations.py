"""Configs that rest on a base, and the ablations, each of which changes what it says and nothing else."""

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
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return str(folder / f"{next(iter(files))}.yaml")


def test_a_file_says_only_what_it_changes_of_its_base(tmp_path):
    (tmp_path / "deep").mkdir()
    write(tmp_path, under="seed: 3\nsft: {epochs: 2, batch: 8}\nstages: [base, eval]\nwarm_up: {batch: 4}\n")
    path = write(
        tmp_path / "deep",
        top="base: middle.yaml\nsft: {epochs: 5}\n",
        middle="base: ../under.yaml\nsft: {epochs: 4, length: 64}\nstages: [base]\nwarm_up: null\n",
    )
    c = cfg.load(path, ["sft.max_length=32"])
    assert (c.seed, c.stages, c.warm_up) == (3, ("base",), None)  # lists and nothing replace what was there
    assert (c.sft.epochs, c.sft.batch, c.sft.length) == (5, 8, 32)


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
def test_a_base_that_cannot_be_is_one_line(tmp_path, files, message):
    with pytest.raises(AstroError, match=message) as e:
        cfg.load(write(tmp_path, **files))
    assert "\n" not in str(e.value)


def test_a_runs_folder_holds_the_merged_config(tmp_path):
    path = write(
        tmp_path, top="base: under.yaml\nseed: 5\n", under=f"seed: 3\nout: {tmp_path / 'run'}\nsft: {{batch: 8}}\n"
    )
    pipeline.execute(cfg.load(path), only=("base",))
    held = pipeline.storage.read_json(pipeline.epath.Path(tmp_path / "run" / "config.json"))["config"]
    assert (held["seed"], held["sft"]["batch"]) == (5, 8) and "base" not in held


def flat(value, prefix=""):
    if not isinstance(value, dict):
        return {prefix.removesuffix("."): value}
    return {k: v for name, inner in value.items() for k, v in flat(inner, f"{prefix}{name}.").items()}


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda p: p.stem)
def test_an_ablation_changes_what_it_says_and_nothing_else(path):
    text = path.read_text()
    c = cfg.load(str(path))
    base = cfg.load(str(FOLDER / yaml.safe_load(text)["base"]))
    mine, theirs = flat(c.model_dump(mode="json")), flat(base.model_dump(mode="json"))
    changed = {k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k)}
    said = re.search(r"^#   changes   (.*)$", text, re.MULTILINE)[1].split(", ")
    assert changed == {*said, "out"} and c.out == f"runs/ablations/{path.stem}"
    pipeline.dataset.check(c.traces, [])
    command = re.search(r"^#   command   astro run (\S+)( problems\.path=problems\.jsonl)?$", text, re.MULTILINE)
    assert command[1] == f"configs/ablations/{path.name}" and bool(command[2]) == ("smollm2" in text)
    assert re.search(r"^#   paper     section", text, re.MULTILINE)


def test_the_readme_lists_every_ablation():
    readme = (FOLDER.parents[1] / "README.md").read_text()
    listed = re.findall(r"^\| `([\w-]+)` \|", readme.partition("## Traces, and each choice a switch")[2], re.MULTILINE)
    assert sorted(listed) == sorted(p.stem for p in ABLATIONS) and len(ABLATIONS) >= 12
