"""One stage on a model and data of the user, without a config."""

import json

import jax
import pytest
from etils import epath
from helpers import countdown_tokenizer, tiny_config, tiny_params
from traces_fixtures import hand_tree

from astro_jax import cli, llama
from astro_jax.storage import Shards

jax.devices()  # all eight are there before a run asks for one

TOKENIZER = countdown_tokenizer(75)
CONFIG = tiny_config(vocab_size=len(TOKENIZER), n_layers=1, max_positions=64)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A checkpoint of random parameters."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    llama.save(epath.Path(folder), CONFIG, tiny_params(CONFIG), TOKENIZER)
    return folder


def error(capsys, *argv):
    """The last line on stderr of a command that is refused."""
    assert cli.main(list(argv)) == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_sft_on_a_file_needs_no_config(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    record = {"prompt": "Let us make 3 from 1 2.\n", "response": "1 + 2 = 3.\n"}
    (tmp_path / "data.jsonl").write_text(json.dumps(record) + "\n")
    settings = ("max_length=64", "batch_size=1", "num_train_epochs=20", "learning_rate=0.01")
    options = ("out=runs/own", *(f"sft.{setting}" for setting in settings))
    command = ["sft", "--init", str(model), "--data", "data.jsonl", *options]
    assert cli.main(command) == 0
    rows = [json.loads(x) for x in (tmp_path / "runs/own/sft/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < rows[0]["loss"]
    capsys.readouterr()
    (tmp_path / "data.jsonl").write_text(2 * (json.dumps(record) + "\n"))
    assert cli.main(command) == 0
    assert "sft: runs again, the content of examples changed" in capsys.readouterr().err
    assert cli.main(["show", "runs/own"]) == 0 and "sft" in capsys.readouterr().out


def test_rl_on_a_short_file_of_problems_takes_all_of_them(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    problems = [
        {"problem": f"Let us make {a + b} from {a} {b}.\n", "answer": a + b} for a in (1, 2) for b in range(3, 9)
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(p) + "\n" for p in problems))
    budget = ("max_steps=1", "prompts_per_step=4", "num_generations=2", "max_completion_length=4", "max_length=64")
    options = ("problems.held_out=0.1", "mesh={data: 1}", *(f"grpo.{setting}" for setting in budget))
    command = ["grpo", "--init", str(model), "--problems", "p.jsonl", "out=runs/own", *options]
    assert cli.main(command) == 0
    config = json.loads((tmp_path / "runs/own/config.json").read_text())
    assert 4 <= config["config"]["problems"]["rl"] <= len(problems)
    assert cli.main([*command, "problems.rl=99"]) == 2


def test_traces_of_a_folder_of_trees_need_no_search(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trees = Shards(epath.Path(tmp_path) / "trees", "trees")
    trees.write(0, [hand_tree().record()])
    assert cli.main(["traces", "--init", str(model), "--trees", "trees", "out=runs/own"]) == 0
    counts = json.loads((tmp_path / "runs/own/traces/counts.json").read_text())
    assert counts["trees"] == 1 and not (tmp_path / "runs/own/search").exists()


def test_broken_examples_are_refused_before_the_base_is_copied(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    records = [{"prompt": "Let us make 3 from 1 2.\n", "response": text} for text in ("1 + 2 = 3.\n", " ")]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, records)))
    command = ("sft", "--init", str(model), "--data", "data.jsonl", "out=runs/own", "sft.max_length=64")
    assert "data.jsonl, line 2: the response is empty" in error(capsys, *command)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        (("sft",), "sft: give a config, or --init MODEL --data FILE"),
        (("sft", "--init", "countdown-base"), "sft: give both --init MODEL and --data FILE"),
        (("grpo", "--problems", "p.jsonl", "out=runs/a"), "grpo: give both --init MODEL and --problems FILE"),
        (
            ("sft", "--init", "countdown-base", "--data", "no.jsonl", "out=runs/a"),
            "no.jsonl: cannot be read (No such file",
        ),
    ],
)
def test_missing_options_of_an_own_model_are_named(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert message in error(capsys, *words) and not list(tmp_path.iterdir())
