"""Whether two final answers have the same value: \\sqrt{8} and 2\\sqrt{2} are one answer.

Votes and traces count different answers. They have no gold answer to compare with, so equal answers get equal keys.
"""

from __future__ import annotations

import functools
import re
from fractions import Fraction

from astro_jax.verify import second_grader
from astro_jax.verify.answer import MAX_CHARACTERS, MAX_DEPTH, normalize

_NAME = re.compile(r"[a-zA-Z](?:=|\\in)")
_LIST = re.compile(r"(\\\{|[(\[])?(.*?)(\\\}|[)\]])?")
_BRACKETS = re.compile(r"[(\[{]")
_LARGEST = 10**300  # a value beyond is compared as text
_DIGITS = 10  # significant digits of an irrational value


@functools.lru_cache(maxsize=1 << 16)
def value_key(answer: str) -> str:
    """A text that is equal for answers of equal value. For two equal numbers it is the same number.

    Numbers and arithmetic expressions are compared by value, irrational ones to 10 significant digits. The elements of
    a pair, a list, an interval or a set are compared one by one, those of a set without regard to their order. Other
    answers are compared in their normalized notation. Nothing is evaluated as code.
    """
    text = normalize(answer)
    text = text[name.end() :] if (name := _NAME.match(text)) else text
    if len(text) > MAX_CHARACTERS or len(_BRACKETS.findall(text)) > 2 * MAX_DEPTH:
        return text
    if (value := second_grader.value(text)) is not None and -_LARGEST < value < _LARGEST:
        return _number(value)
    elements = _split(text)
    if elements is None:
        return text
    left, parts, right = elements
    keys = [value_key(part) for part in parts]
    return left + ",".join(sorted(set(keys)) if left == "\\{" else keys) + right


def _number(value: Fraction | float) -> str:
    """A number as text: exact for a rational value."""
    if isinstance(value, float):
        nearest = Fraction(value).limit_denominator(1000)  # \\sqrt{4} is 2
        value = nearest if abs(value - nearest) <= 1e-12 * abs(value) else value
    return str(value) if isinstance(value, Fraction) else f"{value:.{_DIGITS}g}"


def _split(text: str) -> tuple[str, list[str], str] | None:
    """Split a list at the commas outside of inner brackets: "(1,2)" gives ("(", ["1", "2"], ")"). None for no list."""
    match = _LIST.fullmatch(text)
    assert match is not None
    left, inner, right = match[1] or "", match[2], match[3] or ""
    parts, depth = [""], 0
    for character in inner:
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:
            return None
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    is_set = left == "\\{" and right == "\\}"
    if (len(parts) < 2 and not is_set) or bool(left) != bool(right) or not all(parts):
        return None
    return left, parts, right
