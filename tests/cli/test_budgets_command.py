"""`astro budgets`: on a run with random models, on models and suites, and with bad input."""

import contextlib
import json

import jax
import pytest
from etils import epath
from helpers import countdown_tokenizer, tiny_config, tiny_params
from micro_run import micro

from astro_jax import cli, compilation_cache, llama
from astro_jax import mesh as meshes

jax.devices()  # all eight are there before a run asks for one
TOKENIZER = countdown_tokenizer(75)
CONFIG = tiny_config(vocab_size=len(TOKENIZER), n_layers=1, max_positions=96)
SMALL = ("--n", "2", "--limit", "2", "--max-tokens", "8")
SEARCH = ("search.method=rounds", "search.rounds=[2]", "sampler.max_num_seqs=8")  # fewer programs than mcts


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run with an ASTRO and a Direct model of random parameters."""
    folder = tmp_path_factory.mktemp("budgets") / "run"
    for seed, stage in enumerate(("astro-sft", "direct-sft")):
        llama.save(epath.Path(folder / stage / "model"), CONFIG, tiny_params(CONFIG, seed), TOKENIZER)
        (folder / stage / "manifest.json").write_text("{}")
    config = micro(folder, scale=0.5, sampler=dict(max_num_seqs=8)).model_dump(mode="json")
    (folder / "config.json").write_text(json.dumps({"command": "astro run", "config": config}))
    return folder


def test_the_models_of_a_run_are_compared_on_its_held_out_problems(run, capsys):
    assert cli.main(["budgets", str(run), *SMALL, "--json", *SEARCH]) == 0
    results = json.loads(capsys.readouterr().out)
    held_out = results["sets"]["held-out"]
    assert results["models"].keys() == held_out["models"].keys() == {"astro-sft", "direct-sft"}
    assert held_out["problems"] == held_out["n"] == 2 and "search" in held_out["models"]["direct-sft"]
    budget = held_out["models"]["astro-sft"]["tokens"]
    assert held_out["budget"] == budget and held_out["models"]["direct-sft"]["search"]["max_tokens"] >= 2 * budget
    folder = run / "budgets"
    assert json.loads((folder / "budgets.json").read_text()) == results
    assert "ASTRO-SFT, one answer" in (folder / "budgets.md").read_text()
    assert "<svg" in (folder / "budgets.html").read_text()
    row = json.loads((folder / "held-out/direct-sft/answers-000-00000.jsonl").read_text().splitlines()[0])
    assert len(row["answers"]) == 2 and row["answers"][0]["text"] is not None


def test_a_model_on_a_suite_is_searched_with_itself(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    calls = []
    monkeypatch.setattr(meshes, "set_cpu_device_count", lambda n: calls.append(n))
    monkeypatch.setattr(compilation_cache, "use", lambda folder: calls.append("cache") or contextlib.nullcontext())
    model = str(run / "direct-sft/model")
    assert cli.main(["budgets", model, "--suite", "countdown:count=2,max_number=9,size=2", *SMALL, *SEARCH]) == 0
    assert calls[:2] == [1, "cache"]  # the cache asks for JAX's backend, after which a CPU keeps its number of devices
    assert "tree search with the verifier" in capsys.readouterr().out
    (results,) = tmp_path.glob("runs/budgets/*/budgets.json")
    assert list(json.loads(results.read_text())["sets"]) == ["countdown_count=2_max_number=9_size=2"]


@pytest.mark.parametrize(
    "words, message",
    [
        (("countdown-base",), "countdown-base is of no run with held-out problems; add --suite NAME"),
        (("countdown-base", "countdown-base", "--suite", "countdown"), "countdown-base comes twice"),
        (("nowhere", "--suite", "countdown"), "nowhere: no such folder"),
        (("seed=1",), "budgets: name a run or a model"),
        (("half",), "half: has not finished astro-rl and direct-rl or astro-sft and direct-sft"),
    ],
)
def test_bad_input_is_one_clear_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "half").mkdir()
    (tmp_path / "half/config.json").write_text('{"config": {}}')
    assert cli.main(["budgets", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error
