"""The counts of the benchmark of GRPO, against counts by hand. Its rates depend on the machine and are not tested."""

import json

import pytest
from helpers import tiny_config, tiny_params

from astro_jax.bench import grpo as bench
from astro_jax.bench import sampler, sft
from astro_jax.cli import main

SIZE = ["--prompts", "2", "--samples", "2", "--prompt", "6", "--new", "5", "--steps", "2"]


def test_the_limit_is_the_time_of_sampling_and_of_the_update():
    config, work = tiny_config(n_layers=1), bench.Workload(2, 3, 6, 5)
    limits = bench.limit(config, tiny_params(config), work, flops=1e9, bandwidth=1e7)
    sampling = sampler.limit(config, tiny_params(config), sampler.Workload(2, 3, 6, 5), 1e9, 1e7)
    update = sft.limit(config, sft.Workload(6, 11), 1e9, 1e7)
    slowest = (min(rates["by_flops"], rates["by_bandwidth"]) for rates in (sampling, update))
    seconds = [tokens / rate for tokens, rate in zip((30, 66), slowest, strict=True)]
    assert [limits["sampling_s"], limits["update_s"]] == pytest.approx(seconds, rel=1e-3)
    assert limits["tokens_per_s"] == pytest.approx(30 / sum(seconds), rel=1e-3)


@pytest.fixture
def machine(monkeypatch):
    for name, rate in (("flops_per_s", 1e12), ("bytes_per_s", 1e10)):
        monkeypatch.setattr(bench, name, lambda rate=rate: rate)


@pytest.mark.slow
def test_the_command_prints_the_rate_and_the_share_of_the_limit(machine, capsys):
    assert main(["bench", "grpo", "--model", "countdown-base", *SIZE, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["tokens_per_s"] == pytest.approx(2 * 2 * 5 / result["seconds"], rel=0.05)
    share = result["tokens_per_s"] / result["limits"]["tokens_per_s"]
    assert result["share_of_limit"] == pytest.approx(share, abs=0.001)
    assert result["parts"].keys() == {"reshard", "sampling", "verification", "update"}
    assert 0 < sum(result["parts"].values()) <= 1.1 * result["seconds"]
    assert main(["bench", "grpo", "--model", "countdown-base", *SIZE]) == 0
    assert "share_of_limit: " in capsys.readouterr().out


def test_the_command_compares_with_trl(machine, capsys):
    pytest.importorskip("trl", reason="trl is not installed")
    assert main(["bench", "grpo", "--model", "countdown-base", *SIZE, "--json", "--compare", "trl"]) == 0
    result = json.loads(capsys.readouterr().out)
    ratio = result["tokens_per_s"] / result["trl"]["tokens_per_s"]
    assert result["trl"]["ratio"] == pytest.approx(ratio, abs=0.006)


@pytest.mark.parametrize(
    "option, value", [("--prompts", "0"), ("--samples", "1"), ("--steps", "0"), ("--micro-batch", "0")]
)
def test_an_empty_workload_is_one_line(option, value, capsys):
    assert main(["bench", "grpo", "--model", "countdown-base", option, value]) == 2
    assert "at least 1" in capsys.readouterr().err
