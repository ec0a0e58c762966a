"""Find the false equations of a text, such as "11 * 11 * 2 = 121" and "27 sheep * 16 ducks = 420 legs".

A side of an equation is numbers with signs between them. Words may follow a number as its unit. An equation that holds
anything else, such as a variable, brackets around numbers or a power, is left alone. "5 + 3 = 8 * 2 = 16" counts as
true: the second side goes on from 8. Only +, -, * and / of exact fractions are computed.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from astro_jax.verify.number import UNSIGNED, calculate, parse

_OPERATORS = {"+": "+", "-": "-", "−": "-", "*": "*", "x": "*", "×": "*", "/": "/", "÷": "/"}
_SIGN = r"[-−+*/x×÷]"
# Words after a number that are not its unit, so that "3 and 4 * 2" begins at 4.
_NO_UNIT = (
    "x|is|are|was|and|or|so|then|equals?|times|plus|minus|divided|by|than|more|less|of|to|from|in|on|at|for|which"
)
_UNIT = (
    rf"(?:[ ]?\([^()\d=\n]{{1,40}}\)|[ ](?!(?:{_NO_UNIT})\b)[A-Za-z][A-Za-z'/]{{0,20}}(?![\w'/])"
    r"|(?:cm|mm|km|kg|mg|ml|lbs?|oz|mph)(?!\w))"
)
_NUMBER = rf"(?:\$[ ]?)?{UNSIGNED}(?![\d])(?![.,]\d)%?(?![A-Za-z]*\d)"
# All repetitions are bounded, since a text may be hostile.
_TERM = rf"{_NUMBER}(?:{_UNIT}){{0,4}}"
_SIDE = rf"{_TERM}(?:[ ]*{_SIGN}[ ]*{_TERM}){{0,11}}"
_EQUATION = re.compile(rf"(?<![\w.,$:])({_SIDE}(?:[ ]*=[ ]*{_SIDE}){{1,11}})(?![\w^({{\\:])(?![ ]*{_SIGN}[ ]*[\w($\\])")
_TOKEN = re.compile(rf"({UNSIGNED})(%?)|(?<![A-Za-z])({_SIGN})(?![A-Za-z])")
_CONTINUES = re.compile(r"[-−+*/x×÷^({\\][ ]*$")  # before an equation: it begins earlier
_MOST_PERCENTS = 4  # each has two values


class _Side(NamedTuple):
    """One side: numbers with their signs between them.

    Attributes:
      numbers: the values.
      is_percent: of each number; 16% may stand for 16 or for 0.16.
      signs: of +-*/.
      places: decimal places of the first number.
      words: its words, the units.
    """

    numbers: list[Fraction]
    is_percent: list[bool]
    signs: list[str]
    places: int
    words: frozenset[str]

    def values(self) -> list[tuple[Fraction, Fraction]]:
        """The values that the side may have, with the unit of their last place. Empty for a division by 0.

        16% is 0.16, or 16 where no product is taken.
        """
        unit, is_product = Fraction(1, 10**self.places), not {*self.signs}.isdisjoint("*/")
        scales = [(100,) if percent and is_product else (1, 100) if percent else (1,) for percent in self.is_percent]
        values = []
        for scale in itertools.product(*scales):
            value = _compute([x / y for x, y in zip(self.numbers, scale, strict=True)], self.signs)
            if value is not None:
                values.append((value, unit / scale[0]))
        return values


def find_false(text: str) -> list[str]:
    """Find the equations of which two neighbouring sides differ.

    A quotient, and a result with decimals, may be off by less than one unit of its last place. A number alone is not
    compared with another one alone, nor with a side that lacks its unit: "3 hours = 3 * 60 minutes".
    """
    equations = []
    for match in _EQUATION.finditer(text):
        near = max(0, match.start() - 50)  # a line may be as long as the text
        before = text[max(near, text.rfind("\n", near, match.start()) + 1) : match.start()].strip()
        if before not in ("-", "*") and _CONTINUES.search(before):  # these are the marks of a list
            continue
        sides = [_read(side) for side in match[1].split("=")]
        if not all(_agree(a, b) for a, b in itertools.pairwise(sides)):
            equations.append(match[0])
    return equations


def _read(text: str) -> _Side:
    numbers, is_percent, signs = list[Fraction](), list[bool](), list[str]()
    places = 0
    for match in _TOKEN.finditer(re.sub(r"\([^()\d]*\)", "", text)):
        if match[1] is None:
            signs.append(_OPERATORS[match[3]])
            continue
        value = parse(match[1])
        assert value is not None
        if not numbers:
            places = len(match[1].partition(".")[2])
        numbers.append(value)
        is_percent.append(bool(match[2]))
    return _Side(numbers, is_percent, signs, places, frozenset(re.findall(r"[A-Za-z]+", text)) - {"x"})


def _agree(a: _Side, b: _Side) -> bool:
    """Whether two sides are equal. Also if the second goes on with their value: "5 + 3 = 8 * 2"."""
    if not a.signs and (not b.signs or a.words - b.words):  # "3 hours = 3 * 60 minutes" changes the unit
        return True
    if len(a.signs) != len(a.numbers) - 1 or len(b.signs) != len(b.numbers) - 1:
        return True
    if sum(a.is_percent) + sum(b.is_percent) > _MOST_PERCENTS:
        return True
    left, right = a.values(), b.values()
    if any(x == y for x, _ in left for y, _ in right):
        return True
    if b.signs:
        right = [(b.numbers[0], Fraction(1, 10**b.places))] if a.signs else []
    is_rounded = b.places > 0 or ("/" in a.signs and not b.signs)
    return any(x == y or (is_rounded and abs(x - y) < unit) for x, _ in left for y, unit in right)


def _compute(numbers: Sequence[Fraction], signs: Sequence[str]) -> Fraction | None:
    """Compute products and quotients before sums. None for a division by 0."""
    terms, operators = [numbers[0]], list[str]()
    for sign, number in zip(signs, numbers[1:], strict=True):
        if sign in "*/":
            result = calculate(terms[-1], sign, number)
            if result is None:
                return None
            terms[-1] = result
        else:
            operators.append(sign)
            terms.append(number)
    total = terms[0]
    for sign, number in zip(operators, terms[1:], strict=True):
        total = total + number if sign == "+" else total - number
    return total
