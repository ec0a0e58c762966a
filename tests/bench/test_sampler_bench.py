"""The counts of the benchmark, against counts by hand. Its rates depend on the machine and are not tested."""

import json

import numpy as np
import pytest
from helpers import one_device, tiny_config, tiny_params

from astro_jax.bench import sampler as bench
from astro_jax.cli import main
from astro_jax.sampler import Engine, Request, SamplingParams

CONFIG = tiny_config()


def test_a_ragged_workload_has_geometric_lengths_up_to_four_times_the_mean():
    even, ragged = (bench.Workload(64, 64, 4, 32, r).lengths() for r in (False, True))
    assert even.shape == (64, 64) and (even == 32).all()
    assert ragged.min() >= 1 and ragged.max() == 128
    assert ragged.mean() == pytest.approx(16, rel=0.05) and (ragged <= 11).mean() == pytest.approx(0.5, abs=0.03)


def test_the_limit_counts_each_prompt_once_and_each_new_token():
    """One layer by hand: 2 FLOPs a parameter of the matmuls, 4 h H a key that is attended to."""
    config, params = tiny_config(n_layers=1), tiny_params(tiny_config(n_layers=1))
    work = bench.Workload(groups=3, samples=5, prompt=10, new=4)
    d, f, v, q, kv = config.d_model, config.d_ff, config.vocab_size, config.n_heads, config.n_kv_heads
    h = config.head_dim
    weights = 2 * (d * h * (2 * q + 2 * kv) + 3 * d * f + d * v)
    flops = 60 * (weights + 4 * h * q * 12) + 30 * (weights + 4 * h * q * 5)
    size = 4 * sum(x.size for x in [params.embed, *vars(params.layers).values(), params.final_norm] if x is not None)
    size += 0 if params.lm_head is None else 4 * params.lm_head.size
    read = 5 * size + 60 * 12 * 2 * kv * h * 4
    limits = bench.limit(config, params, work, flops=1e9, bandwidth=1e6)
    assert limits["by_flops"] == pytest.approx(60 * 1e9 / flops, abs=0.1)
    assert limits["by_bandwidth"] == pytest.approx(60 * 1e6 / read, abs=0.1)


def test_max_tokens_of_a_request_shortens_a_completion_and_changes_nothing_else():
    engine, params = Engine(CONFIG, one_device(), 0, max_num_seqs=8, num_scheduler_steps=4), tiny_params(CONFIG)
    whole, shortened = (
        engine.generate(params, [Request((1, 2, 3), 4, ("x",), limits)], SamplingParams(11, stop_token_ids=()))[0]
        for limits in ((), (3, 11, 1, 40))
    )
    assert [len(c.token_ids) for c in whole] == [11] * 4
    assert [len(c.token_ids) for c in shortened] == [3, 11, 1, 11]
    for a, b in zip(whole, shortened, strict=True):
        n = len(b.token_ids)
        np.testing.assert_array_equal(a.token_ids[:n], b.token_ids)
        np.testing.assert_allclose(a.logprobs[:n], b.logprobs, atol=1e-5)


def test_the_command_prints_rates_limits_and_shares(capsys, monkeypatch):
    for name, rate in (("flops_per_s", 1e12), ("bytes_per_s", 1e10)):
        monkeypatch.setattr(bench, name, lambda rate=rate: rate)
    size = ["--groups", "2", "--samples", "3", "--prompt", "5", "--new", "4"]
    assert main(["bench", "sampler", "--model", "countdown-base", *size, "--ragged", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    lengths = bench.Workload(2, 3, 5, 4, True).lengths()
    assert result["tokens"] == lengths.sum() and result["prefix_reuse"] == round(2 / 3, 3)
    assert result["tokens_per_s"] == pytest.approx(result["tokens"] / result["seconds"], rel=1e-3)
    lowest = min(result["limits"]["by_flops"], result["limits"]["by_bandwidth"])
    assert result["share_of_limit"] == pytest.approx(result["tokens_per_s"] / lowest, abs=0.01)
    assert result["peak_bytes"] > 1e8 and result["compile_s"] >= 0
    assert main(["bench", "sampler", "--model", "countdown-base", *size]) == 0
    assert "share_of_limit: " in capsys.readouterr().out


def test_an_empty_workload_is_one_line(capsys):
    assert main(["bench", "sampler", "--model", "countdown-base", "--groups", "0"]) == 2
    assert "at least 1" in capsys.readouterr().err


def test_a_comparison_of_int8_weights_with_transformers_is_refused(capsys):
    args = ["--compare", "torch", "--quantization", "int8"]
    assert main(["bench", "sampler", "--model", "countdown-base", *args]) == 2
    assert "leave out --quantization" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_compares_with_transformers(capsys):
    pytest.importorskip("torch")
    args = ["--groups", "2", "--samples", "2", "--prompt", "4", "--new", "3", "--json", "--compare", "torch"]
    assert main(["bench", "sampler", "--model", "countdown-base", *args]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["torch"]["ratio"] == pytest.approx(result["tokens_per_s"] / result["torch"]["tokens_per_s"], rel=0.02)


def test_without_torch_the_comparison_is_one_line(capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    args = ["--groups", "1", "--samples", "1", "--prompt", "2", "--new", "1", "--compare", "torch"]
    assert main(["bench", "sampler", "--model", "countdown-base", *args]) == 2
    assert "torch is not installed" in capsys.readouterr().err
