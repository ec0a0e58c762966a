"""The programs of a run at Llama-3.1-8B's shapes, compiled for a TPU v5e:4x4 that is not there.

`pytest -m "" -s tests/test_tpu.py` prints the memory that each needs of a chip.
"""

import collections
import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies

from astro_jax import config as cfg
from astro_jax.llama import params as llama_params
from astro_jax.llama.config import llama3_8b
from astro_jax.mesh import decode_sharding, make_mesh, train_sharding
from astro_jax.sampler import cache, decode
from astro_jax.sampler.cache import Shape
from astro_jax.sampler.draw import Filters
from astro_jax.train import grpo, sft
from astro_jax.train.losses import Batch, RolloutBatch
from astro_jax.train.state import abstract_state, make_accumulate, make_apply, make_optimizer, make_step

pytest.importorskip("libtpu", reason="extra `plan` (libtpu) is not installed")

GIB = 2**30
HBM = 15.75 * GIB  # of the 16 GiB of a chip, what the compiler counts on
SFT = cfg.Sft(batch=16, length=8192, remat=True, dtype="bfloat16")
GRPO = cfg.Grpo(length=4096, remat=True, dtype="bfloat16")
# Rows that decode at once, in lanes of 16 that share prefixes of 2048 tokens, with 2048 of their own each.
SHAPE = Shape(rows=128, lane=16, prefix_blocks=4, suffix_blocks=4, block=512, devices=4)
PREFILL = 2048  # tokens of prefixes that are prefilled at once on each device of the batch


@pytest.fixture(scope="module")
def mesh():
    """16 chips as fsdp 4 x tp 4: as in a run, training and decoding share one mesh."""
    with pytest.MonkeyPatch.context() as patch:
        # Another process may compile too, and nothing is to be asked of a TPU machine.
        patch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        patch.setenv("TPU_ACCELERATOR_TYPE", "v5litepod-16")
        patch.setenv("TPU_SKIP_MDS_QUERY", "1")
        patch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
        devices = topologies.get_topology_desc(topology_name="v5e:4x4", platform="tpu").devices
        yield make_mesh(fsdp=4, tp=4, devices=devices)


@pytest.fixture(scope="module")
def table():
    """One line a program, printed after the last."""
    lines = [f"\n{'GiB a chip':<16}{'arguments':>12}{'temporaries':>12}{'peak':>12}{'held beside':>12}{'at once':>12}"]
    yield lines
    print("\n".join(lines))


class Abstract:
    """A run's arrays as shapes with shardings; nothing is allocated."""

    def __init__(self, config, mesh):
        self.config, self.train, self.sample = config, train_sharding(mesh), decode_sharding(mesh)
        self.tx = make_optimizer(GRPO, steps=100)
        self.state = abstract_state(config, self.tx, self.train)
        self.weights = llama_params.abstract(config, self.sample, jnp.bfloat16)  # that decode

    def stores(self, shape):
        """Prefixes and suffixes, in the type of the weights."""
        makers = decode.make_allocate(self.config, self.sample, jnp.bfloat16)
        where = (cache.prefix_sharding(self.sample), cache.suffix_sharding(self.sample))
        return [
            jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), jax.eval_shape(make, shape), w
            )
            for make, w in zip(makers, where, strict=True)
        ]

    def decode(self, shape):
        """The decode program of a shape, lowered."""
        n, v = shape.rows, self.config.vocab_size
        rows = decode.Rows(ints(n), ints(n), ints(n), ints(n), ints(n, 2, dtype=jnp.uint32), ints(n))
        span = decode.Span(ints(), ints(shape.prefixes), ints(shape.tiles), ints())
        how = Filters(floats(), ints(), floats(), floats())
        program = decode.make_decode(self.config, self.sample, cfg.Sampler().chunk, False)
        return program.lower(self.weights, *self.stores(shape), rows, span, how, ints(v, dtype=bool))


def ints(*shape, dtype=jnp.int32):
    return jax.ShapeDtypeStruct(shape, dtype)


def floats(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def batch(*shape):
    return Batch(tokens=ints(*shape), segments=ints(*shape), positions=ints(*shape), weights=floats(*shape))


# Each program: the lowered program, and what the run holds on the devices beside its arguments and results.


def sft_step(a):
    step = make_step(sft.make_loss(SFT, a.config, a.train), a.tx, a.config, a.train)
    return step.lower(a.state, batch(SFT.batch, SFT.length)), ()


def grpo_gradient(a):
    shape = (GRPO.micro_batch, GRPO.length)
    accumulate = make_accumulate(grpo.make_loss(GRPO, a.config, a.train), a.tx, a.config, a.train)
    rollouts = RolloutBatch(batch(*shape), advantages=floats(*shape), old_logprobs=floats(*shape))
    return accumulate.lower(a.state.params, a.state.params, rollouts), a.state.opt_state


def grpo_update(a):
    return make_apply(a.tx, a.config, a.train).lower(a.state, a.state.params), ()


def reshard(a):
    return grpo.make_reshard(GRPO, a.config, a.sample).lower(a.state.params), a.state.opt_state


def prefill(a):
    prefix, suffix = a.stores(SHAPE)
    n = PREFILL // SHAPE.block * SHAPE.devices
    program = decode.make_prefill(a.config, a.sample)
    lowered = program.lower(a.weights, prefix, ints(n, SHAPE.block), ints(n), ints(n))
    return lowered, (a.state, a.weights.lm_head, suffix)  # the head is not read


def pack(a):
    prefix, suffix = a.stores(SHAPE)
    smaller = dataclasses.replace(SHAPE, rows=SHAPE.slots, lane=1)
    return decode.make_pack(a.config, a.sample).lower(prefix, suffix, ints(SHAPE.slots), ints(SHAPE.slots), smaller), (
        a.state,
        a.weights,
    )


def decode_chunk(a):
    return a.decode(SHAPE), a.state


QUICK = [grpo_update, reshard, pack, decode_chunk]
SLOW = [sft_step, grpo_gradient, prefill]


def size(tree):
    """Bytes that a tree of sharded arrays takes of a chip."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


@pytest.mark.parametrize("program", [*QUICK, *(pytest.param(p, marks=pytest.mark.slow) for p in SLOW)])
def test_it_fits_a_chip(program, mesh, table, record_property):
    lowered, held = program(Abstract(llama3_8b(), mesh))
    m = lowered.compile().memory_analysis()
    # A donated argument and its result are one array.
    peak = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes + m.temp_size_in_bytes
    sizes = (m.argument_size_in_bytes, m.temp_size_in_bytes, peak, size(held), peak + size(held))
    table.append(f"{program.__name__:<16}" + "".join(f"{x / GIB:12.2f}" for x in sizes))
    record_property("peak_gib", round(peak / GIB, 2))
    record_property("at_once_gib", round(sizes[-1] / GIB, 2))
    assert sizes[-1] < HBM


def test_shared_prefixes_take_a_third_of_the_memory(mesh, record_property):
    """16 samples of a prefix of 2048 tokens with 512 of their own each, 512 rows on a v6e:2x4."""
    devices = topologies.get_topology_desc(topology_name="v6e:2x4", platform="tpu").devices
    a = Abstract(llama3_8b(), make_mesh(tp=8, devices=devices))
    shape = Shape(rows=512, lane=16, prefix_blocks=4, suffix_blocks=1, block=512)
    found = []
    for lane in (16, 1):
        shape = dataclasses.replace(shape, lane=lane)
        temporaries = a.decode(shape).compile().memory_analysis().temp_size_in_bytes
        found.append([size(a.stores(shape)), temporaries, size(a.weights)])
        print(f"\nlanes of {lane}: caches, temporaries, weights: {[round(x / GIB, 3) for x in found[-1]]} GiB a chip")
        record_property(f"lane_{lane}", found[-1])
    (caches, temporaries, _), (caches_alone, temporaries_alone, _) = found
    assert temporaries <= 0.1 * caches
    assert caches + temporaries <= 0.35 * (caches_alone + temporaries_alone)


def test_a_decode_step_does_not_copy_the_ring(mesh):
    """With several blocks and heads a chip, XLA copied it whole, each step, as long as the loop wrote to it."""
    a = Abstract(llama3_8b(), mesh)
    _, suffix = a.stores(SHAPE)
    text = a.decode(SHAPE).compile().as_text()
    copied = [math.prod(map(int, dims.split(","))) for dims in re.findall(r"= bf16\[([\d,]+)\]\S* copy\(", text)]
    assert copied and max(copied) < math.prod(suffix.k.sharding.shard_shape(suffix.k.shape))


def test_each_program_makes_what_the_next_one_takes(mesh):
    a = Abstract(llama3_8b(), mesh)
    prefix, suffix = a.stores(SHAPE)
    out = [(cfg.Sampler().chunk, SHAPE.rows)] * 3
    for (lowered, _), expected in (
        (reshard(a), a.weights),
        (prefill(a), (prefix, ints(SHAPE.devices * PREFILL // SHAPE.block, dtype=bool))),  # in bfloat16, as weights are
        (pack(a), tuple(a.stores(dataclasses.replace(SHAPE, rows=SHAPE.slots, lane=1)))),
        (decode_chunk(a), (suffix, ints(), ints(*out[0]), floats(*out[1]), floats(*out[2]))),
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
