"""The mesh and the table of logical axes."""

import itertools

import jax
import pytest
from helpers import tiny_config
from jax.sharding import PartitionSpec as P

from astro_jax.errors import AstroError
from astro_jax.llama import params as llama_params
from astro_jax.mesh import DECODE_RULES, TRAIN_RULES, Sharding, decode_sharding, make_mesh, train_sharding

# The tensor: how training lays it out (fsdp x tp), and decoding (tp alone).
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


@pytest.mark.parametrize("which, make", [(0, train_sharding), (1, decode_sharding)])
def test_every_parameter_lies_as_the_table_says(which, make):
    sharding = make(make_mesh(2, 2, 2))
    leaves = jax.tree_util.tree_leaves_with_path(llama_params.shardings(tiny_config(), sharding))
    found = {jax.tree_util.keystr(path, simple=True, separator="."): s.spec for path, s in leaves}
    assert found == {name: specs[which] for name, specs in SPECS.items()}


@pytest.mark.parametrize("make", [train_sharding, decode_sharding])
def test_no_mesh_axis_serves_twice(make):
    sharding = make(make_mesh(2, 2, 2))
    for spec in jax.tree.leaves(llama_params.param_specs(tiny_config())):
        used = [axis for axis in sharding.spec(spec.axes) if axis is not None]
        assert len(used) == len(set(used))


def test_a_table_that_would_use_a_mesh_axis_twice_is_an_error():
    sharding = train_sharding(make_mesh())
    with pytest.raises(ValueError, match="twice"):
        sharding.spec(("heads", "mlp"))
    with pytest.raises(ValueError, match="twice"):
        sharding.spec(("batch", None, "embed"))


def test_the_batch_is_split_over_data_and_fsdp():
    sharding = train_sharding(make_mesh(data=2, fsdp=2, tp=2))
    assert sharding.spec(("batch", "seq", None)) == P(("data", "fsdp"), "tp", None)
    assert sharding.batch_size == 4
    assert TRAIN_RULES.keys() - DECODE_RULES.keys() == {"embed", "seq"}


def test_tp_is_innermost():
    mesh = make_mesh(data=2, fsdp=1, tp=4)
    assert [[d.id for d in row[0]] for row in mesh.devices] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_equal_meshes_give_equal_shardings():
    # Compiled programs are kept by them.
    a, b = (decode_sharding(make_mesh(2, 1, 2)) for _ in range(2))
    assert a == b and hash(a) == hash(b) and a != decode_sharding(make_mesh(1, 2, 2)) and isinstance(a, Sharding)


def test_more_devices_than_there_are_is_an_error():
    with pytest.raises(AstroError, match="the mesh 2x3x5 needs 30 devices, there are 8"):
        make_mesh(2, 3, 5)
    for data, fsdp, tp in itertools.product((1, 2), repeat=3):
        assert make_mesh(data, fsdp, tp).size == data * fsdp * tp
