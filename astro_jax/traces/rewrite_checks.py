"""Checks of a rewritten segment (ours; the paper gives no checks). No text is ever evaluated as code."""

from __future__ import annotations

import re
from fractions import Fraction

from astro_jax import phrases
from astro_jax.prompts import PromptTemplate
from astro_jax.search.tree import Tree
from astro_jax.traces.procedure_cloning import Segment
from astro_jax.verify.number import parse

# Digits without a sign, also inside words: a rewritten step must keep the 2 of "2x", and "60 -5" is the same as
# "60 - 5". verify.number finds numbers with their sign, and only whole words.
_DIGITS = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
_FINAL_ANSWER = re.compile(r"\\boxed|answer is|####", re.IGNORECASE)


def rejection(tree: Tree, segment: Segment, text: str, before: str, template: PromptTemplate) -> str | None:
    """Why a text cannot replace a segment. None if the text can.

    Args:
      segment: the segment of the template.
      text: the text of the model.
      before: the trace up to the segment.
      template: the prompt template that the model was asked with.

    Returns:
      "empty": the text has no word.
      "more than one step": the text has more lines than the step.
      "phrase": the text holds one of the fixed phrases, which are counted.
      "copied prompt": the text repeats the prompt.
      "numbers": a number of the step is missing, or a number is new to the problem and the trace.
      "answer given away": the text states the correct answer, or a final answer, and the step does not.
      "nothing of the step": a backtrack shares no number and no word with the step that it returns to.
    """
    body = text.removeprefix(phrases.GO_BACK if segment.kind == "backtrack" else "").strip()
    step = "" if segment.kind == "reflect" else subject(tree, segment)
    step_numbers, new_numbers = numbers(step), numbers(body)
    known_numbers = step_numbers | numbers(tree.problem.prompt) | numbers(before)
    if not re.search(r"\w", body):
        return "empty"
    if len(body.splitlines()) > (len(step.splitlines()) if segment.kind == "step" else 1):
        return "more than one step"
    if any(phrase.strip() in body for phrase in phrases.PHRASES):
        return "phrase"
    if template.is_copied(body):
        return "copied prompt"
    if (segment.kind == "step" and step_numbers - new_numbers) or new_numbers - known_numbers:
        return "numbers"
    if _states(body, tree.problem.answer) and not _states(step, tree.problem.answer):
        return "answer given away"
    if len(_FINAL_ANSWER.findall(body)) > len(_FINAL_ANSWER.findall(step)):
        return "answer given away"
    if segment.kind == "backtrack" and not (new_numbers & step_numbers or _words(body) & _words(step)):
        return "nothing of the step"
    return None


def subject(tree: Tree, segment: Segment) -> str:
    """The step that a segment is about: its own step, or for a backtrack the last step with text up to its node."""
    steps = tree.path(segment.node) if segment.kind == "backtrack" else [tree.nodes[segment.node]]
    return next((step.text.strip() for step in reversed(steps) if step.text.strip()), "")


def numbers(text: str) -> set[Fraction | str]:
    """The values of the numbers in a text: 1,200 and 1200.0 are the same. Numbers that are too long stay text."""
    digits = _DIGITS.findall(text)
    return {value if (value := parse(d)) is not None else d for d in digits}


def _states(text: str, answer: str) -> bool:
    """Whether a text states an answer: as a number, or by the same characters without regard to spaces."""
    if _DIGITS.fullmatch(answer.strip()):
        return numbers(answer) <= numbers(text)
    characters = r"\s*".join(map(re.escape, "".join(answer.split())))
    return re.search(rf"(?<!\w){characters}(?!\w)", text) is not None


def _words(text: str) -> set[str]:
    """The words of at least four letters, which mostly carry the meaning."""
    return set(re.findall(r"[^\W\d_]{4,}", text.lower()))
