"""An answer as a directed graph of its steps: where each backtrack goes back to, and which steps it tries again.

A step is a line of the answer. A backtrack returns to an earlier step, and the next step is a further child of that
step. A step that has been tried before from the same place is the same node, visited once more.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from astro_jax import attempts
from astro_jax.attempts import detector
from astro_jax.attempts.detector import Event
from astro_jax.verify.answer import until_end_token

ROOT = 0  # the node of the problem
_SHORTEST_QUOTE = 4  # characters that a backtrack must share with the step that it returns to


class Segment(NamedTuple):
    """A part of the answer.

    Attributes:
      kind: "step", "reflect" or "backtrack".
      node: the node that the answer is at after this part.
      text: the part. The parts of an answer, one after the other, are the whole answer.
    """

    kind: Literal["step", "reflect", "backtrack"]
    node: int
    text: str


class Graph(NamedTuple):
    """An answer as a graph.

    Attributes:
      parents: of each node; -1 for the root, node 0.
      verdicts: of each node: whether an attempt that ended there was right; None where no attempt ended, or where the
        attempt had no answer.
      segments: the path of the answer through the nodes.
    """

    parents: list[int]
    verdicts: list[bool | None]
    segments: list[Segment]


def build(response: str, rights: Sequence[bool | None]) -> Graph:
    """Build the graph of an answer.

    A backtrack goes back to the step whose text it quotes at greatest length ("go back to where we make 32 from 20 36"
    quotes "6 * 6 = 36, left 20 36"). A restart goes back to the problem, and so does a backtrack that quotes no step.

    Args:
      response: the answer.
      rights: whether each attempt is right (behaviour.Behaviour.rights); () if not known.
    """
    response = until_end_token(response)
    events = detector.find(response)
    ends = [*attempts.ends(response, events), len(response)]
    parents, texts, segments = [-1], [""], list[Segment]()
    verdicts: list[bool | None] = [None]
    at, position, attempt = ROOT, 0, 0
    for kind, text in _parts(response, events):
        if attempt < len(ends) - 1 and position >= ends[attempt]:  # the attempt before has ended here
            verdicts[at] = rights[attempt] if attempt < len(rights) else None
            attempt += 1
        if kind in ("backtrack", "restart"):
            at = ROOT if kind == "restart" else _target(_plain(text), texts, at)
        elif kind == "step" and _plain(text):
            same = [i for i, parent in enumerate(parents) if parent == at and texts[i] == _plain(text)]
            if not same:
                parents.append(at)
                verdicts.append(None)
                texts.append(_plain(text))
            at = same[0] if same else len(parents) - 1
        segments.append(Segment(_KINDS[kind], at, text))
        position += len(text)
    if rights and at != ROOT:
        verdicts[at] = rights[-1]
    return Graph(parents, verdicts, segments)


_KINDS: dict[str, Literal["step", "reflect", "backtrack"]] = {
    "step": "step", "reflection": "reflect", "backtrack": "backtrack", "restart": "backtrack",
}  # fmt: skip


def _parts(response: str, events: Sequence[Event]) -> Iterator[tuple[str, str]]:
    """Yield (kind, text) of the events, and of the lines between them. A sentence that goes back is no reflection."""
    moves = [e for e in events if e.kind != "reflection"]
    kept = [e for e in events if e.kind != "reflection" or all(e.end <= m.begin or m.end <= e.begin for m in moves)]
    last = 0
    for event in [*sorted(kept, key=lambda e: e.begin), None]:
        begin = event.begin if event else len(response)
        yield from (("step", line) for line in response[last:begin].splitlines(keepends=True))
        if event:
            yield event.kind, response[max(last, event.begin) : event.end]
            last = max(last, event.end)


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip(" .!,\n").lower()


def _target(quote: str, texts: Sequence[str], at: int) -> int:
    """The node whose text a backtrack quotes at greatest length: the latest such node, and not the present one."""
    lengths = [0 if i == at else _common(quote, text) for i, text in enumerate(texts)]
    longest = max(lengths)
    return max(i for i, n in enumerate(lengths) if n == longest) if longest >= _SHORTEST_QUOTE else ROOT


@functools.lru_cache(maxsize=1 << 14)
def _common(a: str, b: str) -> int:
    """The length of the longest common substring."""
    return difflib.SequenceMatcher(None, a, b, autojunk=False).find_longest_match().size
