"""The device mesh, and the one table from logical axes to mesh axes.

Arrays are described by logical axes ("batch", "embed", "heads", ...); a `Sharding` object turns them into a
`NamedSharding`. Training shards parameters over fsdp x tp; decoding keeps them over tp alone, since gathering
every weight for every token would cost more than the memory it saves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from astro_jax import distributed
from astro_jax.errors import AstroError

AXES = ("data", "fsdp", "tp")

# The batch is split over data and fsdp alike; tp splits heads, width and vocabulary (Megatron's pattern).
_COMMON: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "heads": ("tp",),
    "kv_heads": ("tp",),
    "mlp": ("tp",),
    "vocab": ("tp",),
}
TRAIN_RULES = _COMMON | {"embed": ("fsdp",), "seq": ("tp",)}
DECODE_RULES = _COMMON


@dataclasses.dataclass(frozen=True)
class Sharding:
    """A mesh and the rules by which logical axes lie on it.

    "seq" is only used for activations between blocks: there they are split over tp (sequence parallelism), which
    divides what remat keeps by the size of tp. `attention` is the config's: whole sequences attend on the mesh by
    the kernel that it names (llama.attention).
    """

    mesh: Mesh
    rules: tuple[tuple[str, tuple[str, ...]], ...]
    attention: str = "auto"

    def axes(self, name: str | None) -> tuple[str, ...]:
        """The mesh axes that a logical axis lies on."""
        return dict(self.rules).get(name or "", ())

    def spec(self, axes: Sequence[str | None]) -> PartitionSpec:
        """The PartitionSpec of an array with these logical axes. No mesh axis may serve twice."""
        parts = [self.axes(axis) for axis in axes]
        used = [name for part in parts for name in part]
        if len(used) != len(set(used)):
            raise ValueError(f"axes {axes} would use a mesh axis twice: {parts}")
        return PartitionSpec(*[part[0] if len(part) == 1 else (part or None) for part in parts])

    def named(self, *axes: str | None) -> NamedSharding:
        """The NamedSharding of an array with these logical axes."""
        return NamedSharding(self.mesh, self.spec(axes))

    def constrain(self, x: jax.Array, *axes: str | None) -> jax.Array:
        """Pin an intermediate value inside jit to its logical axes."""
        return jax.lax.with_sharding_constraint(x, self.named(*axes))

    def put(self, tree: Any, *axes: str | None) -> Any:
        """Host arrays that every process has, on the devices: each process places its own part."""

        def place(x: np.ndarray) -> jax.Array:
            return spread(x, self.named(*axes))

        return jax.tree.map(place, tree)

    def move(self, x: jax.Array, here: Sequence[str | None], there: Sequence[str | None]) -> jax.Array:
        """Pin an intermediate value inside jit to the logical axes `there`, and its gradient to those it came with.

        `constrain` pins both alike: what is gathered forward would be summed whole, not scattered, backward.
        """

        @jax.custom_vjp
        def moved(x: jax.Array) -> jax.Array:
            return self.constrain(x, *there)

        moved.defvjp(lambda x: (moved(x), None), lambda _, g: (self.constrain(g, *here),))
        return moved(x)

    @property
    def batch_size(self) -> int:
        """Devices that the batch axis is split over; every batch must divide by it."""
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    @property
    def platform(self) -> str:
        """What the devices are: "cpu", "gpu" or "tpu"."""
        return self.mesh.devices.flat[0].platform


def spread(x: Any, where: NamedSharding) -> jax.Array:
    """An array onto a sharding, from the host or from other devices; each process gives its own part of what it holds
    whole."""
    if where.is_fully_addressable or (isinstance(x, jax.Array) and not x.is_fully_addressable):
        return jax.device_put(x, where)
    whole = np.asarray(x)
    return jax.make_array_from_callback(whole.shape, where, lambda part: whole[part])


def start(devices: int) -> None:
    """Before the first use of a device: on a CPU, make as many virtual devices as the mesh needs of this process."""
    try:
        jax.config.update("jax_num_cpu_devices", -(-devices // distributed.process_count()))
    except RuntimeError:
        pass  # the backend is up already, with the devices that it has; make_mesh says when they are too few


def make_mesh(data: int = 1, fsdp: int = 1, tp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of data x fsdp x tp devices, tp innermost: its traffic is the heaviest and wants the nearest links.

    Raises:
      AstroError: when there are fewer devices than that.
    """
    devices = list(jax.devices() if devices is None else devices)
    need = data * fsdp * tp
    if len(devices) < need:
        raise AstroError(f"the mesh {data}x{fsdp}x{tp} needs {need} devices, there are {len(devices)}: set mesh.*")
    if distributed.process_count() > 1 and len(devices) > need:
        raise AstroError(
            f"the mesh {data}x{fsdp}x{tp} leaves out some of the {len(devices)} devices of {distributed.process_count()} "
            "processes: set mesh.* so that it takes them all"
        )
    shape = (data, fsdp, tp)
    if devices[0].platform == "tpu" and len(devices) == need:  # along the links of the slice
        return Mesh(mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True), AXES)
    return Mesh(np.asarray(devices[:need]).reshape(shape), AXES)


def train_sharding(mesh: Mesh, attention: str = "auto") -> Sharding:
    """Parameters over fsdp x tp, activations over the batch and, between blocks, the sequence."""
    return Sharding(mesh, tuple(TRAIN_RULES.items()), attention)


def decode_sharding(mesh: Mesh, attention: str = "auto") -> Sharding:
    """Parameters over tp, sequences and their caches over the batch."""
    return Sharding(mesh, tuple(DECODE_RULES.items()), attention)
