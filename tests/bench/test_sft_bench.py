"""The counts of the benchmark of SFT, against counts by hand. Its rates depend on the machine and are not tested."""

import json

import pytest
from helpers import tiny_config

from astro_jax.bench import sft as bench
from astro_jax.cli import main
from astro_jax.llama import params

SIZE = ["--rows", "2", "--length", "16", "--steps", "2"]


def test_the_limit_counts_three_passes_and_the_update():
    """One layer by hand: 2 FLOPs a parameter of the matmuls, 4 h H a key that is attended to."""
    config, work = tiny_config(n_layers=1), bench.Workload(3, 10)
    d, f, v, h = config.d_model, config.d_ff, config.vocab_size, config.head_dim
    forward = (
        2 * (d * h * (2 * config.n_heads + 2 * config.n_kv_heads) + 3 * d * f + d * v) + 4 * h * config.n_heads * 5
    )
    limits = bench.limit(config, work, flops=1e9, bandwidth=1e6)
    assert limits["by_flops"] == pytest.approx(1e9 / (3 * forward), rel=1e-3)
    assert limits["by_bandwidth"] == pytest.approx(30 * 1e6 / (10 * 4 * params.count(config)), abs=0.1)


@pytest.fixture
def machine(monkeypatch):
    for name, rate in (("flops_per_s", 1e12), ("bytes_per_s", 1e10)):
        monkeypatch.setattr(bench, name, lambda *_, rate=rate: rate)


def test_the_command_prints_the_rate_and_the_share_of_the_limit(machine, capsys):
    assert main(["bench", "sft", "--model", "countdown-base", *SIZE, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["tokens_per_s"] == pytest.approx(32 / result["seconds"], rel=0.05)
    lowest = min(result["limits"]["by_flops"], result["limits"]["by_bandwidth"])
    assert result["share_of_limit"] == pytest.approx(result["tokens_per_s"] / lowest, abs=0.001)
    assert result["peak_bytes"] > 1e8 and result["first_s"] >= 0
    assert main(["bench", "sft", "--model", "countdown-base", *SIZE]) == 0
    assert "share_of_limit: " in capsys.readouterr().out


def test_the_command_compares_with_transformers(machine, capsys):
    """Both train on the same weights and tokens: the losses of the first step are equal."""
    pytest.importorskip("torch")
    assert main(["bench", "sft", "--model", "countdown-base", *SIZE, "--json", "--compare", "torch"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["torch"]["loss"] == pytest.approx(result["loss"], rel=1e-4)
    ratio = result["tokens_per_s"] / result["torch"]["tokens_per_s"]
    assert result["torch"]["ratio"] == pytest.approx(ratio, abs=0.006)


@pytest.mark.parametrize("option, value", [("--rows", "0"), ("--length", "7"), ("--steps", "0")])
def test_an_empty_workload_is_one_line(option, value, capsys):
    assert main(["bench", "sft", "--model", "countdown-base", option, value]) == 2
    assert "at least 1" in capsys.readouterr().err
