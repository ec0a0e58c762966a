"""An independent second grader without sympy. It compares normalized strings, then the values of expressions.

The first grader (verify.math) decides. The second grader finds the answers on which a person should look.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

from astro_jax.verify.answer import normalize
from astro_jax.verify.number import parse_latex

_TOKEN = re.compile(r"\d+(?:\.\d+)?|\.\d+|\\frac|\\sqrt|\\pi|pi|π|[-+*/^(){}\[\]]|%|e(?![a-zA-Z])")
_MAX_EXPONENT = 64


def equal(gold: str, answer: str) -> bool | None:
    """Compare two answers. None if this grader cannot tell, for example for expressions with variables."""
    a, b = normalize(gold), normalize(answer)
    if a == b:
        return True
    (name_a, number_a, unit_a), (name_b, number_b, unit_b) = _split(a), _split(b)
    x, y = value(number_a), value(number_b)
    if x is None or y is None or (name_a and name_b and name_a != name_b) or (unit_a and unit_b and unit_a != unit_b):
        return None
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return x == y
    try:
        return math.isclose(x, y, rel_tol=1e-9, abs_tol=1e-12)
    except OverflowError:  # an exact value beyond all floats
        return False


def value(text: str) -> Fraction | float | None:
    """Compute the value of an arithmetic expression in LaTeX or plain text. A rational value is exact.

    None if the text is no arithmetic expression, or if an exponent is above 64.
    """
    if (exact := parse_latex(text)) is not None:
        return exact
    tokens = _TOKEN.findall(text)
    if not tokens or "".join(tokens) != text:
        return None
    try:
        parser = _Parser(tokens)
        result = parser.sum()
        return result if parser.position == len(tokens) else None
    except (_UnreadableError, ZeroDivisionError, OverflowError, ValueError):
        return None


def _split(text: str) -> tuple[str, str, str]:
    """Split an answer into variable, value and unit: "x=5cm" gives ("x=", "5", "cm")."""
    name = re.match(r"[a-zA-Z]=", text)
    unit = re.search(r"(?<=\d)(?:[a-zA-Z]{2,}\.?|[cmgsLhk])(?:\^\{?[23]\}?)?$", text)
    begin, end = name.end() if name else 0, unit.start() if unit else len(text)
    return text[:begin], text[begin:end], text[end:]


class _UnreadableError(Exception):
    """The text is no arithmetic expression that this grader reads."""


class _Parser:
    """A recursive-descent parser of sums, products (also implied), powers, fractions and roots.

    Each method reads one kind of expression from the next tokens and returns its value.
    """

    def __init__(self, tokens: list[str]):
        self.tokens, self.position = tokens, 0

    def peek(self) -> str:
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def take(self, *expected: str) -> str:
        token = self.peek()
        if not token or (expected and token not in expected):
            raise _UnreadableError
        self.position += 1
        return token

    def sum(self) -> Fraction | float:
        sign = -1 if self.peek() in "+-" and self.peek() and self.take() == "-" else 1
        total = sign * self.product()
        while self.peek() in ("+", "-"):
            sign = -1 if self.take() == "-" else 1
            total = total + sign * self.product()
        return total

    def product(self) -> Fraction | float:
        begin, result = self.position, self.power()
        while True:
            if self.peek() in ("*", "/"):
                result = result * self.power() if self.take() == "*" else result / self.power()
            elif self.peek() in ("\\frac",) and self.position == begin + 1 and self.tokens[begin].isdigit():
                result = result + self.power()  # a mixed number
            elif self.peek() and (
                self.peek()[0] in "(\\πpe" or (self.peek()[0].isdigit() and self.tokens[self.position - 1] in ")}")
            ):
                result = result * self.power()
            else:
                return result

    def power(self) -> Fraction | float:
        base = self.atom()
        while self.peek() in ("^", "%"):
            if self.take() == "%":
                base = base / 100
                continue
            sign = -1 if self.peek() == "-" and self.take() else 1
            exponent = sign * self.atom()
            if abs(exponent) > _MAX_EXPONENT or abs(base) > 10**_MAX_EXPONENT:
                raise _UnreadableError
            if isinstance(exponent, Fraction) and exponent.denominator == 1:
                base = base ** int(exponent)
            elif base < 0:
                raise _UnreadableError
            else:
                base = float(base) ** float(exponent)
        return base

    def atom(self) -> Fraction | float:
        token = self.take()
        if token[0].isdigit() or token[0] == ".":
            return Fraction(token)
        if token in ("(", "{", "["):
            inner = self.sum()
            self.take({"(": ")", "{": "}", "[": "]"}[token])
            return inner
        if token == "\\frac":
            return self.argument() / self.argument()
        if token == "\\sqrt":
            degree: Fraction | float = Fraction(2)
            if self.peek() == "[":
                self.take("[")
                degree = self.sum()
                self.take("]")
            inside = self.argument()
            if inside < 0:
                raise _UnreadableError
            return float(inside) ** (1 / float(degree))
        if token in ("\\pi", "pi", "π"):
            return math.pi
        if token == "e":
            return math.e
        raise _UnreadableError

    def argument(self) -> Fraction | float:
        """Read the argument of a LaTeX command, in braces."""
        self.take("{")
        inner = self.sum()
        self.take("}")
        return inner
