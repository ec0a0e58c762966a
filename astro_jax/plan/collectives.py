"""Count the collectives of a compiled program, from the program's text (optimized HLO)."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# In the text: the first line of a computation, the computations that a line calls, a loop, an array's type, a
# collective, and the limit that a loop's condition compares its counter with.
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_CALLED = re.compile(r"(?:calls|body|to_apply|branch_computations)=\{?([^,}]*(?:, ?%[\w.-]+)*)\}?")
_WHILE = re.compile(r"condition=%?([\w.-]+), body=%?([\w.-]+)")
_ARRAY = re.compile(r"(pred|[a-z]+?(\d+)\w*)\[([\d,]*)\]")
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(KINDS)})(?:-start)?\((.*)")
_LIMIT = re.compile(r"s32\[\]\S* constant\((\d+)\)")

Computations = dict[str, list[str]]  # the lines of each computation, by its name


@dataclasses.dataclass
class CollectiveStats:
    """Totals of one kind of collective.

    Attributes:
      calls: in one call of the program.
      bytes: of all results, on one chip.
    """

    calls: int = 0
    bytes: int = 0


def count(text: str, default_trip_count: int = 1) -> dict[str, CollectiveStats]:
    """Count the collectives of a program by kind.

    A collective in a loop counts once for each trip. The trip count is the constant of the loop's condition, as
    `jax.lax.scan` makes it. Operations that share a channel count once: the compiler has split one collective. Only
    channel 1 stands for many: all collectives in a `shard_map` have it.

    Args:
      text: of the compiled program.
      default_trip_count: for loops without such a constant.
    """
    computations, entry = _split_computations(text)
    stats: dict[str, CollectiveStats] = defaultdict(CollectiveStats)
    _add_computation(entry, 1, default_trip_count, computations, stats, set())
    return dict(stats)


def _add_computation(
    name: str,
    times: int,
    default_trip_count: int,
    computations: Computations,
    stats: dict[str, CollectiveStats],
    seen: set[tuple[str, str]],
) -> None:
    """Add the collectives of a computation that runs `times` times, and of the computations that it calls."""
    for line in computations.get(name, ()):
        if match := _COLLECTIVE.search(line):
            channel = re.search(r"channel_id=(\d+)", line)
            key = (match[2], channel[1] if channel and channel[1] != "1" else line)
            if key not in seen:
                seen.add(key)
                stats[match[2]].calls += times
                stats[match[2]].bytes += times * _result_bytes(match[1], match[0])
        if loop := _WHILE.search(line):
            trips = _trip_count(computations.get(loop[1], []), default_trip_count)
            _add_computation(loop[2], times * trips, default_trip_count, computations, stats, seen)
        elif called := _CALLED.search(line):
            for inner in re.findall(r"[\w.-]+", called[1]):
                _add_computation(inner, times, default_trip_count, computations, stats, seen)


def _split_computations(text: str) -> tuple[Computations, str]:
    """Return the lines of each computation, and the name of the entry computation."""
    computations: Computations = {}
    lines: list[str] = []
    entry = ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            lines = computations[match[1]] = []
            entry = match[1] if line.startswith("ENTRY") else entry
        else:
            lines.append(line)
    if not entry:
        raise ValueError("the program's text has no ENTRY computation")
    return computations, entry


def _trip_count(condition: list[str], default: int) -> int:
    limits = [int(n) for line in condition for n in _LIMIT.findall(line)]
    return limits[0] if len(limits) == 1 else default


def _result_bytes(array_types: str, line: str) -> int:
    """Return the bytes of an operation's results, scalars left out.

    The type of a `-start` operation lists the operands before the results, except that of an all-reduce.
    """
    sizes = [
        math.prod(map(int, dims.split(","))) * (int(bits or 8) // 8)
        for _, bits, dims in _ARRAY.findall(array_types)
        if dims
    ]
    lists_operands = "-start(" in line and " all-reduce-start(" not in line
    return sum(sizes[len(sizes) // 2 :] if lists_operands else sizes)
