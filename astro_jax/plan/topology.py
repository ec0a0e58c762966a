"""TPU chips and slices: published figures, and the devices of a slice to compile for without a TPU."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re

import jax

from astro_jax.errors import AstroError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of TPU chip, by its published figures.

    Attributes:
      hbm_bytes: memory that the compiler gives to programs, a little less than the chip has.
      flops_per_s: peak FLOP/s in bfloat16.
      hbm_bandwidth: bytes/s.
      ici_bandwidth: bytes/s in and out over all links to other chips (inter-chip interconnect).
      slices: shapes that Cloud TPU offers, such as "4x4".
      config: of the compiler, where its default makes a device of each core and not, as the runtime does, of each chip.
    """

    hbm_bytes: float
    flops_per_s: float
    hbm_bandwidth: float
    ici_bandwidth: float
    slices: tuple[str, ...]
    config: str = ""


_SHAPES_2D = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SHAPES_3D = (
    "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16",
    "16x16x24",
)  # fmt: skip
CHIPS = {
    "v4": Chip(30.75 * GIB, 275e12, 1228e9, 300e9, _SHAPES_3D, "megacore"),
    "v5e": Chip(15.75 * GIB, 197e12, 819e9, 200e9, _SHAPES_2D),
    "v6e": Chip(31.25 * GIB, 918e12, 1640e9, 448e9, _SHAPES_2D),
    "v5p": Chip(95.74 * GIB, 459e12, 2765e9, 600e9, _SHAPES_3D),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice, or several equal slices.

    Attributes:
      name: such as "v5p:4x4x8", or "v5e:4x4:2" for two slices.
      chip: its kind of chip.
      devices: one for each chip.
    """

    name: str
    chip: Chip
    devices: tuple[jax.Device, ...]


def parse(name: str) -> tuple[Chip, int]:
    """Return the chip and the number of chips of a topology. Example: "v5p:4x4x8" has 128 chips, and "v5e:4x4:2" 32.

    Raises:
      AstroError: for an unknown chip or slice. The message lists the known ones.
    """
    kind, _, rest = name.partition(":")
    shape = rest.partition(":")[0]
    if kind not in CHIPS:
        raise AstroError(f"--topology {name}: unknown TPU; choose one of {', '.join(CHIPS)}, as in v5e:4x4")
    chip = CHIPS[kind]
    if shape not in chip.slices:
        raise AstroError(f"--topology {name}: unknown slice of {kind}; choose one of {', '.join(chip.slices)}")
    return chip, math.prod(map(int, shape.split("x"))) * slices(name)


def slices(name: str) -> int:
    """Return the number of slices of a topology. Example: 2 for "v5e:4x4:2".

    Raises:
      AstroError: when the third part is no number from 1.
    """
    _, _, number = (*name.split(":", 2), "1", "1")[:3]
    if not re.fullmatch("[1-9][0-9]*", number):
        raise AstroError(
            f"--topology {name}: {number!r} is no number of slices; write KIND:SHAPE:SLICES, as in v5e:4x4:2"
        )
    return int(number)


def get(name: str) -> Topology:
    """Return the devices of a slice. They come from libtpu, which compiles for them on any machine.

    Raises:
      AstroError: for an unknown topology, when libtpu is not installed, and when libtpu fails.
    """
    chip, _ = parse(name)
    if importlib.util.find_spec("libtpu") is None:
        raise AstroError("plan: compiling for a TPU needs the extra `plan`: pip install libtpu")
    # Allow other processes to use libtpu at the same time, and keep libtpu from querying a TPU machine's metadata.
    os.environ |= {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")  # any value avoids a warning
    from jax.experimental import topologies

    options: dict[str, str | int] = {"chip_config_name": chip.config} if chip.config else {}
    if (count := slices(name)) > 1:
        options["num_slices"] = count
    slice_name = ":".join(name.split(":")[:2])
    try:
        description = topologies.get_topology_desc(topology_name=slice_name, platform="tpu", **options)
    except Exception as e:
        raise AstroError(f"plan: libtpu has no devices for {name} ({' '.join(str(e).split())[:200]})") from e
    return Topology(name, chip, tuple(description.devices))
