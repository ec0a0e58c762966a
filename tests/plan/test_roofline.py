"""The roofline's formulas against a count of the matmuls in the programs themselves."""

import jax
import numpy as np
import pytest
from helpers import tiny_config
from jax.extend.core import jaxprs_in_params

from astro_jax import config as cfg
from astro_jax.llama.model import REMAT_POLICIES
from astro_jax.mesh import make_mesh
from astro_jax.plan import programs, roofline, topology
from astro_jax.plan.programs import Plan, size
from astro_jax.train import grpo, losses, sft
from astro_jax.train.policy_loss import RolloutBatch

CONFIG = tiny_config(n_layers=6, d_ff=40, vocab_size=48)


def matmul_flops(jaxpr):
    """FLOPs of all matmuls of a jaxpr; those in a scan count once for each trip."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contract, _), _ = eqn.params["dimension_numbers"]
            k = np.prod([eqn.invars[0].aval.shape[i] for i in contract])
            total += int(2 * np.prod(eqn.outvars[0].aval.shape) * k)
        times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
        total += times * sum(matmul_flops(j) for j in jaxprs_in_params(eqn.params))
    return total


@pytest.mark.parametrize(
    "stage, remat, chunks",
    [("sft", "none", 1), ("sft", "none", 2), ("grpo", "none", 2), *(("sft", policy, 1) for policy in REMAT_POLICIES)],
)
def test_training_flops_equal_those_of_the_program(stage, remat, chunks, monkeypatch):
    """The LM head costs 3 times its forward pass where SFT runs it in chunks, and 4 times in RL."""
    monkeypatch.setattr(losses, "LIVE_LOGITS", 2 * 2048 * 48 // chunks)
    settings = {"max_length": 2048, "remat_policy": remat}
    c = cfg.Config(sft=cfg.Sft(batch_size=2, **settings), grpo=cfg.Grpo(micro_batch_size=2, **settings))
    plan = Plan(c, CONFIG, make_mesh())
    batch, cost = programs.batch(2, 2048), plan._train_cost(getattr(c, stage), 2, update=False)
    if stage == "grpo":
        batch = RolloutBatch(batch, programs.floats(2, 2048), programs.floats(2, 2048))
    loss = (grpo if stage == "grpo" else sft).make_loss(getattr(c, stage), CONFIG, plan.train)
    gradient = jax.value_and_grad(loss, has_aux=True)
    jaxpr = jax.make_jaxpr(lambda params, batch: gradient(params, batch))(plan.state.params, batch)
    assert cost.executed_flops == matmul_flops(jaxpr.jaxpr)
    assert cost.model_flops < cost.executed_flops


def test_decode_cost_equals_a_count_by_hand():
    """The formula attends to the whole prefix and half of the new tokens; the program's loops are over blocks."""
    sampler = cfg.Sampler(max_num_seqs=16, block_size=8, num_scheduler_steps=1)
    plan = Plan(cfg.Config(sampler=sampler), CONFIG, make_mesh())
    layout = plan.layout(4, 9, 8, "float32")
    weights = size(plan.weights("float32"))
    cost = roofline.decode(CONFIG, plan.mesh, layout, "float32", weights, 1)
    by_hand = 16 * (CONFIG.flops_per_token(layout.prefix_blocks * 8 + 4))
    assert cost.executed_flops == cost.model_flops == by_hand
    per_column = 2 * 4 * CONFIG.n_layers * CONFIG.n_kv_heads * CONFIG.head_dim
    assert cost.hbm_bytes == weights + per_column * (layout.num_groups * layout.prefix_blocks * 8 + 16 * 4)


def test_decode_with_int8_reads_a_byte_for_each_number_and_its_scales():
    sampler = cfg.Sampler(
        max_num_seqs=16, block_size=8, num_scheduler_steps=2, quantization="int8", kv_cache_dtype="int8"
    )
    plan = Plan(cfg.Config(sampler=sampler), CONFIG, make_mesh())
    quantize, _, decode, *_ = plan.programs("search")
    assert (quantize.name, decode.name) == ("quantize", "decode")
    layers, d, f, v = CONFIG.n_layers, CONFIG.d_model, CONFIG.d_ff, CONFIG.vocab_size
    heads, kv, h = CONFIG.n_heads, CONFIG.n_kv_heads, CONFIG.head_dim
    numbers = layers * (2 * d * h * (heads + kv) + 3 * d * f) + 2 * v * d
    scales = layers * (h * (heads + 2 * kv) + d + 2 * f + d) + 2 * v
    weights = numbers + 4 * (scales + layers * 2 * d + d)  # scales and norms in float32
    assert size(plan.weights("float32")) == weights
    column, own = layers * 2 * kv * (h + 4), decode.layout.completion_blocks * 8 // 2
    columns = decode.layout.num_groups * decode.layout.prefix_blocks * 8 + 16 * own
    assert decode.cost.hbm_bytes == 2 * (weights + column * columns)
    assert decode.row_bytes * 16 == size(plan.kv_cache(decode.layout, "float32"))


def test_rl_rounds_only_by_choice():
    sampler = cfg.Sampler(max_num_seqs=16, quantization="int8", kv_cache_dtype="int8")
    for chosen in (False, True):
        grpo = cfg.Grpo(quantized_rollouts=chosen, importance_sampling_cap=2.0)
        plan = Plan(cfg.Config(sampler=sampler, grpo=grpo), CONFIG, make_mesh())
        by_name = {program.name: program for program in plan.programs("grpo")}
        assert by_name["decode"].layout.quantized == chosen and "quantize" not in by_name
        weights = jax.tree.map(lambda x: (x.shape, x.dtype), plan.reshard().out_info)
        expected = plan.weights("float32", sampler if chosen else sampler.unquantized())
        assert weights == jax.tree.map(lambda x: (x.shape, x.dtype), expected)


def test_roofline_is_the_slower_of_compute_and_hbm():
    chip = topology.Chip(hbm_bytes=1, flops_per_s=100.0, hbm_bandwidth=10.0, ici_bandwidth=1, slices=())
    assert roofline.RooflineCost(model_flops=50, executed_flops=200, hbm_bytes=10, tokens=1).seconds(chip) == 2
    assert roofline.RooflineCost(model_flops=50, executed_flops=200, hbm_bytes=40, tokens=1).seconds(chip) == 4
    assert roofline.RooflineCost(model_flops=50, executed_flops=200, hbm_bytes=10, tokens=1).mfu(chip) == 0.25
