"""Mathematical answers: math-verify over sympy, with a second opinion. It runs in workers only (verify.pool).

The answer (verify.answer) is parsed as LaTeX alone: a parser of LaTeX evaluates no code, and nothing is picked out of
an expression that it cannot read. math-verify's own timeouts are signals, which do not work in threads; they are off,
and the deadline is that of the worker.

Strict: as math-verify's strict mode, where variables keep their names; and brackets keep their kind, so that a set is
no pair. Lenient: variables and kinds of brackets may differ, and a decimal number may be rounded to two places or more.
Six places are as good as exact in both.
"""

from __future__ import annotations

import functools
import logging
import re
from fractions import Fraction
from typing import Any, NamedTuple

from astro_jax.verify import grade
from astro_jax.verify.answer import Rule, bare, extract, normal


class Graded(NamedTuple):
    """The verdict on one answer.

    Attributes:
      answer: as extracted and normalized; None where there is none, or it cannot be read.
      correct: whether it equals the gold answer.
      second: what the second grader says; None where it cannot tell.
      written: the answer as it stands in the response.
    """

    answer: str | None
    correct: bool
    second: bool | None
    written: str | None


def judge(gold: str, response: str, rule: Rule) -> Graded:
    """Grade a response that an end token ended."""
    written = extract(response, rule)
    if written is None:
        return Graded(None, False, None, None)
    second = grade.same(gold, written)
    if normal(gold) == normal(written):
        return Graded(normal(written), True, second, written)
    parsed = parse(written)
    if parsed is None:
        return Graded(None, False, second, written)
    return Graded(normal(written), _equal(gold, written, parsed, rule), second, written)


def readable(gold: str) -> bool:
    """Whether a gold answer can be read at all."""
    return extract(f"\\boxed{{{bare(gold)}}}", "strict") is not None and parse(gold) is not None


def _equal(gold: str, answer: str, parsed: Any, rule: Rule) -> bool:
    if (a := grade.number(gold)) is not None and (b := grade.number(answer)) is not None:
        return a == b or _rounded(a, b, normal(gold), normal(answer), rule)
    expected = parse(gold)
    if expected is None:
        return False
    if (base := _base(gold)) and _base(answer) not in ("", base):
        return False  # math-verify does not read the base
    if rule == "strict" and _kind(gold) != _kind(answer):
        return False
    return _verify()(
        expected, parsed, strict=rule == "strict", float_rounding=6, timeout_seconds=None, raise_on_error=True
    )


def _rounded(a: Fraction, b: Fraction, text_a: str, text_b: str, rule: Rule) -> bool:
    """Whether one of two numbers is the other, rounded: six places are as good as exact, in lenient two."""
    places = min((p for text in (text_a, text_b) if (p := len(text.partition(".")[2]))), default=0)
    return places >= (2 if rule == "lenient" else 6) and abs(a - b) * 2 * 10**places <= 1


def _kind(text: str) -> str:
    """Which brackets stand around a text: of a set, a pair or interval, or none."""
    text = normal(re.sub(r"^[a-zA-Z]\s*(=|\\in)", "", bare(text)))
    if text.startswith("\\{"):
        return "set"
    pair = text[:1] + text[-1:]
    return pair if pair in ("()", "[]", "(]", "[)") and "," in text else "none"


def _base(text: str) -> str:
    """The base that a number is written in, as 2 in 101_2."""
    match = re.fullmatch(r"[\dA-F]+_\{?(\d+)\}?", normal(text))
    return match[1] if match else ""


def parse(text: str) -> Any | None:
    """math-verify's parse of one answer; None where it cannot read it."""
    from math_verify import parse

    found = parse(
        f"\\boxed{{{bare(text)}}}", [_config()], fallback_mode="no_fallback", extraction_mode="first_match",
        parsing_timeout=None,
    )  # fmt: skip
    return found or None


@functools.cache
def _config() -> Any:
    from math_verify import LatexExtractionConfig

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its timeouts are off
    return LatexExtractionConfig(boxed_match_priority=0)


def _verify() -> Any:
    from math_verify import verify

    return verify
