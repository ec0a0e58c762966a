"""Extract the final answer of a response, and normalize the notation of an answer.

The rules, in order:

- A response ends at its first end token (END_TOKENS). The text after the end token is ignored.
- The last `\\boxed{...}` with balanced braces counts. If the last box is not closed or is empty, the response has no
  answer. An earlier box never counts in its place.
- Strict rule (rewards): only a box counts. Lenient rule (reports): in a response without a box, the rest of the line
  after the last "answer is", "answer:" or "####" counts.
- An answer beyond the limits (MAX_CHARACTERS, MAX_DEPTH, MAX_DIGITS) is no answer, because a parser could need hours.
"""

from __future__ import annotations

import re
from typing import Literal

# "math500" is the rule of published MATH-500 figures (verify.math). It extracts answers of its own.
Rule = Literal["strict", "lenient", "math500"]
RULES: tuple[Rule, ...] = ("strict", "lenient", "math500")

END_TOKENS = ("<|eot_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>", "</s>")
# The limits are ours. They are generous for the answers of mathematics competitions.
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
# Delimiters that may stand around an answer and are not part of the answer.
_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("\\displaystyle", ""))
_WIDE_DIGITS = str.maketrans("０１２３４５６７８９", "0123456789")
_SPACE = r"\\[,;:!> ]|\\q?quad\b|~|\s"
_MIXED = re.compile(rf"(?<![\d.,/^_{{])(\d+)(?:{_SPACE})+(\d+)/(\d+)(?![\d.])")  # 2 1/2
# Between two numbers a space stays, but for thousands: 1 000.
_SPACING = re.compile(rf"(?P<between>(?<=\d)(?:{_SPACE})+(?=\d)(?!\d{{3}}(?!\d)))|{_SPACE}")
_WORDS = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mathit|operatorname|mbox|rm|bf)\s*\{([^{}]*)\}")


def extract(response: str, rule: Rule) -> str | None:
    """Extract the answer of a response as the response writes it. None if the response has no answer."""
    response = until_end_token(response)
    boxes = [*_BOX.finditer(response)]
    if boxes:
        return _within_limits(braced(response, boxes[-1].end()) if boxes[-1][1] else None)
    if rule == "strict":
        return None
    markers = [*_MARKER.finditer(response)]
    return _within_limits(response[markers[-1].end() :].split("\n", 1)[0]) if markers else None


def until_end_token(response: str) -> str:
    """Cut a response at its first end token."""
    for end in END_TOKENS:
        response = response.split(end, 1)[0]
    return response


def braced(text: str, begin: int) -> str | None:
    """Return the text between the brace at `begin` and its partner. None if the partner is missing or too far away."""
    depth = 0
    for match in re.finditer(r"\\.|[{}]", text[begin : begin + MAX_CHARACTERS * 2], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return text[begin + 1 : begin + match.start()]
    return None


def _within_limits(text: str | None) -> str | None:
    """Strip the delimiters of an answer. None if the answer is empty, looks like code or is beyond the limits."""
    if text is None or len(text) > 2 * MAX_CHARACTERS:
        return None
    text = strip_delimiters(text)
    depth = deepest = 0
    for bracket in re.findall(r"[({\[)}\]]", text):
        depth += 1 if bracket in "({[" else -1
        deepest = max(deepest, depth)
    rejected = (
        not text or len(text) > MAX_CHARACTERS or deepest > MAX_DEPTH or _CODE.search(text) or _TOO_LARGE.search(text)
    )
    return None if rejected else text


def strip_delimiters(text: str) -> str:
    """Remove dollar signs, LaTeX math delimiters, bold type and full stops around an answer. Digits become ASCII."""
    previous, text = None, text.translate(_WIDE_DIGITS)
    while text != previous:
        previous = text
        text = text.strip().rstrip(".").strip()
        for left, right in _DELIMITERS:
            if text.startswith(left) and text.endswith(right) and len(text) > len(left) + len(right):
                text = text[len(left) : len(text) - len(right)]
    return text


def normalize(text: str) -> str:
    """Rewrite an answer in one notation. Two answers with equal results are equal.

    The notations differ in spaces (but those between two numbers: 1 2 is not 12), sizes of brackets and fractions,
    fonts, thousands separators, degree signs, and zeros without value: `1{,}000`, `1,000` and `1000.0` become `1000`.
    """
    text = strip_delimiters(text)
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
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", text)
    text = _SPACING.sub(lambda m: " " if m["between"] else "", text)
    text = re.sub(r"\^\{?\\circ\}?|°|\\degree\b", "", text).replace(r"\%", "%").replace(r"\$", "")
    text = re.sub(r"\^\{(\w)\}", r"^\1", text)
    text = re.sub(r"_\{(\w)\}", r"_\1", text)
    text = text.replace(r"\cdot", "*").replace(r"\times", "*").replace(r"\le", "<=").replace(r"\ge", ">=")
    text = re.sub(r"(<=|>=)q(?![a-zA-Z])", r"\1", text)
    text = re.sub(r"(?<![\d. ])0+(?=\d)", "", text)
    text = re.sub(r"(\.\d*?)0+(?!\d)", r"\1", text)
    text = re.sub(r"\.(?!\d)", "", text)
    text = re.sub(r"(?:(?<=[-+(,])|^)1i(?![a-zA-Z])", "i", text)
    text = r"(-\infty,\infty)" if text == r"\mathbb{R}" else text
    return re.sub(r"(?<!\d)\.(?=\d)", "0.", text)


def _one_number(text: str) -> bool:
    """Whether commas can only separate thousands: true for 1,200, false for (1,200) and 1,200,5."""
    return re.fullmatch(r"[-+$\\]*\d{1,3}(?:(?:,|\{,\}|\\,|\\!,?)\d{3})+(?:\.\d+)?[^\d,]*", text.strip()) is not None
