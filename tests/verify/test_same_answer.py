"""Answers of equal value have equal keys, and others do not."""

import itertools

import pytest

from astro_jax.verify.same_answer import value_key

CLASSES = [
    [r"\sqrt{8}", r"2\sqrt{2}", r"2\sqrt2", r"$\sqrt{8}$"],
    ["2", r"\sqrt{4}", "2.0", r"\frac{4}{2}", "x = 2"],
    ["1/2", "0.5", r"\frac12", r"\dfrac{1}{2}"],
    [r"\pi/2", r"\frac{\pi}{2}"],
    [r"(1, \sqrt{8})", r"(1,2\sqrt{2})"],
    [r"(\sqrt{8}, 1)"],
    [r"\{1, 2\}", r"\{2, 1\}", r"\{ 2,\frac{2}{2} \}"],
    ["(1,2)"],
    ["(1,2]"],
    ["1,2", "1, 2"],
    ["1234", "1,234"],
    ["12345678901"],
    ["12345678902"],
    ["x+1"],
    ["-3"],
    ["3"],
    ["1/3"],
    ["0.3333333333"],
]


@pytest.mark.parametrize("answers", CLASSES, ids=lambda c: c[0])
def test_answers_of_one_value_have_one_key(answers):
    assert len({value_key(a) for a in answers}) == 1


def test_answers_of_different_values_have_different_keys():
    for a, b in itertools.combinations(CLASSES, 2):
        assert value_key(a[0]) != value_key(b[0]), (a[0], b[0])


@pytest.mark.parametrize(
    "text", ["(" * 400, "[" * 3000, "9^{9^{9}}", "10^{400}", r"\frac{1}{0}", "", ",", "((,))", "10^64" * 9, "1" * 5000]
)
def test_hostile_answers_have_a_key(text):
    assert isinstance(value_key(text), str)
