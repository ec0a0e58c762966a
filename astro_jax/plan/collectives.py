"""The collectives of a compiled program, from its text: how often each kind runs in one call, and what it moves."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Of a compiled program's text: the head of a computation, those that a line calls, a loop, an array, a collective.
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_CALLED = re.compile(r"(?:calls|body|to_apply|branch_computations)=\{?([^,}]*(?:, ?%[\w.-]+)*)\}?")
_WHILE = re.compile(r"condition=%?([\w.-]+), body=%?([\w.-]+)")
_SHAPE = re.compile(r"(pred|[a-z]+?(\d+)\w*)\[([\d,]*)\]")
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(KINDS)})(?:-start)?\((.*)")
_LIMIT = re.compile(r"s32\[\]\S* constant\((\d+)\)")


@dataclasses.dataclass
class Moved:
    """Of one kind of collective.

    Attributes:
      calls: how often it runs in one call of the program.
      bytes: of all its results on one chip.
    """

    calls: int = 0
    bytes: int = 0


def count(text: str, unknown: int = 1) -> dict[str, Moved]:
    """Collectives by kind. What stands in a loop counts as often as the loop runs: its bound is the constant of its
    condition, as a scan makes it. An operation that the compiler has cut in pieces, which share a channel, counts once.

    Args:
      unknown: trips of a loop with another condition.
    """
    bodies = _computations(text)
    found: dict[str, Moved] = defaultdict(Moved)
    entry = next(name for name, (_, is_entry) in bodies.items() if is_entry)
    _walk(entry, 1, unknown, bodies, found, set())
    return dict(found)


def _walk(
    name: str,
    times: int,
    unknown: int,
    bodies: dict[str, tuple[list[str], bool]],
    found: dict[str, Moved],
    seen: set[tuple[str, str]],
) -> None:
    for line in bodies.get(name, ([], False))[0]:
        if match := _COLLECTIVE.search(line):
            channel = re.search(r"channel_id=(\d+)", line)
            key = (match[2], channel[1] if channel else line)
            if key not in seen:
                seen.add(key)
                found[match[2]].calls += times
                found[match[2]].bytes += times * _result_bytes(match[1], match[0])
        if loop := _WHILE.search(line):
            _walk(loop[2], times * _trips(bodies.get(loop[1], ([], False))[0], unknown), unknown, bodies, found, seen)
        elif called := _CALLED.search(line):
            for inner in re.findall(r"[\w.-]+", called[1]):
                _walk(inner, times, unknown, bodies, found, seen)


def _computations(text: str) -> dict[str, tuple[list[str], bool]]:
    found: dict[str, tuple[list[str], bool]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            lines = []
            found[match[1]] = (lines, line.startswith("ENTRY"))
        else:
            lines.append(line)
    return found


def _trips(condition: list[str], unknown: int) -> int:
    limits = [int(n) for line in condition for n in _LIMIT.findall(line)]
    return limits[0] if len(limits) == 1 else unknown


def _result_bytes(shape: str, line: str) -> int:
    """Of an operation's result; an operation that starts gives its operand too, first."""
    sizes = [
        math.prod(map(int, dims.split(","))) * (int(bits or 8) // 8) if dims else 0
        for _, bits, dims in _SHAPE.findall(shape)
    ]
    return sizes[1] if "-start(" in line and len(sizes) > 1 else sum(sizes)
