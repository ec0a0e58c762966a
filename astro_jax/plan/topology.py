"""TPU slices that are not there: what a chip has, and devices to compile for."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from typing import Any

from astro_jax.errors import AstroError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of TPU chip, by its published figures.

    Attributes:
      hbm: bytes of memory that the compiler lets programs use; a little less than the chip has.
      flops: bfloat16 FLOP/s. bandwidth: bytes/s of HBM. links: bytes/s in and out, over all its links to other chips.
      slices: the topologies that can be rented (Cloud TPU's documentation), as chips along each axis.
    """

    hbm: float
    flops: float
    bandwidth: float
    links: float
    slices: tuple[str, ...]


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
    "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16",
    "16x16x24",
)  # fmt: skip
CHIPS = {
    "v5e": Chip(15.75 * GIB, 197e12, 819e9, 200e9, _FLAT),
    "v6e": Chip(31.25 * GIB, 918e12, 1640e9, 448e9, _FLAT),
    "v5p": Chip(95.74 * GIB, 459e12, 2765e9, 600e9, _CUBES),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice: its chips, one device each."""

    name: str
    chip: Chip
    devices: tuple[Any, ...]


def parse(name: str) -> tuple[Chip, int]:
    """The chip and the number of chips of a name such as v5p:4x4x8.

    Raises:
      AstroError: when there is no such slice; it says which there are.
    """
    kind, _, shape = name.partition(":")
    if kind not in CHIPS:
        raise AstroError(f"--topology {name}: no such TPU; there are {', '.join(CHIPS)}, as in v5e:4x4")
    chip = CHIPS[kind]
    if shape not in chip.slices:
        raise AstroError(f"--topology {name}: no such slice of {kind}; there are {', '.join(chip.slices)}")
    count = 1
    for n in re.findall(r"\d+", shape):
        count *= int(n)
    return chip, count


def get(name: str) -> Topology:
    """The devices of a slice, from libtpu, which compiles for them on any machine.

    Raises:
      AstroError: for an unknown name, and where libtpu is missing or used by another process.
    """
    chip, _ = parse(name)
    if importlib.util.find_spec("libtpu") is None:
        raise AstroError("plan: compiling for a TPU needs the extra `plan`: pip install libtpu")
    # Another process may compile too, and nothing is to be asked of a TPU machine.
    os.environ |= {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")  # any: it silences a warning
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(topology_name=name, platform="tpu")
    except Exception as e:
        raise AstroError(f"plan: libtpu does not give {name} ({' '.join(str(e).split())[:200]})") from e
    return Topology(name, chip, tuple(found.devices))
