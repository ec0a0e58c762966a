"""The mesh and the sharding rules."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from helpers import tiny_config
from jax.sharding import PartitionSpec as P

from astro_jax.errors import AstroError
from astro_jax.llama import params as llama_params
from astro_jax.mesh import DECODE_RULES, TRAIN_RULES, Sharding, decode_sharding, make_mesh, train_sharding

# The PartitionSpec of each parameter in training (fsdp x tp) and in decoding (tp alone).
SPECS = {
    "embed": (P("tp", "fsdp"), P("tp", None)),
    "final_norm": (P("fsdp"), P(None)),
    "lm_head": (P("fsdp", "tp"), P(None, "tp")),
    "layers.attn_norm": (P(None, "fsdp"), P(None, None)),
    "layers.mlp_norm": (P(None, "fsdp"), P(None, None)),
    "layers.wq": (P(None, "fsdp", "tp", None), P(None, None, "tp", None)),
    "layers.wk": (P(None, "fsdp", "tp", None), P(None, None, "tp", None)),
    "layers.wv": (P(None, "fsdp", "tp", None), P(None, None, "tp", None)),
    "layers.wo": (P(None, "tp", None, "fsdp"), P(None, "tp", None, None)),
    "layers.w_gate": (P(None, "fsdp", "tp"), P(None, None, "tp")),
    "layers.w_up": (P(None, "fsdp", "tp"), P(None, None, "tp")),
    "layers.w_down": (P(None, "tp", "fsdp"), P(None, "tp", None)),
}


@pytest.mark.parametrize("index, make", [(0, train_sharding), (1, decode_sharding)])
def test_every_parameter_has_its_partition_spec(index, make):
    sharding = make(make_mesh(2, 2, 2))
    leaves = jax.tree_util.tree_leaves_with_path(llama_params.shardings(tiny_config(), sharding))
    specs = {jax.tree_util.keystr(path, simple=True, separator="."): s.spec for path, s in leaves}
    assert specs == {name: expected[index] for name, expected in SPECS.items()}


@pytest.mark.parametrize("make", [train_sharding, decode_sharding])
def test_no_parameter_uses_a_mesh_axis_twice(make):
    sharding = make(make_mesh(2, 2, 2))
    for spec in jax.tree.leaves(llama_params.param_specs(tiny_config())):
        used = [axis for axis in sharding.spec(spec.axes) if axis is not None]
        assert len(used) == len(set(used))


def test_logical_axes_that_share_a_mesh_axis_are_an_error():
    sharding = train_sharding(make_mesh())
    with pytest.raises(ValueError, match="twice"):
        sharding.spec(("heads", "mlp"))
    with pytest.raises(ValueError, match="twice"):
        sharding.spec(("batch", None, "embed"))


def test_data_and_fsdp_split_the_batch():
    sharding = train_sharding(make_mesh(data=2, fsdp=2, tp=2))
    assert sharding.spec(("batch", "seq", None)) == P(("data", "fsdp"), "tp", None)
    assert sharding.batch_size == 4
    assert TRAIN_RULES.keys() - DECODE_RULES.keys() == {"embed", "seq"}


def test_an_axis_of_one_device_splits_nothing():
    sharding = train_sharding(make_mesh(data=2, tp=2))
    assert sharding.mesh_axes("batch") == ("data",) and sharding.mesh_axes("embed") == ()
    assert sharding.spec(("batch", "vocab")) == P("data", "tp") and sharding.spec(("embed",)) == P(None)


def test_tp_is_the_innermost_axis():
    mesh = make_mesh(data=2, fsdp=1, tp=4)
    assert [[d.id for d in row[0]] for row in mesh.devices] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_equal_meshes_give_equal_shardings():
    # Shardings are keys of the cache of compiled functions.
    a, b = (decode_sharding(make_mesh(2, 1, 2)) for _ in range(2))
    assert a == b and hash(a) == hash(b) and a != decode_sharding(make_mesh(1, 2, 2)) and isinstance(a, Sharding)


def test_mesh_larger_than_the_devices_is_an_error():
    with pytest.raises(AstroError, match="the mesh 2x3x5 needs 30 devices, but 8 exist"):
        make_mesh(2, 3, 5)
    for data, fsdp, tp in itertools.product((1, 2), repeat=3):
        assert make_mesh(data, fsdp, tp).size == data * fsdp * tp


def test_resharded_gradient_has_the_source_sharding():
    sharding = train_sharding(make_mesh(tp=2))
    x = jax.device_put(np.ones((2, 4, 8), np.float32), sharding.named("batch", "seq", None))

    @jax.jit
    def gather(x):
        y, pull = jax.vjp(lambda x: sharding.reshard(x, ("batch", "seq", None), ("batch", None, None)), x)
        return y, pull(y)[0]

    gathered, gradient = gather(x)
    assert gathered.sharding.is_equivalent_to(sharding.named("batch", None, None), 3)
    assert gradient.sharding.is_equivalent_to(sharding.named("batch", "seq", None), 3)


# ---- Several slices


@dataclasses.dataclass(frozen=True)
class FakeChip:
    """A TPU chip of a slice, with the attributes that JAX's mesh utilities read."""

    id: int
    slice_index: int
    coords: tuple[int, int, int]
    process_index: int = 0
    core_on_chip: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"


def chips_of(slices, rows, columns):
    places = itertools.product(range(slices), range(rows), range(columns))
    return [FakeChip(n, s, (x, y, 0)) for n, (s, x, y) in enumerate(places)]


@pytest.mark.parametrize("data, fsdp, tp", [(2, 4, 4), (4, 2, 4), (8, 4, 1)])
def test_only_the_data_axis_goes_from_slice_to_slice(data, fsdp, tp):
    chips = chips_of(2, 4, 4)
    devices = make_mesh(data, fsdp, tp, devices=chips).devices
    assert devices.shape == (data, fsdp, tp) and set(devices.flat) == set(chips)
    slices = np.vectorize(lambda chip: chip.slice_index)(devices)
    assert [set(row.flat) for row in slices] == [{0}] * (data // 2) + [{1}] * (data // 2)


def test_data_axis_that_the_slices_do_not_divide_is_an_error():
    with pytest.raises(AstroError, match=r"mesh.data=1: the devices are of 2 slices.*set mesh.data to a multiple of 2"):
        make_mesh(1, 8, 4, devices=chips_of(2, 4, 4))
    with pytest.raises(AstroError, match="leaves out some of the 32 devices of 2 slices"):
        make_mesh(2, 2, 4, devices=chips_of(2, 4, 4))
