"""The verifier of mathematics (task "math"): math-verify over sympy, with a second grader. It runs in workers only.

The answer (verify.answer) is parsed as LaTeX alone. The LaTeX parser evaluates no code, and reads an expression as a
whole or not at all. math-verify's own timeouts are off, because they are signals, which do not work in threads. The
worker pool keeps the deadline.

Strict rule: variables, brackets and units must have the same kind. A set is no pair, km are not cm, and a decimal is no
surd. Lenient rule: they may differ, and a decimal may be rounded to two places or more. Under both rules "9 = 1" is not
1: the text before "=" must be a name, unless the gold answer has an "=" too.

Rule "math500": math-verify's own defaults on the whole response, as the metric `math_verify` of
lm-evaluation-harness's task minerva_math500 calls it. The last box counts, else the last formula, else the last number.
Published figures of MATH-500 are measured in this way. A response that was cut off may be right.
"""

from __future__ import annotations

import functools
import logging
import re
from typing import Any, NamedTuple

from astro_jax.verify import second_grader
from astro_jax.verify.answer import Rule, extract, normalize, strip_delimiters, until_end_token
from astro_jax.verify.number import parse_latex

_WORD = re.compile(r"\(?[A-Za-z]+\)?")
MAX_PARSED = 20_000  # characters at the end of a response that the rule "math500" parses


class Grade(NamedTuple):
    """The grade of one answer.

    Attributes:
      answer: the extracted answer, normalized. None if the response has no answer, or if nothing can read the answer.
      correct: whether the answer equals the gold answer.
      second: whether the second grader finds them equal. None if the second grader cannot tell.
      written: the answer as the response writes it.
    """

    answer: str | None
    correct: bool
    second: bool | None
    written: str | None


def grade(gold: str, response: str, rule: Rule) -> Grade:
    """Grade a response that an end token ended. By the rule "math500" it may be cut off."""
    if rule == "math500":
        return _grade_by_defaults(gold, response)
    written = extract(response, rule)
    if written is None:
        return Grade(None, False, None, None)
    second = second_grader.equal(gold, written)
    if normalize(gold) == normalize(written):
        return Grade(_canonical(written), True, second, written)
    value = _without_name(written, gold)
    parsed = parse(value or written)
    if parsed is None:
        return Grade(None, False, second, written)
    return Grade(_canonical(written), bool(value) and _equal(gold, written, parsed, rule), second, written)


def _grade_by_defaults(gold: str, response: str) -> Grade:
    """Grade a response by math-verify's defaults (the rule "math500")."""
    import math_verify

    _config()  # silences the library
    expected, parsed = (
        math_verify.parse(text, parsing_timeout=None)
        for text in (f"\\boxed{{{strip_delimiters(gold)}}}", until_end_token(response)[-MAX_PARSED:])
    )
    if not parsed:
        return Grade(None, False, None, None)
    written = str(parsed[-1])
    correct = bool(expected) and math_verify.verify(expected, parsed, timeout_seconds=None, raise_on_error=True)
    return Grade(_canonical(written), correct, None, written)


def _canonical(answer: str) -> str:
    """Write all plain forms of a number in one way: 0.5 and 1/2 are one answer in a majority vote."""
    value = parse_latex(answer)
    return normalize(answer) if value is None else str(value)


def _without_name(answer: str, gold: str) -> str:
    """Remove the name before "=" of an answer: "x = 5" gives " 5". Empty if the text before "=" is no name."""
    if "=" not in answer or "=" in gold or re.search(r"[<>]=|\\[lg]e", normalize(answer)):
        return answer
    match = re.fullmatch(r"\s*\\?[a-zA-Z]+'?(?:_\w|_\{\w+\})?(?:\([a-zA-Z]\))?\s*=([^=]+)", strip_delimiters(answer))
    return match[1] if match else ""


def readable(gold: str) -> bool:
    """Whether the parser can read a gold answer."""
    return extract(f"\\boxed{{{strip_delimiters(gold)}}}", "strict") is not None and parse(gold) is not None


def _equal(gold: str, answer: str, parsed: Any, rule: Rule) -> bool:
    if rule == "lenient" and _rounded(normalize(gold), normalize(answer)):
        return True
    if (a := parse_latex(gold)) is not None and (b := parse_latex(answer)) is not None:
        return a == b
    expected = parse(gold)
    if expected is None:
        return False
    if (base := _base(gold)) and _base(answer) not in ("", base):
        return False  # math-verify ignores the base
    # By the lenient rule math-verify renames variables: a word would be any other word, and of several variables the
    # order, which changes from process to process, would decide.
    are_words = all(_WORD.fullmatch(normalize(text)) for text in (gold, answer))
    several = any(len(getattr(x, "free_symbols", ())) > 1 for x in (*expected, *parsed))
    strict = rule == "strict" or are_words or several
    if rule == "strict" and (_kind(gold) != _kind(answer) or (_unit(gold) and _unit(answer) not in ("", _unit(gold)))):
        return False
    from math_verify import verify

    return verify(expected, parsed, strict=strict, float_rounding=12, timeout_seconds=None, raise_on_error=True)


def _rounded(a: str, b: str) -> bool:
    """Whether one value is the other value rounded to two decimal places or more."""
    x, y = second_grader.value(a), second_grader.value(b)
    places = min((len(m[1]) for text in (a, b) if (m := re.fullmatch(r"-?\d+\.(\d+)", text))), default=0)
    if x is None or y is None or places < 2:
        return False
    try:
        return abs(float(x) - float(y)) * 2 * 10**places <= 1
    except OverflowError:
        return False


def _kind(text: str) -> str:
    """Return the brackets around an answer: "set", those of a pair or interval such as "[)", or "none"."""
    text = normalize(re.sub(r"^[a-zA-Z]\s*(=|\\in)", "", strip_delimiters(text)))
    if text.startswith("\\{"):
        return "set"
    pair = text[:1] + text[-1:]
    return pair if pair in ("()", "[]", "(]", "[)") and "," in text else "none"


def _unit(text: str) -> str:
    """Return the unit after a number: "cm" of 5\\text{ cm}. Empty if the text has no unit."""
    match = re.search(r"\\(?:text|mathrm|mbox)\s*\{\s*([a-zA-Z]+)[^{}]*\}\s*$", text)
    return match[1] if match else ""


def _base(text: str) -> str:
    """Return the base of a number as text: "2" of 101_2. Empty if the text names no base."""
    match = re.fullmatch(r"[\dA-F]+_\{?(\d+)\}?", normalize(text))
    return match[1] if match else ""


def parse(text: str) -> Any | None:
    """Parse one answer with math-verify, into a list of sympy expressions and strings. None if it cannot read it."""
    from math_verify import parse

    parsed = parse(
        f"\\boxed{{{strip_delimiters(text)}}}", [_config()], fallback_mode="no_fallback", extraction_mode="first_match",
        parsing_timeout=None,
    )  # fmt: skip
    return parsed or None


@functools.cache
def _config() -> Any:
    from math_verify import LatexExtractionConfig

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # math-verify warns that its timeouts are off
    return LatexExtractionConfig(boxed_match_priority=0)
