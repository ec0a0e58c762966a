"""Procedure cloning by the model (paper, section 2.4): the pieces of a trace, written again as one text.

A trace is written piece by piece, each with the text before it in view; many traces are written at the same time, one
piece of each in a call of the sampler. What the model writes is checked (traces.check), asked for again, and in the end
replaced by the template's piece.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence

from astro_jax import config as cfg
from astro_jax import phrases
from astro_jax.search.tree import Tree
from astro_jax.traces import check
from astro_jax.traces.author import Author, Question
from astro_jax.traces.clone import Piece
from astro_jax.types import Response

PROMPTS = {"step": "rewrite", "backtrack": "go_back", "reflect": "reflect"}


def kinds(c: cfg.Traces) -> list[str]:
    """The kinds of pieces that are the model's to write."""
    return ["step", "backtrack"] * (c.clone == "model") + ["reflect"] * (c.phrases == "model")


@dataclasses.dataclass
class Draft:
    """A trace under way.

    Attributes:
      name: of its random draws.
      sequence: the nodes that it visits (traces.linearize).
      left: the template's pieces that are not written yet.
      done: the pieces that are.
      tries: of the piece that is next.
      counts: pieces asked for, those accepted, and rejections by reason.
    """

    tree: Tree
    name: tuple[str | int, ...]
    sequence: list[int]
    left: list[Piece]
    done: list[Piece] = dataclasses.field(default_factory=list)
    tries: int = 0
    counts: Counter[str] = dataclasses.field(default_factory=Counter)

    @property
    def text(self) -> str:
        return "".join(p.text for p in self.done)


def rewrite(
    drafts: Sequence[Draft], c: cfg.Traces, author: Author | None, tell: Callable[[float], None] = lambda share: None
) -> None:
    """Write all drafts to their end. Without a piece that is the model's to write, none is needed.

    Args:
      tell: is called after each call of the sampler with the share of all pieces that are done.
    """
    pieces = sum(len(draft.left) + len(draft.done) for draft in drafts)
    while active := [draft for draft in drafts if _go_on(draft, c)]:
        assert author is not None, "pieces of these kinds are the model's to write"
        answers = author.ask([_question(d, author) for d in active], c.clone_tokens, c.clone_temperature, ["\n\n"])
        texts = [_clean(d.left[0], a[0]) if a else None for d, a in zip(active, answers, strict=True)]
        reasons = [
            check.reason(d.tree, d.left[0], text, d.text, author.prompts[PROMPTS[d.left[0].kind]])
            if text is not None else "cut off" if answer else "too long to ask"
            for d, text, answer in zip(active, texts, answers, strict=True)
        ]  # fmt: skip
        for i in _other_answer([(i, d, texts[i]) for i, d in enumerate(active) if reasons[i] is None], author):
            reasons[i] = "final answer"
        for draft, text, reason in zip(active, texts, reasons, strict=True):
            _take(draft, text, reason, c)
        tell(sum(len(draft.done) for draft in drafts) / pieces)


def _go_on(draft: Draft, c: cfg.Traces) -> bool:
    """Move past the pieces that stay as they are; whether one is left to be written. A blank step says nothing, and the
    way back to the beginning is the paper's own sentence."""
    while draft.left:
        piece = draft.left[0]
        fixed = not piece.text.strip() or (piece.kind == "backtrack" and not piece.text.startswith(phrases.GO_BACK))
        if piece.kind in kinds(c) and not fixed:
            return True
        draft.done.append(draft.left.pop(0))
    return False


def _question(draft: Draft, author: Author) -> Question:
    piece, tree = draft.left[0], draft.tree
    values: dict[str, str | bool] = {"problem": tree.problem.prompt.strip(), "solution": draft.text.strip()}
    if piece.kind == "reflect":
        values |= {"correct": piece.text.endswith(phrases.CORRECT)}
    else:
        values |= {"step": check.subject(tree, piece)}
    name = (*draft.name, len(draft.done), draft.tries)
    return Question(author.prompts[PROMPTS[piece.kind]].render(**values), 1, name)


def _clean(piece: Piece, answer: str | None) -> str | None:
    """An answer as a piece: its lines without the spaces around them, a way back with the words that it begins with."""
    if answer is None:
        return None
    lines = [line.strip() for line in answer.strip().splitlines()]
    text = "\n".join(line for line in lines if line)
    if piece.kind == "backtrack" and text:
        return f"{phrases.GO_BACK} {text.removeprefix(phrases.GO_BACK.strip()).strip()}\n"
    return f"{' ' * (piece.kind == 'reflect')}{text}\n"


def _other_answer(found: Sequence[tuple[int, Draft, str | None]], author: Author) -> list[int]:
    """Of the rewritten last steps of branches, those that in the place of the step give another answer, or none."""
    ends = [
        (i, node, Response(d.tree.problem, d.tree.text(node.parent) + text, True))
        for i, d, text in found
        if text is not None and d.left[0].kind == "step" and (node := d.tree.nodes[d.left[0].node]).terminal
    ]
    verdicts = author.verifier.judge([response for *_, response in ends])
    return [i for (i, node, _), verdict in zip(ends, verdicts, strict=True) if verdict.answer != node.answer]


def _take(draft: Draft, text: str | None, reason: str | None, c: cfg.Traces) -> None:
    """Take a piece, ask for it again, or take the template's."""
    if reason is not None:
        draft.counts[reason] += 1
        draft.tries += 1
        if draft.tries <= c.clone_retries and reason != "too long to ask":
            return
    piece = draft.left.pop(0)
    draft.tries = 0
    draft.counts["pieces"] += 1
    if reason is None and text is not None:
        draft.counts["accepted"] += 1
        piece = dataclasses.replace(piece, text=text)
    draft.done.append(piece)
