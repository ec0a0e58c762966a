"""Which part of a response is its answer, and what it looks like when nothing but notation differs.

The rules, in order:
- A response ends at its end token (ENDS); what a model writes after one is not part of it.
- The last `\\boxed{...}` counts, with balanced braces. When the last one is not closed there is no answer: never that
  of an earlier one. An empty one is no answer.
- Strict (rewards): nothing else counts. Lenient (reports): without any `\\boxed`, what follows the last "answer is",
  "answer:" or "####" on its line counts.
- An answer that is longer, deeper or larger than any that is meant (LIMITS) is no answer: a parser could be kept busy
  with it for hours.
"""

from __future__ import annotations

import re
from typing import Literal

Rule = Literal["strict", "lenient"]

ENDS = ("<|eot_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>", "</s>")
# LIMITS, ours: generous for the answers of competitions.
MAX_CHARACTERS = 500
MAX_DEPTH = 10  # of brackets
MAX_DIGITS = 100  # of one number
_TOO_LARGE = re.compile(
    rf"\d{{{MAX_DIGITS + 1}}}"  # a number
    r"|(?:\^|\*\*)\s*\{?\s*[-+]?\s*\d{6}"  # an exponent of six digits
    r"|(?:\^|\*\*)[^+\-=,;]*(?:\^|\*\*)[^+\-=,;]*(?:\^|\*\*)"  # a tower of powers
    r"|\d{4}\s*\}?\s*!|!\s*\}?\s*!"  # the factorial of a large number, or of a factorial
)
_CODE = re.compile(r"__|\b(?:import|lambda|exec|eval|open|print|def|class|sympy|os\.|sys\.)\b|[`@\x00-\x08\x0e-\x1f]")

_BOX = re.compile(r"\\boxed\s*(?=(\{)|)")
_MARKER = re.compile(r"(?:\banswer\s*(?:is|:|=)|####)\s*:?", re.IGNORECASE)
# What may stand around an answer and is not part of it.
_AROUND = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("\\displaystyle", ""))
_SPACES = re.compile(r"\\[,;:!> ]|\\q?quad\b|~|\s+")
_WORDS = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mathit|operatorname|mbox|rm|bf)\s*\{([^{}]*)\}")


def extract(response: str, rule: Rule) -> str | None:
    """The answer of a response, as it is written; None where it has none."""
    response = until_end(response)
    boxes = [*_BOX.finditer(response)]
    if boxes:
        return _usable(_braced(response, boxes[-1].end()) if boxes[-1][1] else None)
    if rule == "strict":
        return None
    markers = [*_MARKER.finditer(response)]
    return _usable(response[markers[-1].end() :].split("\n", 1)[0]) if markers else None


def until_end(response: str) -> str:
    """A response without what a model wrote after its end token."""
    for end in ENDS:
        response = response.split(end, 1)[0]
    return response


def _braced(text: str, begin: int) -> str | None:
    """What stands between the brace at `begin` and its partner; None where there is none near enough."""
    depth = 0
    for match in re.finditer(r"\\.|[{}]", text[begin : begin + MAX_CHARACTERS * 2], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return text[begin + 1 : begin + match.start()]
    return None


def _usable(text: str | None) -> str | None:
    """An answer without what stands around it; None for one beyond the limits."""
    if text is None or len(text) > 2 * MAX_CHARACTERS:
        return None
    text = bare(text)
    depth = deepest = 0
    for bracket in re.findall(r"[({\[)}\]]", text):
        depth += 1 if bracket in "({[" else -1
        deepest = max(deepest, depth)
    bad = not text or len(text) > MAX_CHARACTERS or deepest > MAX_DEPTH or _CODE.search(text) or _TOO_LARGE.search(text)
    return None if bad else text


def bare(text: str) -> str:
    """Without dollar signs, bold type and full stops around it."""
    before = None
    while text != before:
        before = text
        text = text.strip().rstrip(".").strip()
        for left, right in _AROUND:
            if text.startswith(left) and text.endswith(right) and len(text) > len(left) + len(right):
                text = text[len(left) : len(text) - len(right)]
    return text


def normal(text: str) -> str:
    """One way of writing for what differs in notation only: equal results are equal answers.

    Spaces, sizes of brackets and fractions, fonts, thousands separators, degrees, and zeros that add nothing.
    """
    text = bare(text)
    text = _WORDS.sub(lambda m: m[1].strip(), text)
    text = (
        text.replace("−", "-")
        .replace("–", "-")
        .replace(r"\varnothing", r"\emptyset")
        .replace("∅", r"\emptyset")
        .replace("×", r"\times")
        .replace("·", r"\cdot")
    )
    text = re.sub(r"\\[dtc]frac\b|\\frac\b", r"\\frac", text)
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\sqrt\s*(\d)", r"\\sqrt{\1}", text)
    text = re.sub(r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])", "", text)
    text = re.sub(r"(?<=\d)(?:,|\{,\}|\\,|\\!,?)(?=\d{3}(?!\d))", "", text) if _one_number(text) else text
    text = _SPACES.sub("", text)
    text = re.sub(r"\^\{?\\circ\}?|°|\\degree\b", "", text).replace(r"\%", "%").replace(r"\$", "")
    text = re.sub(r"\^\{(\w)\}", r"^\1", text)
    text = re.sub(r"_\{(\w)\}", r"_\1", text)
    text = text.replace(r"\cdot", "*").replace(r"\times", "*").replace(r"\le", "<=").replace(r"\ge", ">=")
    text = re.sub(r"(<=|>=)q(?![a-zA-Z])", r"\1", text)
    text = re.sub(r"(?<![\d.])0+(?=\d)", "", text)
    text = re.sub(r"(\.\d*?)0+(?!\d)", r"\1", text)
    text = re.sub(r"\.(?!\d)", "", text)
    text = re.sub(r"(?:(?<=[-+(,])|^)1i(?![a-zA-Z])", "i", text)
    text = r"(-\infty,\infty)" if text == r"\mathbb{R}" else text
    return re.sub(r"(?<!\d)\.(?=\d)", "0.", text)


def _one_number(text: str) -> bool:
    """Whether commas can only separate thousands: 1,200 is a number, (1,200) and 1,200,5 are not."""
    return re.fullmatch(r"[-+$\\]*\d{1,3}(?:(?:,|\{,\}|\\,|\\!,?)\d{3})+(?:\.\d+)?[^\d,]*", text.strip()) is not None
