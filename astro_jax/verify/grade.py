"""The second opinion: an independent grader without sympy. Normalized strings first, then their numbers."""

from __future__ import annotations

import math
import re
from fractions import Fraction

from astro_jax.verify.answer import normal

_TOKEN = re.compile(r"\d+(?:\.\d+)?|\.\d+|\\frac|\\sqrt|\\pi|pi|π|[-+*/^(){}\[\]]|%|e(?![a-zA-Z])")
_LARGEST = 64  # of an exponent


def same(gold: str, answer: str) -> bool | None:
    """Whether two answers are equal; None where this grader cannot tell, as of expressions with variables."""
    a, b = normal(gold), normal(answer)
    if a == b:
        return True
    (name_a, number_a, unit_a), (name_b, number_b, unit_b) = _parts(a), _parts(b)
    x, y = value(number_a), value(number_b)
    if x is None or y is None or (name_a and name_b and name_a != name_b) or (unit_a and unit_b and unit_a != unit_b):
        return None
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return x == y
    return math.isclose(x, y, rel_tol=1e-9, abs_tol=1e-12)


def number(text: str) -> Fraction | None:
    """The exact value of a plain number or fraction of two; None for anything else."""
    text = normal(text)
    if match := re.fullmatch(r"(-?)(\d*)\.(\d*)\\overline\{(\d+)\}", text):  # a repeating decimal
        places, repeated = len(match[3]), Fraction(int(match[4]), 10 ** len(match[4]) - 1)
        size = (int(f"0{match[2]}{match[3]}") + repeated) / 10**places
        return -size if match[1] else size
    match = re.fullmatch(r"([-+]?)(?:(\d+(?:\.\d+)?)(?:/(\d+))?|\\frac\{(\d+)\}\{(\d+)\})", text)
    if match is None:
        return None
    top, bottom = Fraction(match[2] or match[4]), Fraction(match[3] or match[5] or 1)
    return None if not bottom else (-1 if match[1] == "-" else 1) * top / bottom


def value(text: str) -> Fraction | float | None:
    """The value of an arithmetic expression in LaTeX or plain text, exact where it is rational."""
    if (exact := number(text)) is not None:
        return exact
    tokens = _TOKEN.findall(text)
    if not tokens or "".join(tokens) != text:
        return None
    try:
        parser = _Parser(tokens)
        result = parser.sum()
        return result if parser.at == len(tokens) else None
    except (_Unreadable, ZeroDivisionError, OverflowError, ValueError):
        return None


def _parts(text: str) -> tuple[str, str, str]:
    """The variable before a value, the value, and the unit after it: of x=5cm x, 5 and cm."""
    name = re.match(r"[a-zA-Z]=", text)
    unit = re.search(r"(?<=\d)(?:[a-zA-Z]{2,}\.?|[cmgsLhk])(?:\^\{?[23]\}?)?$", text)
    begin, end = name.end() if name else 0, unit.start() if unit else len(text)
    return text[:begin], text[begin:end], text[end:]


class _Unreadable(Exception):
    pass


class _Parser:
    """Recursive descent over the tokens of an expression: sums, products (also implied), powers, fractions, roots."""

    def __init__(self, tokens: list[str]):
        self.tokens, self.at = tokens, 0

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, *wanted: str) -> str:
        token = self.peek()
        if not token or (wanted and token not in wanted):
            raise _Unreadable
        self.at += 1
        return token

    def sum(self) -> Fraction | float:
        sign = -1 if self.peek() in "+-" and self.peek() and self.take() == "-" else 1
        total = sign * self.product()
        while self.peek() in ("+", "-"):
            sign = -1 if self.take() == "-" else 1
            total = total + sign * self.product()
        return total

    def product(self) -> Fraction | float:
        begin, result = self.at, self.power()
        while True:
            if self.peek() in ("*", "/"):
                result = result * self.power() if self.take() == "*" else result / self.power()
            elif self.peek() in ("\\frac",) and self.at == begin + 1 and self.tokens[begin].isdigit():
                result = result + self.power()  # a mixed number
            elif self.peek() and (
                self.peek()[0] in "(\\πpe" or (self.peek()[0].isdigit() and self.tokens[self.at - 1] in ")}")
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
            if abs(exponent) > _LARGEST or abs(base) > 10**_LARGEST:
                raise _Unreadable
            if isinstance(exponent, Fraction) and exponent.denominator == 1:
                base = base ** int(exponent)
            elif base < 0:
                raise _Unreadable
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
                raise _Unreadable
            return float(inside) ** (1 / float(degree))
        if token in ("\\pi", "pi", "π"):
            return math.pi
        if token == "e":
            return math.e
        raise _Unreadable

    def argument(self) -> Fraction | float:
        """Of a command: in braces, or one digit."""
        self.take("{")
        inner = self.sum()
        self.take("}")
        return inner
