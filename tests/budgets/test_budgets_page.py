"""The tables and the page of `astro budgets`."""

import re

import numpy as np
import pytest

from astro_jax import percent
from astro_jax.budgets import figures, page
from astro_jax.budgets.figures import Answers, Trees


@pytest.fixture(scope="module")
def results():
    def answers(rate, tokens, n):
        correct = np.random.default_rng(0).random((12, n)) < rate
        return Answers(np.full((12, n), tokens), correct, [["1"] * n] * 12, 8.0)

    measured = {
        "astro-sft": (answers(0.7, 40, 4), None),
        "<b>x</b>": (answers(0.4, 10, 16), Trees(np.arange(12) * 10, 160, 0.1, 0.5)),
    }
    return {"models": {}, "sets": {"held-out": {"origin": {}} | figures.compare(measured, 40.0, 4)}}


def test_tables_show_each_method_at_equal_tokens_and_at_larger_budgets(results):
    text = page.markdown_tables(results)
    rows = re.findall(r"^\| (.*?) \| ([\d.]+) \| ([\d.]+) \| ", text, re.MULTILINE)
    assert rows == [
        ("ASTRO-SFT, one answer", "40.0", "0"), ("<b>x</b>, one answer", "10.0", "0"),
        ("<b>x</b>, majority vote of 4", "40.0", "0"), ("<b>x</b>, best of 4, chosen by the verifier", "40.0", "4.0"),
        ("<b>x</b>, tree search with the verifier", "40.0", "4.0"),
    ]  # fmt: skip
    assert "| method | 1 x 40.0 tokens | 2 x 40.0 tokens | 4 x 40.0 tokens |" in text
    one = results["sets"]["held-out"]["models"]["astro-sft"]["pass@1"]
    assert f"| ASTRO-SFT, best of N | {percent.rate(one)} | " in text
    assert "pass@k" in text and "12 problems. The budget is 40.0 generated tokens" in text


def test_the_page_draws_each_curve_within_its_axes_and_escapes_names(results):
    text = page.html("r", "astro budgets r", results)
    assert "<b>x" not in text and "&lt;b&gt;x&lt;/b&gt;, tree search" in text
    plot = page.plot(results["sets"]["held-out"])
    assert len(plot["lines"]) == 5 and len(plot["dots"]) == 2 == text.count('<g class="dot">')
    for line in plot["lines"]:
        for x, y in (map(float, pair.split(",")) for pair in (line["points"] + " " + line["band"]).split()):
            assert plot["left"] <= x <= plot["right"] and plot["top"] <= y <= plot["bottom"]
    assert plot["left"] < plot["budget"] < plot["right"] and [t["label"] for t in plot["x_ticks"]] == [
        "10",
        "20",
        "50",
        "100",
    ]


def test_a_vote_that_cannot_be_afforded_is_said():
    one = {"models": {"a": {"prompt_tokens": 1.0}}, "table": [], "problems": 1, "budget": 3.0}
    assert "no vote stands beside" in page.notes(one)[-1]
