"""The reader of numbers: one number as people or LaTeX write it, and the numbers of a text.

Values are exact fractions. A pattern matches a number, nothing is evaluated, and a plain number has at most 30
characters.
"""

from __future__ import annotations

import re
from fractions import Fraction

from astro_jax.verify.answer import normalize

# Patterns of a number without and with a sign, such as 1,200.50 and -3.
UNSIGNED = r"(?:\d{1,3}(?:,\d{3}){1,6}|\d{1,20})(?:\.\d{1,8})?"
SIGNED = rf"[-−]?{UNSIGNED}"
FRACTION = rf"{SIGNED}(?:\s*/\s*{UNSIGNED})?"
NUMBER = re.compile(rf"(?<![\w.,])({SIGNED})(?!\w)")  # a number in a text, but not a part of a word or a longer number

_FRACTION = re.compile(rf"({SIGNED})(?:\s*/\s*({UNSIGNED}))?")
_LATEX = re.compile(r"([-+]?)(?:(\d+(?:\.\d+)?)(?:/(\d+))?|\\frac\{(\d+)\}\{(\d+)\})")
_MIXED = re.compile(r"(-?)(\d+)\\frac\{(\d+)\}\{(\d+)\}")
_REPEATING = re.compile(r"(-?)(\d*)\.(\d*)\\overline\{(\d+)\}")


def parse(text: str) -> Fraction | None:
    """Read one number as people write it: 1,200 or -3.5 or 3/4. None if the text is anything else.

    >>> parse("1,200")
    Fraction(1200, 1)
    """
    match = _FRACTION.fullmatch(text.strip())
    if match is None:
        return None
    top, bottom = (Fraction((part or "1").replace(",", "").replace("−", "-")) for part in match.groups())
    return top / bottom if bottom else None


def parse_latex(text: str) -> Fraction | None:
    """Read one number in plain text or LaTeX, after answer.normalize. None if the text is anything else.

    Besides plain numbers: \\frac{1}{2}, 2\\frac{1}{2}, 2 1/2, +7, .5, 45^\\circ, 1{,}000 and the repeating decimal
    0.1\\overline{6}.
    """
    text = normalize(text)
    if (match := _MIXED.fullmatch(text)) and int(match[4]):
        size = int(match[2]) + Fraction(int(match[3]), int(match[4]))
        return -size if match[1] else size
    if match := _REPEATING.fullmatch(text):
        places, repeated = len(match[3]), Fraction(int(match[4]), 10 ** len(match[4]) - 1)
        size = (int(f"0{match[2]}{match[3]}") + repeated) / 10**places
        return -size if match[1] else size
    match = _LATEX.fullmatch(text)
    if match is None:
        return None
    top, bottom = Fraction(match[2] or match[4]), Fraction(match[3] or match[5] or 1)
    return None if not bottom else (-1 if match[1] == "-" else 1) * top / bottom


def find(text: str) -> dict[str, Fraction]:
    """Find the numbers of a text: each way of writing with its value, in the order of the text.

    >>> find("Tom has 5 of 1,200 cats and 5 dogs.")
    {'5': Fraction(5, 1), '1,200': Fraction(1200, 1)}
    """
    values = {written: parse(written) for written in NUMBER.findall(text)}
    return {written: value for written, value in values.items() if value is not None}


def calculate(a: Fraction, op: str, b: Fraction) -> Fraction | None:
    """Compute a op b exactly. None for a division by 0."""
    if op == "/":
        return a / b if b else None
    return {"+": a + b, "-": a - b, "*": a * b}[op]
