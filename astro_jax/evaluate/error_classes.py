"""Class the wrong responses of a model by rules. Each has one class.

For a text it is the first that applies:
1. cut off: the response reached the limit of tokens.
2. gave up: it is empty, or says that it does not know or that there is no solution, and gives no answer.
3. format: its answer is right by another rule of grading.
4. arithmetic: an equation is false (`verify.equations`).
5. format: no answer can be read.
6. copying: an operand comes neither from the problem, nor from an earlier line, nor from everyday knowledge, or no
   calculation gives the answer.
7. planning: all that can be checked is valid, and leads to a wrong answer.

For Countdown the verifier decides after the first two, by the first line of the last branch that has a fault: format (a
line of no known form), arithmetic, rule broken (a number that is not there is used, or numbers are left at the end) or
copying (numbers are stated wrongly). Without such a line it is planning.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, get_args

from astro_jax.types import Problem
from astro_jax.verify import countdown, equations, number
from astro_jax.verify.number import SIGNED, UNSIGNED, parse

ErrorClass = Literal["cut off", "gave up", "format", "arithmetic", "rule broken", "copying", "planning"]
CLASSES: tuple[ErrorClass, ...] = get_args(ErrorClass)
JUDGED: tuple[ErrorClass, ...] = ("arithmetic", "copying", "planning")  # what a judge can find in a text

_GAVE_UP = re.compile(
    r"\b(?:i|we) (?:(?:really|just|still|simply|honestly) )*(?:do not|don't|cannot|can't|could not|couldn't|am unable "
    r"to|are unable to|am not able to|give up|have no idea|did not find|was unable to)\b(?! have to| need)"
    r"|\b(?:there is|there's|has|have) no (?:solution|answer|way|valid)|\bno (?:solution|idea)\b|\bgiv(?:e|ing) up\b"
    r"|\b(?:is|seems|looks) (?:impossible|unsolvable|not possible|not solvable|too hard|too difficult)\b"
    r"|\bcannot be (?:solved|determined|answered|made|found|reached)|\bcan't be (?:solved|determined|made|reached)"
    r"|\bnot enough information\b|\bsorry\b|\bas an ai\b|\bskip (?:this|it)\b",
    re.IGNORECASE,
)
_OPERANDS = re.compile(rf"(?<![\w.,])({UNSIGNED})\s*[-+*/x×÷]\s*(?=({UNSIGNED}))")
_ANSWER = re.compile(r"\\boxed\{[^{}]*\}|####.*|answer is\b[^.\n]*(?:\.\d+)?", re.IGNORECASE)
_RESULTS = re.compile(rf"=\s{{0,8}}\$?\s{{0,8}}({SIGNED})")
_LATEX = (("\\times", "*"), ("\\cdot", "*"), ("\\div", "/"), ("\\$", ""), ("$", ""), ("\\,", ""), ("−", "-"))
# Numbers that a solution may use without the problem: pairs, sides, units of time, length and angle, percent.
_EVERYDAY = frozenset(map(Fraction, (0, 2, 4, 7, 12, 24, 30, 31, 52, 60, 90, 100, 180, 360, 365, 1000)))
_WORDS = {
    word: Fraction(value)
    for value, words in enumerate(
        ("zero", "one once", "two twice double pair half", "three thrice triple third", "four quarter fourth",
         "five fifth", "six", "seven week", "eight", "nine", "ten", "eleven", "twelve dozen year")
    )
    for word in words.split()
}  # fmt: skip


def classify(
    problem: Problem, response: str, stopped: bool, answer: str | None, right_by_other_rule: bool
) -> ErrorClass:
    """Class a wrong answer.

    Args:
      response: the text.
      stopped: whether an end token ended the text.
      answer: the answer that the rule of grading has read; None if it has read none.
      right_by_other_rule: whether another rule finds the answer right.
    """
    if not stopped:
        return "cut off"
    if not response.strip() or (_GAVE_UP.search(response) and not _claims_answer(response, answer)):
        return "gave up"
    if problem.task == "countdown":
        return countdown.find_fault(problem, response) or "planning"
    text = _plain(response)
    if right_by_other_rule:
        return "format"
    if equations.find_false(text):
        return "arithmetic"
    if answer is None:
        return "format"
    if unknown_operands(problem.prompt, text) or _is_underived(problem.prompt, text, answer):
        return "copying"
    return "planning"


def is_open(problem: Problem, error: ErrorClass) -> bool:
    """Whether the rules only guess the class: in a text they see no calculation in words."""
    return problem.task != "countdown" and error in ("copying", "planning")


def _claims_answer(response: str, answer: str | None) -> bool:
    """Whether a response that doubts gives an answer after all, with a number in it."""
    return answer is not None and any(c.isdigit() for c in answer) and answer in response[-200:]


def _plain(text: str) -> str:
    for latex, plain in _LATEX:
        text = text.replace(latex, plain)
    return text


def _is_underived(prompt: str, text: str, answer: str) -> bool:
    """Whether the answer is a number that no calculation gives, of the problem or from nowhere."""
    value, rest = parse(answer), _ANSWER.sub(" ", text)
    if value is None:
        return False
    results = {abs(x) for result in _RESULTS.findall(rest) if (x := parse(result)) is not None}
    return abs(value) not in results and (abs(value) in _numbers(prompt) or abs(value) not in _numbers(rest))


def _numbers(text: str) -> set[Fraction]:
    """The numbers of a text, in figures and in words, without their signs."""
    return {abs(value) for value in number.find(_plain(text)).values()} | {
        _WORDS[word] for word in re.findall(r"[a-z]+", text.lower()) if word in _WORDS
    }


def unknown_operands(prompt: str, text: str) -> list[str]:
    """Find the operands that neither the problem, nor an earlier result, nor everyday knowledge gives."""
    of_prompt = _numbers(prompt)
    percents = {1 + sign * x / 100 for x in of_prompt for sign in (-1, 1)} | {x / 100 for x in of_prompt}
    known = of_prompt | percents | _EVERYDAY
    unknown = []
    for match in sorted([*_OPERANDS.finditer(text), *_RESULTS.finditer(text)], key=re.Match.start):
        if match.re is _OPERANDS:
            unknown += [operand for operand in match.groups() if parse(operand) not in known]
        elif (value := parse(match[1])) is not None:
            known.add(value)
    return unknown


def summarize(classes: Sequence[ErrorClass], answers: int) -> dict[str, float]:
    """The share of all answers that each class has."""
    counts = Counter(classes)
    return {name: round(counts[name] / answers, 4) for name in CLASSES}
