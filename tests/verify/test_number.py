"""The reader of numbers."""

from fractions import Fraction

import pytest

from astro_jax.verify import number


@pytest.mark.parametrize(
    "text, value",
    [("7", 7), ("-3.50", Fraction(-7, 2)), ("1,200", 1200), ("3/4", Fraction(3, 4)), ("3 / 0", None), ("1,20", None),
     ("seven", None), ("", None), ("1e9", None), ("9" * 21, None), ("−4", -4), ("7 apples", None)],
)  # fmt: skip
def test_plain_numbers_are_read_exactly(text, value):
    assert number.parse(text) == value


def test_numbers_of_a_text_are_found_with_their_values():
    text = "Tom has 5 of 1,200 cats, x12 and 3.50 birds, 5 dogs, 7%, 17-12 and −4."
    assert number.find(text) == {"5": 5, "1,200": 1200, "3.50": Fraction(7, 2), "7": 7, "17": 17, "12": 12, "−4": -4}


@pytest.mark.parametrize(
    "text, value",
    [
        ("\\frac{1}{2}", Fraction(1, 2)), ("-\\dfrac{3}{4}", Fraction(-3, 4)), ("+7", 7), (".5", Fraction(1, 2)),
        ("45^\\circ", 45), ("1{,}000", 1000), ("0.1\\overline{6}", Fraction(1, 6)), ("$3/4$", Fraction(3, 4)),
        ("-0.1\\overline{6}", Fraction(-1, 6)), ("1/0", None), ("\\frac{1}{0}", None), ("x", None), ("2+3", None),
        ("", None), ("2 1/2", Fraction(5, 2)), ("-2\\frac{1}{2}", Fraction(-5, 2)), ("2 1/0", None), ("1 2", None),
    ],
)  # fmt: skip
def test_latex_numbers_are_read_exactly(text, value):
    assert number.parse_latex(text) == value
