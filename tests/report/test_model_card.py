"""The model card of an exported folder, and the check of that folder by transformers."""

import json

import pytest
from helpers import countdown_tokenizer, tiny_config, tiny_params

from astro_jax import llama, pipeline, stage_folder, storage
from astro_jax.cli import main
from astro_jax.errors import AstroError
from astro_jax.llama import reference
from astro_jax.report import model_card

CONFIG = tiny_config(vocab_size=len(countdown_tokenizer(9)), n_layers=1, max_positions=64)
INPUTS = stage_folder.Inputs(stage="astro-sft", keys={}, contents={}, parents={"traces": "abc"})


def score(mean):
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "n": 200}


def model(mean):
    return {"pass@1": score(mean), "greedy": score(mean + 0.1), "mean_tokens": 80.4, "mean_backtracks": 1.0,
            "valid_rate": 0.5, "truncated_rate": 0.0}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    folder = pipeline.epath.Path(tmp_path / "my-run")
    storage.write_json(folder / "config.json", {
        "command": "astro run x.yaml seed=7",
        "config": {"model": "llama-x", "seed": 7, "sft": {"batch_size": 4}},
    })  # fmt: skip
    stage_folder.finish(folder / "astro-sft", INPUTS, 12.5)
    storage.write_json(folder / "traces" / "counts.json", {"valid trees": 31, "ASTRO": {"examples": 99, "mean k": 1.5}})
    models = {"base": model(0.2), "astro-sft": model(0.6)}
    storage.write_json(folder / "results.json", {"seed": 7, "wall_s": 1, "models": models})
    llama.save(folder / "astro-sft" / "model", CONFIG, tiny_params(CONFIG), countdown_tokenizer(9))
    return folder


def test_card_holds_recipe_data_results_and_lineage(run, tmp_path):
    assert main(["export", str(run / "astro-sft" / "model"), str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "README.md").read_text()
    for expected in (
        "# ASTRO-SFT of my-run", "started from `llama-x`", "200 held-out problems",
        "| **ASTRO-SFT** | 60.0% (50.0 to 70.0%) | 70.0% (60.0 to 80.0%) | 80 |", "| Base | 20.0% (10.0 to 30.0%) |",
        "| valid trees | 31 |", "| ASTRO | 99 examples, 1.5 mean k |", "astro run x.yaml seed=7", "batch_size: 4",
        f"| astro-sft | traces | {INPUTS.digest} | 12.5 |", "jax 0.",
    ):  # fmt: skip
        assert expected in text
    for folder in (run / "astro-sft" / "model", tmp_path / "out"):
        assert f"{llama.load(folder)[1].embed.shape[0]} tokens" in text


def test_card_of_a_model_outside_of_a_run_states_its_shape(tmp_path):
    folder = pipeline.epath.Path(tmp_path / "lone")
    llama.save(folder, CONFIG, tiny_params(CONFIG), countdown_tokenizer(9))
    text = model_card.render(str(folder), CONFIG)
    assert (
        text.startswith("---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n\n# lone\n")
        and "1 layers" in text
        and "## Results" not in text
    )


def test_damaged_results_are_named_and_nothing_is_written(run, tmp_path, capsys):
    (run / "results.json").write_text(json.dumps({"models": {"base": {}}}))
    assert main(["export", str(run / "astro-sft" / "model"), str(tmp_path / "out")]) == 2
    assert "results.json: models.base.pass@1 is missing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_verify_without_torch_is_one_line(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    assert main(["export", str(run / "astro-sft" / "model"), str(tmp_path / "out"), "--verify", "torch"]) == 2
    assert "torch is not installed" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_transformers_computes_equal_logits_and_a_difference_stops_the_export(run, tmp_path, capsys, monkeypatch):
    pytest.importorskip("torch")
    source = str(run / "astro-sft" / "model")
    assert main(["export", source, str(tmp_path / "out"), "--verify", "torch"]) == 0
    assert "transformers agrees: logits differ by " in capsys.readouterr().out
    config, params = llama.load(source)
    assert reference.compare(pipeline.epath.Path(tmp_path / "out"), config, params) < 1e-4
    with pytest.raises(AstroError, match="transformers computes other logits"):
        reference.compare(pipeline.epath.Path(tmp_path / "out"), config, tiny_params(config, seed=9))
    monkeypatch.setattr(reference, "TOLERANCE", 0.0)
    assert main(["export", source, str(tmp_path / "again"), "--verify", "torch"]) == 2
    assert "other logits" in capsys.readouterr().err and not (tmp_path / "again").exists()
