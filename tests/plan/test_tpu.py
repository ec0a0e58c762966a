"""The programs of a run at Llama-3.1-8B's shapes, compiled for a TPU v5e:4x4 that is not there.

`pytest -m "" -s tests/plan/test_tpu.py` prints the memory that each needs of a chip.
"""

import collections
import functools
import json
import math
import re

import jax
import jax.numpy as jnp
import pytest
from helpers import unexpected_collectives

from astro_jax import cli
from astro_jax import config as cfg
from astro_jax.llama import attention
from astro_jax.llama.config import llama3_8b, llama3_70b
from astro_jax.mesh import make_mesh, train_sharding
from astro_jax.plan import collectives as plan_collectives
from astro_jax.plan import topology
from astro_jax.plan.programs import Plan, floats, ints, size
from astro_jax.sampler.kv_cache import CacheLayout
from astro_jax.sampler.programs import DecodeOutputs

pytest.importorskip("libtpu", reason="extra `plan` (libtpu) is not installed")

GIB = 2**30
SFT = cfg.Sft(batch_size=16, max_length=8192, remat_policy="full", dtype="bfloat16")
GRPO = cfg.Grpo(max_length=4096, remat_policy="full", dtype="bfloat16")
# 128 rows in prefix groups of 16, with prompts of 2048 tokens and up to 2048 new tokens each.
LAYOUT = CacheLayout(num_seqs=128, group_size=16, prefix_blocks=4, completion_blocks=4, block_size=512, devices=4)
BF16 = "bfloat16"


@pytest.fixture(scope="module")
def mesh():
    """16 chips as fsdp 4 x tp 4: as in a run, training and decoding share one mesh."""
    return make_mesh(fsdp=4, tp=4, devices=topology.get("v5e:4x4").devices)


@pytest.fixture(scope="module")
def table():
    """One line a program, printed after the last."""
    lines = [f"\n{'GiB a chip':<16}{'arguments':>12}{'temporaries':>12}{'peak':>12}{'held beside':>12}{'at once':>12}"]
    yield lines
    print("\n".join(lines))


class Abstract(Plan):
    """A run of Llama-3.1-8B, with the cache layout above and bfloat16 weights."""

    def __init__(self, config, mesh, **changes):
        c = cfg.Config(
            sft=SFT,
            grpo=GRPO,
            sampler=cfg.Sampler(max_num_seqs=LAYOUT.num_seqs, block_size=LAYOUT.block_size),
            **changes,
        )
        super().__init__(c, config, mesh)


# Each program: lowered, and what the run holds on the devices beside its arguments and results.


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


QUICK = [grpo_update, reshard, pack, decode_chunk]
SLOW = [sft_step, grpo_gradient, prefill]


@functools.cache
def compiled(program, mesh):
    """A whole program, and what is held beside it."""
    lowered, held = program(Abstract(llama3_8b(), mesh))
    return lowered.compile(), held


@pytest.mark.parametrize("program", [*QUICK, *(pytest.param(p, marks=pytest.mark.slow) for p in SLOW)])
def test_it_fits_a_chip(program, mesh, table, record_property):
    made, held = compiled(program, mesh)
    m = made.memory_analysis()
    # A donated argument and its result are one array.
    peak = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes + m.temp_size_in_bytes
    sizes = (m.argument_size_in_bytes, m.temp_size_in_bytes, peak, size(held), peak + size(held))
    table.append(f"{program.__name__:<16}" + "".join(f"{x / GIB:12.2f}" for x in sizes))
    record_property("peak_gib", round(peak / GIB, 2))
    record_property("at_once_gib", round(sizes[-1] / GIB, 2))
    assert sizes[-1] < topology.CHIPS["v5e"].hbm


@pytest.mark.slow
def test_training_moves_nothing_that_its_sharding_does_not_call_for(mesh):
    """Once it moved queries, keys and values from tokens to heads, 13 all-to-alls a layer. The collective permutes that
    are left are rings: all-gathers and reduce-scatters in the steps of a matmul."""
    text = compiled(sft_step, mesh)[0].as_text()
    assert unexpected_collectives(text, mesh, SFT.batch_size // 4, SFT.max_length) == []
    kinds = plan_collectives.count(text).keys()
    assert kinds <= {"all-gather", "all-reduce", "reduce-scatter", "collective-permute"}


@pytest.mark.slow
def test_sft_of_llama_70b_compiles_for_a_v5p_slice(record_property):
    """Eight of its 80 layers. With all of them the state takes 6.16 GiB of a chip and the step 12.81 at its peak."""
    c = cfg.load("configs/llama3.1-70b-paper.yaml")
    devices = topology.get("v5p:4x4x8").devices
    plan = Plan(c, llama3_70b(n_layers=8), make_mesh(c.mesh.data, c.mesh.fsdp, c.mesh.tp, devices=devices))
    m = plan.sft_step().compile().memory_analysis()
    peak = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes + m.temp_size_in_bytes
    print(f"\nsft_step of 70B's shape, 8 layers, v5p:4x4x8: {peak / GIB:.2f} GiB a chip")
    record_property("peak_gib", round(peak / GIB, 2))
    # What grows with depth: the state, and in each layer's backward pass its input and its gradient in float32.
    whole = Plan(c, llama3_70b(), plan.mesh)
    inputs = 2 * c.sft.batch_size * c.sft.max_length * 8192 // plan.mesh.size  # bfloat16, a layer
    grown = size(whole.state) - size(plan.state) + 72 * inputs + size(whole.state.params) - size(plan.state.params)
    assert peak + grown < 0.9 * topology.CHIPS["v5p"].hbm


@pytest.mark.parametrize("name", ["v5e:4x4", "v6e:2x4", "v5p:2x2x2"])
@pytest.mark.parametrize("length, head_dim", [(8192, 128), (384, 64)])
def test_splash_attention_and_its_gradient_compile(name, length, head_dim):
    mesh = make_mesh(data=2, tp=4, devices=topology.get(name).devices)

    def array(axes, *shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=train_sharding(mesh).named(*axes))

    heads, kv = ("batch", None, "heads", None), ("batch", None, "kv_heads", None)
    q, k = array(heads, 2, length, 32, head_dim), array(kv, 2, length, 8, head_dim)
    segments = array(("batch", None), 2, length, dtype=jnp.int32)

    def run(q, k, v, segments, asked):
        out, pull = jax.vjp(lambda *x: attention.attend(*x, segments, train_sharding(mesh, asked)), q, k, v)
        return out, *pull(out)

    program = jax.jit(run, static_argnums=4)
    text = program.lower(q, k, k, segments, "auto").compile().as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 2  # forward and backward
    assert "tpu_custom_call" not in program.lower(q, k, k, segments, "xla").as_text()


@pytest.mark.parametrize(
    "program, kernels",
    [(sft_step, 3), (grpo_gradient, 3), (prefill, 1)],  # forward, again in the backward pass, and backward
)
def test_whole_sequences_are_planned_with_splash_attention(program, kernels, mesh):
    def calls(asked):
        return program(Abstract(llama3_8b(), mesh, attention=asked))[0].as_text().count("@tpu_custom_call")

    assert calls("auto") == kernels and calls("xla") == 0


def test_shared_prefixes_take_a_third_of_the_memory(mesh, record_property):
    """16 samples of a prefix of 2048 tokens with 512 of their own each, 512 rows on a v6e:2x4."""
    a = Abstract(llama3_8b(), make_mesh(tp=8, devices=topology.get("v6e:2x4").devices))
    sizes = []
    for m in (16, 1):
        layout = CacheLayout(num_seqs=512, group_size=m, prefix_blocks=4, completion_blocks=1, block_size=512)
        temporaries = a.decode(layout, BF16).compile().memory_analysis().temp_size_in_bytes
        sizes.append([size(a.kv_cache(layout, BF16)), temporaries, size(a.weights(BF16))])
        print(f"\ngroups of {m}: caches, temporaries, weights: {[round(x / GIB, 3) for x in sizes[-1]]} GiB a chip")
        record_property(f"group_size_{m}", sizes[-1])
    (caches, temporaries, _), (caches_alone, temporaries_alone, _) = sizes
    assert temporaries <= 0.1 * caches
    assert caches + temporaries <= 0.35 * (caches_alone + temporaries_alone)


def test_a_decode_step_does_not_copy_the_ring_buffer(mesh):
    """With several blocks and heads a chip, XLA copied a ring buffer that the loop writes to, each step."""
    a = Abstract(llama3_8b(), mesh)
    completion = a.kv_cache(LAYOUT, BF16).completion
    text = a.decode(LAYOUT, BF16).compile().as_text()
    copied = [math.prod(map(int, dims.split(","))) for dims in re.findall(r"= bf16\[([\d,]+)\]\S* copy\(", text)]
    assert copied and max(copied) < math.prod(completion.k.sharding.shard_shape(completion.k.shape))


def test_a_plan_from_the_command_line(capsys):
    """Llama-3.1-8B cut to two layers, on eight chips; then with caches that no chip holds."""
    command = ["plan", "configs/llama3.1-8b.yaml", "--topology", "v5e:2x4", "--stage", "search", "--json",
               "mesh={fsdp: 1, tp: 8}"]  # fmt: skip
    assert cli.main(command) == 0
    plan = json.loads(capsys.readouterr().out)
    _, decode, _ = plan["programs"]
    assert [row["program"] for row in plan["programs"]] == ["prefill", "decode", "pack"] and plan["fits"]
    assert 0 < decode["peak_gib"] <= decode["at_once_gib"] < plan["hbm_gib"]
    # Two sums over the heads and the width of each of 32 layers, in each of 16 steps, at least.
    assert decode["collectives"]["all-reduce"]["calls"] >= 2 * 32 * 16
    assert cli.main([*command, "sampler.max_num_seqs=4096"]) == 3
    out, err = capsys.readouterr()
    assert not json.loads(out)["fits"]
    assert "GiB a chip: lower sampler.max_num_seqs" in err


def test_each_program_makes_what_the_next_one_takes(mesh):
    a = Abstract(llama3_8b(), mesh)
    cache, packed = a.kv_cache(LAYOUT, BF16), a.kv_cache(LAYOUT.ungrouped(LAYOUT.num_prefixes), BF16)
    out = (cfg.Sampler().num_scheduler_steps, LAYOUT.num_seqs)
    for (lowered, _), expected in (
        (reshard(a), a.weights(BF16)),
        (prefill(a), (cache.prefix, ints(a.chunk(LAYOUT)[0], dtype=bool))),  # in bfloat16, as weights are
        (pack(a), (packed.prefix, packed.completion)),
        (decode_chunk(a), (cache.completion, DecodeOutputs(ints(), ints(*out), floats(*out), floats(*out)))),
    ):
        made = jax.tree.map(lambda x: (x.shape, x.dtype), lowered.out_info)
        assert made == jax.tree.map(lambda x: (x.shape, x.dtype), expected)


@pytest.mark.parametrize("program", [*QUICK, *SLOW])
def test_the_program_does_not_grow_with_depth(program, mesh):
    shallow, deep = (program(Abstract(llama3_8b(n_layers=n), mesh))[0].as_text() for n in (8, 32))
    assert operations(shallow) == operations(deep)


def test_the_compiler_does_not_unroll_the_layers(mesh):
    shallow, deep = (decode_chunk(Abstract(llama3_8b(n_layers=n), mesh))[0].compile().as_text() for n in (8, 32))
    before, after = operations(shallow), operations(deep)
    for name in ("while", "fusion", "convolution", "all-reduce"):
        assert before[name] == after[name] > 0, name


def operations(text):
    """How often each operation stands in a program's text, before or after its compilation."""
    return collections.Counter(re.findall(r"(?<=stablehlo\.)\w+|(?<=[\])}] )[a-z-]+(?=\()", text))
