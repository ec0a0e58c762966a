"""The final answer of a response, and the normalized notation of an answer."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astro_jax.verify.answer import extract, normalize


@pytest.mark.parametrize(
    "response, strict, lenient",
    [
        ("\\boxed{5}", "5", "5"),
        ("\\boxed{4} then \\boxed{5}", "5", "5"),
        ("\\boxed{4} then \\boxed{5", None, None),
        ("The answer is 5.", None, "5"),
        ("The answer is **5**.\nAnd so on", None, "5"),
        ("Final answer: $\\frac{1}{2}$", None, "\\frac{1}{2}"),
        ("#### 42", None, "42"),
        ("The answer is 5, so \\boxed{6}", "6", "6"),
        ("\\boxed{5}</s>\\boxed{6}", "5", "5"),
        ("\\boxed{\\{1,2\\}}", "\\{1,2\\}", "\\{1,2\\}"),
        ("\\boxed{}", None, None),
        ("five", None, None),
        ("\\boxed{" + "1" * 101 + "}", None, None),
        ("\\boxed{9^{9^{9^{9}}}}", None, None),
        ("\\boxed{2^{1000000}}", None, None),
        ("\\boxed{99999!}", None, None),
        ("\\boxed{" + "(" * 11 + "1" + ")" * 11 + "}", None, None),
        ("\\boxed{__import__('os')}", None, None),
    ],
)
def test_last_box_counts_or_with_the_lenient_rule_a_marked_answer(response, strict, lenient):
    assert (extract(response, "strict"), extract(response, "lenient")) == (strict, lenient)


def test_a_run_of_spaces_is_normalized_at_once():
    start = time.process_time()
    assert normalize("1" + " \\ " * 5000 + "x") == "1x" and normalize("1" + " " * 9000 + "2/a") == "1 2/a"
    assert time.process_time() - start < 5


@given(st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_normalized_text_stays_the_same(text):
    assert normalize(normalize(text)) == normalize(text)
