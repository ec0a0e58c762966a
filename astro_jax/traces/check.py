"""What a model's piece of a trace must keep to (ours; the paper gives no checks). No text is ever evaluated here."""

from __future__ import annotations

import re

from astro_jax import phrases
from astro_jax.prompts import Prompt
from astro_jax.search.tree import Tree
from astro_jax.traces.clone import Piece

_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
_FINAL = re.compile(r"\\boxed|answer is|####", re.IGNORECASE)


def reason(tree: Tree, piece: Piece, text: str, before: str, prompt: Prompt) -> str | None:
    """Why a text cannot stand in the place of a template's piece; None if it can.

    Args:
      text: what the model wrote, as a piece.
      before: the trace so far.
      prompt: what it was asked with.

    Returns:
      one of: "empty"; "more than one step": more lines than there are in the step; "phrase": it goes back or reflects
      by the fixed phrases, which are counted; "copied prompt"; "numbers": one of the step's is missing, or one is new
      to the problem and the text; "answer given away": it states the right answer, or a final one, where the step does
      not; "nothing of the step": a way back that shares no number and no word with the step returned to.
    """
    said = text.removeprefix(phrases.GO_BACK if piece.kind == "backtrack" else "").strip()
    step = "" if piece.kind == "reflect" else subject(tree, piece)
    wanted, got = numbers(step), numbers(said)
    known = wanted | numbers(tree.problem.prompt) | numbers(before)
    if not re.search(r"\w", said):
        return "empty"
    if len(said.splitlines()) > (len(step.splitlines()) if piece.kind == "step" else 1):
        return "more than one step"
    if any(phrase.strip() in said for phrase in phrases.PHRASES):
        return "phrase"
    if prompt.is_copied(said):
        return "copied prompt"
    if (piece.kind == "step" and wanted - got) or got - known:
        return "numbers"
    if _gives(said, tree.problem.answer) and not _gives(step, tree.problem.answer):
        return "answer given away"
    if len(_FINAL.findall(said)) > len(_FINAL.findall(step)):
        return "answer given away"
    if piece.kind == "backtrack" and not (got & wanted or _words(said) & _words(step)):
        return "nothing of the step"
    return None


def subject(tree: Tree, piece: Piece) -> str:
    """The step that a piece is about: its own, or the last that says something up to the node returned to."""
    steps = tree.path(piece.node) if piece.kind == "backtrack" else [tree.nodes[piece.node]]
    return next((s.text.strip() for s in reversed(steps) if s.text.strip()), "")


def numbers(text: str) -> set[str]:
    """The numbers of a text, each written one way: 1,200 and 1200.0 are the same."""
    return {_normal(n.replace(",", "")) for n in _NUMBER.findall(text)}


def _normal(number: str) -> str:
    number = number.rstrip("0").rstrip(".") if "." in number else number
    return number.lstrip("0") or "0"


def _gives(text: str, answer: str) -> bool:
    """Whether a text states an answer: as a number, or letter by letter whatever the spaces."""
    if _NUMBER.fullmatch(answer.strip()):
        return numbers(answer) <= numbers(text)
    letters = r"\s*".join(map(re.escape, "".join(answer.split())))
    return re.search(rf"(?<!\w){letters}(?!\w)", text) is not None


def _words(text: str) -> set[str]:
    """The words that carry a meaning, as far as their length tells."""
    return set(re.findall(r"[^\W\d_]{4,}", text.lower()))
