"""`astro eval MODEL --suite`: a model on suites, outside of a run and in the evaluation stage of a run."""

import json
import subprocess
import sys

import jax
import pytest
from etils import epath
from helpers import countdown_tokenizer, tiny_config, tiny_params

from astro_jax import cli, llama
from astro_jax.evaluate import responses

jax.devices()  # all eight are there before a run asks for one
pytest.importorskip("pyarrow", reason="extra `hub` (pyarrow) is not installed")

TOKENIZER = countdown_tokenizer(75)
CONFIG = tiny_config(vocab_size=len(TOKENIZER), n_layers=1, max_positions=64)
GAME = "countdown:count=2,max_number=9,size=3"
NAME = "countdown_count=2_max_number=9_size=3"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A checkpoint of random parameters."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    llama.save(epath.Path(folder), CONFIG, tiny_params(CONFIG), TOKENIZER)
    return folder


def test_settings_of_a_model_leave_the_number_of_devices_open():
    """JAX counts the devices of a CPU at the first use of one: `mesh.data=2` would find one device."""
    program = """
import jax
from astro_jax import mesh
from astro_jax.evaluate import model_suites
from astro_jax.llama import paths
folder = paths.resolve("countdown-base")
model_suites.settings_of(folder, model_suites.run_config(folder))
mesh.set_cpu_device_count(2)
assert jax.device_count() == 2
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.slow
def test_a_model_is_measured_in_a_run_and_on_its_own(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    settings = ("eval.max_tokens=8", "sampler.max_num_seqs=8")
    assert cli.main(["eval", str(model), "--suite", GAME, "out=own", "--n", "2", "--max-tokens", "4,8", "--json",
                     *settings, "--lm-eval", "lm"]) == 0  # fmt: skip
    results = json.loads(capsys.readouterr().out)
    result = results["suites"][NAME]
    assert (result["prompts"], result["n"], result["settings"]["max_tokens"]) == (3, 2, 8)
    assert [row["max_tokens"] for row in result["token_limits"]] == [4] and result["rules"].keys() == {"strict"}
    assert result["settings"]["model_digest"] and result["settings"]["versions"]["jax"]
    rows = responses.read_parquet(epath.Path("own") / NAME / "answers.parquet")
    assert len(rows) == 6 and all(r["prompt"].startswith("Let us make") for r in rows)
    assert list((tmp_path / "lm").glob("results_*.json"))

    # The same model as the base of a run gives the same answers, and its difference from itself is 0.
    config = {"model": str(model), "stages": ["base", "eval", "report"], "out": "run",
              "problems": {"count": 2, "max_number": 5, "max_value": 75, "search": 2, "rl": 2, "eval": 2},
              "sampler": {"max_num_seqs": 8},
              "eval": {"suites": [GAME], "num_samples": 2, "max_tokens": 8}}  # fmt: skip
    (tmp_path / "c.yaml").write_text(json.dumps(config))
    assert cli.main(["run", "c.yaml"]) == 0
    figures = json.loads((tmp_path / "run/results.json").read_text())["models"]["base"]["suites"][NAME]
    assert figures["pass@1"] == result["pass@k"]["1"] and figures["overlap"]["compared"] == 2
    in_run = responses.read_parquet(epath.Path("run/eval/base-suites") / NAME / "answers.parquet")
    assert [r["response"] for r in in_run] == [r["response"] for r in rows]
    capsys.readouterr()
    assert cli.main(["show", "run"]) == 0
    assert f"{NAME} {100 * figures['pass@1']['mean']:.1f}%" in capsys.readouterr().out
    command = ["eval", "run/base/model", "--suite", GAME, "--n", "2", "--against", "own", *settings]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert f"{NAME} against {tmp_path}/own: +0.0 points [+0.0, +0.0] over 3 problems" in printed
    assert (tmp_path / "runs/eval/run--base/results.json").exists() and "pass@1 %" in printed


@pytest.mark.parametrize(
    "words, message",
    [
        (("quickstart", "--suite", "math500"), "quickstart is a config, and --suite measures a model"),
        (("quickstart", "--n", "0"), "--n needs --suite; for a run, set the keys of eval"),
        (("quickstart", "--n", "4"), "--n needs --suite; for a run, set the keys of eval"),
        (("quickstart", "--min-backtracks", "1"), "--min-backtracks needs --suite; for a run, set the keys of eval"),
        (("countdown-base", "--suite", "countdown", "--min-backtracks", "-1"), "eval.min_backtracks"),
        (("no/such/model", "--suite", "countdown"), "no/such/model: no such folder"),
        (("countdown-base", "--suite", "math50"), "suite math50: no such file or suite"),
        (("countdown-base", "--suite", "countdown", "--max-tokens", "a"), "write numbers with commas, as in 256,1024"),
        (("countdown-base", "--suite", "countdown", "--against", "old"), "old: no evaluation is there"),
        (("countdown-base", "--suite", "countdown", "eval.prompt=Solve"), "must hold {problem}"),
    ],
)
def test_bad_input_is_one_clear_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["eval", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error
