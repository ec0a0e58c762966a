"""The second grader: values of expressions, and no wrong grade on the labelled pairs."""

from fractions import Fraction

import labelled_pairs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astro_jax.verify import second_grader
from astro_jax.verify.answer import extract, normalize


def test_no_grade_contradicts_a_labelled_pair():
    wrong = []
    for p in labelled_pairs.PAIRS:
        answer = extract(p["response"], "strict")
        grade = None if answer is None else second_grader.equal(p["gold"], answer)
        if grade is not None and grade != (p["verdict"] == "correct"):
            wrong.append((p["gold"], answer))
    assert wrong == []


@given(st.fractions(max_denominator=50, min_value=-99, max_value=99))
@settings(max_examples=100, deadline=None)
def test_all_forms_of_a_fraction_have_its_value(x):
    sign, top, bottom = "-" if x < 0 else "", abs(x.numerator), x.denominator
    forms = [
        f"{sign}\\frac{{{top}}}{{{bottom}}}",
        f"{sign}{top}/{bottom}",
        f"{sign}\\dfrac{{{3 * top}}}{{{3 * bottom}}}",
    ]
    if top > bottom:
        forms.append(f"{sign}({top // bottom}\\frac{{{top % bottom}}}{{{bottom}}})")
    assert {second_grader.value(normalize(form)) for form in forms} == {x}


@pytest.mark.parametrize(
    "text, value",
    [
        ("2+3*4", 14), ("2^{3}", 8), ("-2^2", -4), ("(1+2)(3+4)", 21), ("50%", Fraction(1, 2)), ("2\\sqrt{9}", 6),
        ("\\sqrt[3]{27}", 3), ("1\\frac{1}{2}", Fraction(3, 2)), ("3\\cdot10^{5}", 300000), ("10/4", Fraction(5, 2)),
        ("x", None), ("1/0", None), ("9^{999}", None), ("(1", None), ("", None), ("1+", None), ("\\sqrt{-1}", None),
    ],
)  # fmt: skip
def test_values_of_expressions(text, value):
    result = second_grader.value(normalize(text))
    assert result is None if value is None else result == pytest.approx(value)
