"""The device mesh, and the sharding rules that map logical axes to mesh axes.

An array is described by logical axes such as ("batch", "embed", "heads"). A `Sharding` turns the logical axes into a
`NamedSharding`. Training shards parameters over fsdp x tp. Decoding shards parameters over tp alone: with fsdp, every
decode step would gather every weight.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from astro_jax import distributed
from astro_jax.errors import AstroError

AXES = ("data", "fsdp", "tp")
Tree = TypeVar("Tree")  # a pytree; functions that map its leaves keep its structure

# The mesh axes of each logical axis. data and fsdp split the batch; tp splits heads, feed-forward width and vocabulary
# (tensor parallelism of Megatron-LM).
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
    """A mesh and its sharding rules. Hashable: compiled functions are cached by it.

    Attributes:
      mesh: devices with the axes data, fsdp and tp.
      rules: (logical axis, mesh axes) pairs. "seq" is the sequence axis of activations between transformer blocks:
        split over tp (sequence parallelism), the activations that remat keeps take 1 / tp of the memory.
      attention: the config key `attention`: "xla", "splash", "cudnn" or "auto" (see `astro_jax.llama.attention`).
    """

    mesh: Mesh
    rules: tuple[tuple[str, tuple[str, ...]], ...]
    attention: str = "auto"

    def mesh_axes(self, name: str | None) -> tuple[str, ...]:
        """The mesh axes that split a logical axis; () for an axis that is not split.

        An axis of one device splits nothing. XLA for CPUs keeps a collective over it, which copies the array.
        """
        return tuple(axis for axis in self._rule(name) if self.mesh.shape[axis] > 1)

    def _rule(self, name: str | None) -> tuple[str, ...]:
        """The mesh axes that split a logical axis, also those of one device."""
        return dict(self.rules).get(name or "", ())

    def spec(self, axes: Sequence[str | None]) -> PartitionSpec:
        """The PartitionSpec of an array with these logical axes.

        Raises:
          ValueError: when two logical axes share a mesh axis.
        """
        used = [name for axis in axes for name in self._rule(axis)]
        if len(used) != len(set(used)):
            raise ValueError(f"the logical axes {axes} use a mesh axis twice: {used}; change the sharding rules")
        entries = [self.mesh_axes(axis) for axis in axes]
        return PartitionSpec(*[entry[0] if len(entry) == 1 else (entry or None) for entry in entries])

    def named(self, *axes: str | None) -> NamedSharding:
        """The NamedSharding of an array with these logical axes."""
        return NamedSharding(self.mesh, self.spec(axes))

    def constrain(self, x: jax.Array, *axes: str | None) -> jax.Array:
        """Constrain the sharding of an intermediate value inside jit, and of its gradient."""
        return jax.lax.with_sharding_constraint(x, self.named(*axes))

    def device_put(self, tree: Tree, *axes: str | None) -> Tree:
        """Put a pytree of host arrays onto the devices. Every process holds all arrays, and puts its own shards."""
        return jax.tree.map(lambda x: device_put_global(x, self.named(*axes)), tree)

    def reshard(self, x: jax.Array, source: Sequence[str | None], target: Sequence[str | None]) -> jax.Array:
        """Constrain an intermediate value inside jit to the logical axes `target`, and its gradient to `source`.

        The backward pass of an all-gather is then a reduce-scatter. `constrain` would make it an all-reduce.
        """

        @jax.custom_vjp
        def resharded(x: jax.Array) -> jax.Array:
            return self.constrain(x, *target)

        resharded.defvjp(lambda x: (resharded(x), None), lambda _, g: (self.constrain(g, *source),))
        return resharded(x)

    @property
    def batch_size(self) -> int:
        """The number of devices that split the batch axis. Every batch size must be a multiple of this number."""
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    @property
    def platform(self) -> str:
        """The platform of the devices: "cpu", "gpu" or "tpu"."""
        return self.mesh.devices.flat[0].platform

    @property
    def compute_capability(self) -> float:
        """The compute capability of the GPUs, such as 8.0 or 9.0; 0 for other devices."""
        capability = getattr(self.mesh.devices.flat[0], "compute_capability", "")
        return float(capability) if re.fullmatch(r"\d+\.\d+", capability) else 0.0


def device_put_global(x: np.ndarray | jax.Array, sharding: NamedSharding) -> jax.Array:
    """Put an array onto a sharding that may span several processes.

    Args:
      x: the whole array, in every process; or a global array on other devices.
    """
    if sharding.is_fully_addressable or (isinstance(x, jax.Array) and not x.is_fully_addressable):
        return jax.device_put(x, sharding)
    whole = np.asarray(x)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def set_cpu_device_count(devices: int) -> None:
    """Set the number of virtual CPU devices of this process, so that all processes together have `devices`.

    Call this function before the first use of a device. Later calls have no effect.
    """
    try:
        jax.config.update("jax_num_cpu_devices", -(-devices // distributed.process_count()))
    except RuntimeError:
        pass  # the backend is initialized; make_mesh raises an error when the devices are too few


def make_mesh(data: int = 1, fsdp: int = 1, tp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Make a mesh of data x fsdp x tp devices. tp is innermost: it has the most traffic and needs the shortest links.

    The devices may be of several TPU slices (multislice), which a slow network joins. Only the data axis goes from one
    slice to another: per step of training it carries one sum of the gradients.

    Args:
      devices: default jax.devices().

    Raises:
      AstroError: when the devices are too few, when the mesh leaves out devices of a multi-process run, or when the
        slices do not divide the data axis.
    """
    devices = list(jax.devices() if devices is None else devices)
    need = data * fsdp * tp
    if len(devices) < need:
        raise AstroError(f"the mesh {data}x{fsdp}x{tp} needs {need} devices, but {len(devices)} exist; set mesh.*")
    if distributed.process_count() > 1 and len(devices) > need:
        raise AstroError(
            f"the mesh {data}x{fsdp}x{tp} leaves out some of the {len(devices)} devices of "
            f"{distributed.process_count()} processes; set mesh.* so that the mesh has all devices"
        )
    shape = (data, fsdp, tp)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1:
        require_slices_divide(data, slices)
        if len(devices) > need:
            raise AstroError(
                f"the mesh {data}x{fsdp}x{tp} leaves out some of the {len(devices)} devices of {slices} slices"
            )
        of_slice, between = (data // slices, fsdp, tp), (slices, 1, 1)
        return Mesh(
            mesh_utils.create_hybrid_device_mesh(of_slice, between, devices, allow_split_physical_axes=True), AXES
        )
    if devices[0].platform == "tpu" and len(devices) == need:  # neighbours in the mesh are neighbours in the slice
        return Mesh(mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True), AXES)
    return Mesh(np.asarray(devices[:need]).reshape(shape), AXES)


def require_slices_divide(data: int, slices: int) -> None:
    """Check that the data axis can be cut between slices.

    Raises:
      AstroError: when it cannot.
    """
    if data % slices:
        raise AstroError(
            f"mesh.data={data}: the devices are of {slices} slices, between which only data splits; set mesh.data to a "
            f"multiple of {slices}"
        )


def train_sharding(mesh: Mesh, attention: str = "auto") -> Sharding:
    """The sharding of training: parameters over fsdp x tp, activations over batch and (between blocks) sequence."""
    return Sharding(mesh, tuple(TRAIN_RULES.items()), attention)


def decode_sharding(mesh: Mesh, attention: str = "auto") -> Sharding:
    """The sharding of decoding: parameters over tp, sequences and their caches over the batch."""
    return Sharding(mesh, tuple(DECODE_RULES.items()), attention)
