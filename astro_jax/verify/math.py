"""Mathematical answers: math-verify over sympy, with a second opinion. It runs in workers only (verify.pool).

The answer (verify.answer) is parsed as LaTeX alone: a parser of LaTeX evaluates no code, and nothing is picked out of
an expression that it cannot read. math-verify's own timeouts are signals, which do not work in threads; they are off,
and the deadline is that of the worker.

Strict: exact. Variables, brackets and units keep their kinds: a set is no pair, km are not cm, a decimal is no surd.
Lenient: they may differ, and a decimal may be rounded to two places or more. Under both "9 = 1" is not 1: before "="
stands a name, or the gold answer has an "=" too.
"""

from __future__ import annotations

import functools
import logging
import re
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
        return Graded(_canonical(written), True, second, written)
    value = _named(written, gold)
    parsed = parse(value or written)
    if parsed is None:
        return Graded(None, False, second, written)
    return Graded(_canonical(written), bool(value) and _equal(gold, written, parsed, rule), second, written)


def _canonical(answer: str) -> str:
    """One text for all plain forms of a number, so that 0.5 and 1/2 are one answer in a vote."""
    value = grade.number(answer)
    return normal(answer) if value is None else str(value)


def _named(answer: str, gold: str) -> str:
    """An answer without the name that it gives its value; nothing where what stands before "=" is no name."""
    if "=" not in answer or "=" in gold or re.search(r"[<>]=|\\[lg]e", normal(answer)):
        return answer
    match = re.fullmatch(r"\s*\\?[a-zA-Z]+'?(?:_\w|_\{\w+\})?(?:\([a-zA-Z]\))?\s*=([^=]+)", bare(answer))
    return match[1] if match else ""


def readable(gold: str) -> bool:
    """Whether a gold answer can be read at all."""
    return extract(f"\\boxed{{{bare(gold)}}}", "strict") is not None and parse(gold) is not None


def _equal(gold: str, answer: str, parsed: Any, rule: Rule) -> bool:
    if (a := grade.number(gold)) is not None and (b := grade.number(answer)) is not None and a == b:
        return True
    if rule == "lenient" and _rounded(normal(gold), normal(answer)):
        return True
    expected = parse(gold)
    if expected is None:
        return False
    if (base := _base(gold)) and _base(answer) not in ("", base):
        return False  # math-verify does not read the base
    strict = rule == "strict"
    if strict and (_kind(gold) != _kind(answer) or (_unit(gold) and _unit(answer) not in ("", _unit(gold)))):
        return False
    from math_verify import verify

    return verify(expected, parsed, strict=strict, float_rounding=12, timeout_seconds=None, raise_on_error=True)


def _rounded(a: str, b: str) -> bool:
    """Whether one of two values is the other, rounded to two places or more."""
    x, y = grade.value(a), grade.value(b)
    places = min((len(m[1]) for text in (a, b) if (m := re.fullmatch(r"-?\d+\.(\d+)", text))), default=0)
    return x is not None and y is not None and places >= 2 and abs(float(x) - float(y)) * 2 * 10**places <= 1


def _kind(text: str) -> str:
    """Which brackets stand around a text: of a set, a pair or interval, or none."""
    text = normal(re.sub(r"^[a-zA-Z]\s*(=|\\in)", "", bare(text)))
    if text.startswith("\\{"):
        return "set"
    pair = text[:1] + text[-1:]
    return pair if pair in ("()", "[]", "(]", "[)") and "," in text else "none"


def _unit(text: str) -> str:
    """The word that stands after a number."""
    match = re.search(r"\\(?:text|mathrm|mbox)\s*\{\s*([a-zA-Z]+)[^{}]*\}\s*$", text)
    return match[1] if match else ""


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
