"""The programs of a run of Llama-3.1-8B, compiled ahead of time for a TPU v5e:4x4.

`pytest -m "" -s tests/plan/test_tpu.py` prints the memory of each program. Lowered and compiled programs are shared
between the tests: compiling takes nearly all of the time.
"""

import dataclasses
import functools
import json
import math
import re
from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from helpers import unexpected_collectives

from astro_jax import cli
from astro_jax import config as cfg
from astro_jax.llama import attention
from astro_jax.llama.config import llama3_8b, llama3_70b
from astro_jax.mesh import make_mesh, train_sharding
from astro_jax.plan import collectives, planner, topology
from astro_jax.plan.programs import Plan, Program, floats, ints, size
from astro_jax.sampler.kv_cache import CacheLayout
from astro_jax.sampler.programs import DecodeOutputs

pytest.importorskip("libtpu", reason="the extra `plan` (libtpu) is not installed")
pytestmark = pytest.mark.usefixtures("optimized")  # the memory of a chip is that of optimized programs

GIB = 2**30
SFT = cfg.Sft(batch_size=16, max_length=8192, remat_policy="full", dtype="bfloat16")
GRPO = cfg.Grpo(max_length=4096, remat_policy="full", dtype="bfloat16")
# 128 rows in prefix groups of 16, with prompts of 2048 tokens and up to 2048 new tokens each.
LAYOUT = CacheLayout(num_seqs=128, group_size=16, prefix_blocks=4, completion_blocks=4, block_size=512, devices=4)
BF16 = "bfloat16"


@pytest.fixture(scope="module")
def mesh():
    """16 chips as fsdp 4 x tp 4, for training and decoding as in a run."""
    return make_mesh(fsdp=4, tp=4, devices=topology.get("v5e:4x4").devices)


@pytest.fixture(scope="module")
def table():
    """Lines of a table with one program each, printed after the last test."""
    lines = [f"\n{'GiB a chip':<16}{'arguments':>12}{'temporaries':>12}{'peak':>12}{'resident':>12}{'total':>12}"]
    yield lines
    print("\n".join(lines))


class Abstract(Plan):
    """A run of Llama-3.1-8B with the cache LAYOUT above and bfloat16 weights."""

    def __init__(self, config, mesh, **changes):
        c = cfg.Config(
            sft=SFT,
            grpo=GRPO,
            sampler=cfg.Sampler(max_num_seqs=LAYOUT.num_seqs, block_size=LAYOUT.block_size),
            **changes,
        )
        super().__init__(c, config, mesh)


# Each program: lowered, and the run's arrays that stay resident beside its arguments and results.


def sft_step(a):
    return a.sft_step(), ()


def grpo_gradient(a):
    return a.grpo_gradient(), a.state.opt_state


def grpo_update(a):
    return a.grpo_update(), ()


def reshard(a):
    return a.reshard(), a.state.opt_state


def prefill(a):
    completion = a.kv_cache(LAYOUT, BF16).completion
    return a.prefill(LAYOUT, BF16), (a.state, a.weights(BF16).lm_head, completion)  # the head is not read


def pack(a):
    return a.pack(LAYOUT, BF16), (a.state, a.weights(BF16))


def decode_chunk(a):
    return a.decode(LAYOUT, BF16), a.state


PROGRAMS = {  # each with the marks of its compilation
    grpo_update: (),
    reshard: (),
    pack: (),
    decode_chunk: (),
    prefill: (pytest.mark.slow, pytest.mark.nightly),
    sft_step: (pytest.mark.slow, pytest.mark.nightly),
    grpo_gradient: (pytest.mark.slow, pytest.mark.nightly),
}


@functools.cache
def lowered(program, mesh, n_layers=32, attention="auto"):
    """A lowered program, and the arrays that stay resident."""
    return program(Abstract(llama3_8b(n_layers=n_layers), mesh, attention=attention))


@functools.cache
def compiled(program, mesh, n_layers=32):
    return lowered(program, mesh, n_layers)[0].compile()


@pytest.mark.parametrize("program", [pytest.param(p, marks=marks) for p, marks in PROGRAMS.items()])
def test_program_fits_a_chip(program, mesh, table, record_property):
    m = compiled(program, mesh).memory_analysis()
    resident = size(lowered(program, mesh)[1])
    # A donated argument and its result are one array.
    peak = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes + m.temp_size_in_bytes
    sizes = (m.argument_size_in_bytes, m.temp_size_in_bytes, peak, resident, peak + resident)
    table.append(f"{program.__name__:<16}" + "".join(f"{x / GIB:12.2f}" for x in sizes))
    record_property("peak_gib", round(peak / GIB, 2))
    record_property("at_once_gib", round(sizes[-1] / GIB, 2))
    assert sizes[-1] < topology.CHIPS["v5e"].hbm_bytes


@pytest.mark.slow
@pytest.mark.nightly
def test_training_has_no_collective_that_its_sharding_does_not_require(mesh):
    """No all-to-all moves queries, keys and values from tokens to heads. The collective permutes are rings: all-gathers
    and reduce-scatters that XLA has split into the steps of a matmul."""
    text = compiled(sft_step, mesh).as_text()
    assert unexpected_collectives(text, mesh, SFT.batch_size // 4, SFT.max_length) == []
    kinds = collectives.count(text).keys()
    assert kinds <= {"all-gather", "all-reduce", "reduce-scatter", "collective-permute"}


@pytest.mark.slow
@pytest.mark.nightly
def test_sft_of_llama_70b_compiles_for_a_v5p_slice(record_property):
    """Eight of its 80 layers. With 80 layers the state takes 6.16 GiB of a chip and the step 12.81 GiB at its peak."""
    c = cfg.load("configs/llama3.1-70b-paper.yaml")
    devices = topology.get("v5p:4x4x8").devices
    plan = Plan(c, llama3_70b(n_layers=8), make_mesh(c.mesh.data, c.mesh.fsdp, c.mesh.tp, devices=devices))
    m = plan.sft_step().compile().memory_analysis()
    peak = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes + m.temp_size_in_bytes
    print(f"\nsft_step of 70B's shape, 8 layers, v5p:4x4x8: {peak / GIB:.2f} GiB a chip")
    record_property("peak_gib", round(peak / GIB, 2))
    # Memory that grows with depth: the state, each layer's input, and the float32 gradients.
    whole = Plan(c, llama3_70b(), plan.mesh)
    inputs = 2 * c.sft.batch_size * c.sft.max_length * 8192 // plan.mesh.size  # bfloat16, a layer
    grown = size(whole.state) - size(plan.state) + 72 * inputs + size(whole.state.params) - size(plan.state.params)
    assert peak + grown < 0.9 * topology.CHIPS["v5p"].hbm_bytes


@pytest.mark.parametrize(
    "name, length, head_dim",
    [
        ("v5e:4x4", 8192, 128),
        pytest.param("v6e:2x4", 8192, 128, marks=pytest.mark.nightly),
        pytest.param("v5p:2x2x2", 8192, 128, marks=pytest.mark.nightly),
        ("v5e:4x4", 384, 64),
    ],
)
def test_splash_attention_and_its_gradient_compile(name, length, head_dim):
    mesh = make_mesh(data=2, tp=4, devices=topology.get(name).devices)

    def array(axes, *shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=train_sharding(mesh).named(*axes))

    heads, kv = ("batch", None, "heads", None), ("batch", None, "kv_heads", None)
    q, k = array(heads, 2, length, 32, head_dim), array(kv, 2, length, 8, head_dim)
    segments = array(("batch", None), 2, length, dtype=jnp.int32)

    def run(q, k, v, segments, kernel):
        out, pull = jax.vjp(lambda *x: attention.attend(*x, segments, train_sharding(mesh, kernel)), q, k, v)
        return out, *pull(out)

    program = jax.jit(run, static_argnums=4)
    text = program.lower(q, k, k, segments, "auto").compile().as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 2  # forward and backward
    assert "tpu_custom_call" not in program.lower(q, k, k, segments, "xla").as_text()


@pytest.mark.parametrize(
    "program, kernels",
    [(sft_step, 3), (grpo_gradient, 3), (prefill, 1)],  # 3: forward, the same with remat, backward
)
def test_whole_sequences_use_splash_attention(program, kernels, mesh):
    def calls(attention):
        return lowered(program, mesh, attention=attention)[0].as_text().count("@tpu_custom_call")

    assert calls("auto") == kernels and calls("xla") == 0


@pytest.mark.slow
@pytest.mark.nightly
def test_shared_prefixes_take_a_third_of_the_memory(record_property):
    """16 samples of a prefix of 2048 tokens with 512 of their own each, 512 rows on a v6e:2x4, temporaries included,
    against the caches alone of rows that share nothing."""
    a = Abstract(llama3_8b(), make_mesh(tp=8, devices=topology.get("v6e:2x4").devices))
    shared, alone = (
        CacheLayout(num_seqs=512, group_size=m, prefix_blocks=4, completion_blocks=1, block_size=512) for m in (16, 1)
    )
    caches, caches_alone = (size(a.kv_cache(layout, BF16)) for layout in (shared, alone))
    temporaries = a.decode(shared, BF16).compile().memory_analysis().temp_size_in_bytes
    record_property("gib", [round(x / GIB, 3) for x in (caches, temporaries, caches_alone)])
    assert temporaries <= 0.1 * caches
    assert caches + temporaries <= 0.35 * caches_alone


def test_decode_step_does_not_copy_the_cache_of_new_tokens(mesh):
    """XLA copies the whole cache in each step when the loop writes to it, with several blocks and heads a chip."""
    completion = Abstract(llama3_8b(), mesh).kv_cache(LAYOUT, BF16).completion
    text = compiled(decode_chunk, mesh).as_text()
    copied = [math.prod(map(int, dims.split(","))) for dims in re.findall(r"= bf16\[([\d,]+)\]\S* copy\(", text)]
    assert copied and max(copied) < math.prod(completion.k.sharding.shard_shape(completion.k.shape))


@pytest.mark.slow
def test_int8_decode_copies_neither_the_cache_nor_converted_weights(mesh):
    """At 32 layers. In a smaller model XLA made no copy of the ring buffer where it made one here."""
    sampler = cfg.Sampler(
        max_num_seqs=LAYOUT.num_seqs, block_size=LAYOUT.block_size, quantization="int8", kv_cache_dtype="int8"
    )
    layout = dataclasses.replace(LAYOUT, quantized=True)
    program = Abstract(llama3_8b(), mesh).decode(layout, BF16, sampler).compile()
    # One int8 matrix of all layers in another order, 128 MiB, and the sampled rows' logits.
    assert program.memory_analysis().temp_size_in_bytes < 0.2 * GIB


def test_plan_command_reports_memory_and_collectives(capsys):
    command = ["plan", "configs/llama3.1-8b.yaml", "--topology", "v5e:2x4", "--stage", "search", "--json",
               "mesh={fsdp: 1, tp: 8}"]  # fmt: skip
    assert cli.main(command) == 0
    plan = json.loads(capsys.readouterr().out)
    _, decode, _ = plan["programs"]
    assert [row["program"] for row in plan["programs"]] == ["prefill", "decode", "pack"] and plan["fits"]
    assert 0 < decode["peak_gib"] <= decode["at_once_gib"] < plan["hbm_gib"]
    # At least two sums, over the heads and over the MLP's width, in each of 32 layers and 16 steps.
    assert decode["collectives"]["all-reduce"]["calls"] >= 2 * 32 * 16


def test_program_that_the_compiler_refuses_for_its_memory_does_not_fit():
    """An array of 64 GiB and its result on one chip. The row has the size that the compiler's error names."""
    (device, *_) = topology.get("v5e:1x1").devices
    x = jax.ShapeDtypeStruct((16 * GIB,), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(device))
    program = Program("search", "decode", lambda: jax.jit(jnp.sin).lower(x))
    row = planner._compile_program(program, topology.CHIPS["v5e"], compile_only=False)
    assert not row["fits"] and row["peak_gib"] == row["at_once_gib"] == 128
    assert "lower sampler.max_num_seqs" in planner.suggest_changes({"hbm_gib": 15.75, "programs": [row]})


def test_results_of_a_program_match_the_arguments_of_the_next_one(mesh):
    a = Abstract(llama3_8b(), mesh)
    cache, packed = a.kv_cache(LAYOUT, BF16), a.kv_cache(LAYOUT.ungrouped(LAYOUT.num_prefixes), BF16)
    out = (cfg.Sampler().num_scheduler_steps, LAYOUT.num_seqs)
    for program, expected in (
        (reshard, a.weights(BF16)),
        (prefill, (cache.prefix, ints(a.chunk(LAYOUT)[0], dtype=bool))),  # in bfloat16, as weights are
        (pack, (packed.prefix, packed.completion)),
        (decode_chunk, (cache.completion, DecodeOutputs(ints(), ints(*out), floats(*out), floats(*out)))),
    ):
        results = jax.tree.map(lambda x: (x.shape, x.dtype), lowered(program, mesh)[0].out_info)
        assert results == jax.tree.map(lambda x: (x.shape, x.dtype), expected)


@pytest.mark.parametrize("program", PROGRAMS)
def test_lowered_program_does_not_grow_with_depth(program, mesh):
    shallow, deep = (lowered(program, mesh, n_layers)[0].as_text() for n_layers in (8, 32))
    assert operations(shallow) == operations(deep)


def test_compiler_does_not_unroll_the_layers(mesh):
    shallow, deep = (operations(compiled(decode_chunk, mesh, n_layers).as_text()) for n_layers in (8, 32))
    for name in ("while", "fusion", "convolution", "all-reduce"):
        assert shallow[name] == deep[name] > 0, name


def operations(text):
    """Count the operations in the text of a lowered or compiled program."""
    return Counter(re.findall(r"(?<=stablehlo\.)\w+|(?<=[\])}] )[a-z-]+(?=\()", text))


@pytest.mark.parametrize("name, chips", [("v5e:1x1", 1), ("v5e:2x2", 4), ("v5e:2x4", 8), ("v4:2x2x1", 4)])
def test_the_first_hour_is_planned_for_a_small_part_of_an_hour(name, chips):
    c = cfg.load("first-hour", [f"mesh.data={chips}"])
    plan = planner.plan_run(c, name, compiles=False, mean_length=1.0)
    assert {row["stage"] for row in plan["programs"]} >= {"base", "search", "sft", "grpo", "eval"}
    tokens = sum(entry["tokens"] for entry in plan["recipe"].values() if isinstance(entry, dict))
    assert tokens > 1e7 and plan["recipe"]["total_hours"] <= 0.2
