"""Write verify_pairs_2.jsonl: gold answers, responses, and the right verdict under the strict rule.

SAME and OTHER map a category to pairs of answers that are the same answer, or different answers. The numbers of the
generated pairs are computed with fractions, not by the code under test. Run the script from the repository:

    python tests/golden/make_verify_pairs_2.py
"""

import json
import pathlib
import random
from fractions import Fraction

BOX = "We find \\boxed{%s}."

# Failures of other verifiers: gold, whole response, status under the strict rule.
NAMED = [
    (r"1-\frac{1}{e}", r"\boxed{1+\frac{1}{e}}", "wrong"), ("1-1/e", r"\boxed{1+1/e}", "wrong"),
    (r"1-\frac1e", r"\boxed{1-1/e}", "correct"), ("3x-y+13=0", r"\boxed{3x+4y+14=0}", "wrong"),
    ("3x-y+13=0", r"\boxed{3x - y + 13 = 0}", "correct"), ("73", r"\boxed{**73**}", "correct"),
    ("73", r"**\boxed{73}**", "correct"), ("5", r"\boxed{5} and then \boxed{5", "unparsed"),
    ("5", r"\boxed{5", "unparsed"), ("9", r"\boxed{9^{9^{9^9}}}", "unparsed"), ("9", r"\boxed{9**9**9**9}", "unparsed"),
    ("5", r"\boxed{4}<|eot_id|>\boxed{5}", "wrong"), ("5", r"\boxed{5}<|im_end|>\boxed{4}", "correct"),
    ("1", r"\boxed{9=1}", "wrong"), ("3", r"\boxed{2 \text{ or } 3}", "wrong"), ("3", r"\boxed{3, 4}", "wrong"),
    ("7", "There is no box but 7.", "unparsed"), ("7", r"\boxed{}", "unparsed"), ("8", r"\boxed{7} \boxed{8}", "correct"),
    ("7", r"\boxed{7} \boxed{8}", "wrong"),
]  # fmt: skip

# ruff: noqa: E501
SAME = {
    "fractions": [(r"\frac{3}{4}", r"\dfrac{3}{4}"), (r"\frac{3}{4}", r"\tfrac34"), (r"\frac{3}{4}", "3/4"), (r"\frac{3}{4}", "0.75"), (r"-\frac{2}{5}", r"\frac{-2}{5}"), (r"\frac{6}{4}", r"\frac32"), (r"\frac{3}{4}", "$\\frac{3}{4}$"), (r"\frac{x}{2}", "x/2"), (r"\frac{x}{2}", r"\frac12 x")],
    "mixed": [(r"2\frac{1}{2}", r"\frac52"), (r"2\frac{1}{2}", "2.5"), (r"-1\frac13", r"-\frac43")],
    "percent": [(r"50\%", r"50\%"), (r"50\%", "0.5"), (r"12.5\%", r"\frac18"), (r"12.5\%", r"12.50\%")],
    "degrees": [(r"90^\circ", r"90^{\circ}"), (r"90^\circ", "90"), ("45", r"45^\circ"), (r"45^\circ", "45°")],
    "units": [(r"5\text{ cm}", r"5\text{ cm}"), (r"5\text{ cm}", "5"), ("12", r"12\text{ miles}"), (r"5\,\mathrm{cm}", r"5\text{ cm}")],
    "text": [(r"\text{Evelyn}", "Evelyn"), ("Monday", r"\text{Monday}"), (r"\text{even}", r"\textbf{even}"), ("yes", r"\text{yes}")],
    "choices": [(c, form % c) for c in "ABCDE" for form in ("%s", r"\text{%s}", "(%s)", r"\text{(%s)}", r"\textbf{(%s)}", "%s.")],
    "surds": [(r"2\sqrt{2}", r"\sqrt{8}"), (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}"), (r"\sqrt{12}", r"2\sqrt3"), (r"\sqrt{2}+1", r"1+\sqrt2"), (r"\sqrt[3]{8}", "2"), (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"), (r"5\sqrt{5}", r"\sqrt{125}")],
    "constants": [(r"2\pi", r"\pi\cdot 2"), (r"\frac{\pi}{3}", r"\pi/3"), ("e^2", "e^{2}"), (r"\ln 4", r"2\ln 2"), (r"\log_2 8", "3"), (r"\pi^2/6", r"\frac{\pi^2}{6}")],
    "powers": [(r"2^{10}", "1024"), ("x^2", "x^{2}"), ("2^{-3}", r"\frac18"), ("a^{2}b", "b a^2"), ("5!", "120"), (r"\binom{5}{2}", "10")],
    "polynomials": [("x^2-1", "(x-1)(x+1)"), ("(x+2)^2", "x^2+4x+4"), ("2x+3", "3+2x"), ("x(x+1)", "x^2+x"), ("a^2-b^2", "(a+b)(a-b)"), ("3x-2y", "-2y+3x"), ("n(n+1)/2", r"\frac{n^2+n}{2}")],
    "intervals": [("(1,2)", "(1, 2)"), ("[1,2)", r"\left[1,2\right)"), (r"(-\infty,3]", r"\left(-\infty, 3\right]"), (r"(0,1)\cup(2,3)", r"(2,3) \cup (0,1)"), (r"[0,\infty)", r"[0, +\infty)")],
    "sets": [(r"\{1,2,3\}", r"\{3,2,1\}"), (r"\{1,2\}", r"\left\{1, 2\right\}"), ("1,2,3", "3, 2, 1"), (r"\{\frac12\}", r"\{0.5\}"), ("-2, 2", "2, -2")],
    "tuples": [("(1,2)", r"\left(1,2\right)"), ("(3,-1,2)", "(3, -1, 2)"), (r"(\frac12,1)", "(0.5, 1)"), ("(4,5,6)", r"\left( 4, 5, 6 \right)")],
    "matrices": [(r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}"), (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}"), (r"\begin{pmatrix}\frac12\\2\end{pmatrix}", r"\begin{pmatrix}0.5\\2\end{pmatrix}")],
    "equations": [("x=5", "5"), ("5", "x = 5"), ("y=2x+1", "y = 1 + 2x"), ("x+y=3", "y+x=3"), ("x+y-3=0", "x+y=3"), ("f(x)=2x", "2x"), ("2x", "f(x)=2x")],
    "inequalities": [("x>3", "3<x"), (r"x\le 2", r"x \leq 2"), (r"x\ge 2", r"2\le x"), ("1<x<2", "1 < x < 2")],
    "scientific": [(r"1.5\times 10^3", "1500"), (r"3\times10^{-2}", "0.03"), (r"2 \cdot 10^5", "200000"), (r"6.02\times 10^{23}", r"6.02 \cdot 10^{23}")],
    "plus-minus": [(r"\pm 2", "-2, 2"), (r"1\pm\sqrt{2}", r"1+\sqrt{2}, 1-\sqrt{2}"), (r"3 \pm 2", "1, 5")],
    "bases": [("101_2", "101_{2}"), ("2A_{16}", "2A_{16}"), ("4321_5", "4321_{5}")],
    "dress": [("7", "$7$"), ("7", "7."), ("7", r"\$7"), ("7", " 7 "), ("7", "+7"), ("7", "7.0"), ("7", "{7}"), ("7", "**7**"), (r"\frac12", r"\displaystyle\frac12"), ("12", r"12\,"), ("-7", "−7"), ("0.5", ".5")],
    "complex": [("2+3i", "3i+2"), ("-i", "0-i"), (r"1+i\sqrt3", r"1+\sqrt{3}i")],
}  # fmt: skip

OTHER = {
    "fractions": [(r"\frac{3}{4}", r"\frac{4}{3}"), (r"\frac{3}{4}", r"-\frac{3}{4}"), (r"\frac{3}{4}", "0.7"), (r"\frac{1}{3}", "0.333"), (r"\frac{x}{2}", r"\frac{2}{x}"), (r"\frac{1}{3}", "0.33")],
    "mixed": [(r"2\frac{1}{2}", r"\frac{2}{2}"), (r"2\frac{1}{2}", "1"), (r"2\frac12", "21/2")],
    "percent": [(r"50\%", r"5\%"), (r"12.5\%", r"\frac14"), (r"20\%", "0.02")],
    "degrees": [(r"90^\circ", r"60^\circ"), (r"90^\circ", "9"), ("45", r"54^\circ")],
    "units": [(r"5\text{ cm}", r"5\text{ km}"), (r"5\text{ cm}", "6"), (r"5\text{ cm}", r"6\text{ cm}"), ("12", r"13\text{ miles}")],
    "text": [(r"\text{Evelyn}", "Evan"), ("Monday", r"\text{Tuesday}"), (r"\text{even}", "odd"), ("yes", r"\text{no}")],
    "choices": [(a, form % b) for a, b in ("AB", "BC", "CD", "DE", "EA", "AE") for form in ("%s", r"\text{%s}", "(%s)", r"\text{(%s)}")],
    "surds": [(r"2\sqrt{2}", r"\sqrt{2}"), (r"\sqrt{2}", "1.41"), (r"\sqrt{2}", "1.414214"), (r"\sqrt{12}", r"3\sqrt2"), (r"\sqrt{2}+1", r"\sqrt{2}-1"), (r"\sqrt[3]{8}", r"\sqrt{8}"), (r"\sqrt{3}", r"\sqrt{-3}")],
    "constants": [(r"2\pi", r"\pi"), (r"\frac{\pi}{3}", r"\frac{3}{\pi}"), ("e^2", "2e"), (r"\ln 4", r"\ln 2"), (r"\pi", "3.14"), (r"\pi", "3.14159265"), (r"\pi", r"\frac{22}{7}")],
    "powers": [("2^{10}", "1023"), ("x^2", "x^3"), ("2^{-3}", "-8"), ("5!", "5"), (r"\binom{5}{2}", r"\frac52"), ("2^{10}", "210")],
    "polynomials": [("x^2-1", "(x-1)(x-1)"), ("(x+2)^2", "x^2+4"), ("2x+3", "2x-3"), ("x(x+1)", "x^2+1"), ("a^2-b^2", "b^2-a^2"), ("3x-2y", "3y-2x")],
    "intervals": [("(1,2)", "[1,2]"), ("[1,2)", "(1,2]"), (r"(-\infty,3]", r"(-\infty,3)"), (r"(0,1)\cup(2,3)", "(0,3)"), (r"[0,\infty)", r"(-\infty,0]")],
    "sets": [(r"\{1,2,3\}", r"\{1,2\}"), (r"\{1,2\}", r"\{1,3\}"), ("1,2,3", "1,2"), ("-2, 2", "2"), ("2", "-2,2")],
    "tuples": [("(1,2)", "(2,1)"), ("(3,-1,2)", "(3,1,2)"), (r"(\frac12,1)", "(2, 1)"), ("(4,5,6)", "(4,5)")],
    "matrices": [(r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&3\\2&4\end{pmatrix}"), (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}")],
    "equations": [("x=5", "6"), ("5", "x=6"), ("y=2x+1", "y=2x-1"), ("x+y=3", "x-y=3"), ("3x-y+13=0", "3x+4y+13=0"), ("2x-3y+1=0", "2x-3y-1=0")],
    "inequalities": [("x>3", "x<3"), (r"x\le 2", "x<2"), ("1<x<2", "1<x<3")],
    "scientific": [(r"1.5\times 10^3", "150"), (r"3\times10^{-2}", "0.3"), (r"2 \cdot 10^5", r"2\cdot 10^6")],
    "plus-minus": [(r"\pm 2", "2"), (r"1\pm\sqrt{2}", r"1+\sqrt{2}"), (r"3 \pm 2", "5")],
    "bases": [("101_2", "101_3"), ("101_2", "100_2"), ("4321_5", "4321_6")],
    "dress": [("7", "$8$"), ("7", "77"), ("7", "-7"), ("7", "0.7"), ("7", "7.1"), ("12", "1.2")],
    "complex": [("2+3i", "2-3i"), ("-i", "i"), (r"1+i\sqrt3", r"1+\sqrt3")],
}  # fmt: skip

HARD_SAME = [
    (r"\frac{1}{x-1}", r"-\frac{1}{1-x}"),
    (r"\sin^2 x", r"1-\cos^2 x"),
    (r"\sin(2x)", r"2\sin x\cos x"),
    ("x^2+y^2=1", "x^2+y^2-1=0"),
    ("2x+4y=6", "x+2y=3"),
    ("1000", "1{,}000"),
    (r"10\text{ cm}^2", "10"),
    (r"\infty", r"\infty"),
    (r"\emptyset", r"\varnothing"),
    (r"\frac16", r"0.1\overline{6}"),
    ("18.90", r"\$18.9"),
    ("2:3", "2:3"),
    ("12:30", "12:30"),
    (r"\frac{\sqrt{5}-1}{2}", r"\frac{2}{1+\sqrt5}"),
    (r"\lfloor 3.7\rfloor", "3"),
    (r"4\sqrt{3}", r"4\sqrt3\text{ cm}"),
    ("x=1, y=2", "x=1,y=2"),
    (r"(1,2)", r"x\in(1,2)"),
    (r"\mathbb{R}", r"(-\infty,\infty)"),
    ("0", "0.0"),
    ("0", "-0"),
    (r"\frac{0}{5}", "0"),
    (r"\tan 45^\circ", "1"),
    (r"e^{i\pi}", "-1"),
]
HARD_OTHER = [
    (r"\frac{1}{x-1}", r"\frac{1}{1-x}"),
    (r"\sin 2x", r"2\sin x"),
    ("x^2+y^2=1", "x^2+y^2=2"),
    (r"10\text{ cm}^2", "10^2"),
    (r"-\infty", r"\infty"),
    ("18.90", "1890"),
    ("2:3", "3:2"),
    ("12:30", "12:35"),
    (r"\frac{\sqrt{5}-1}{2}", r"\frac{1-\sqrt5}{2}"),
    (r"\lfloor 3.7\rfloor", "4"),
    ("x=1, y=2", "x=2, y=1"),
    ("0", r"\emptyset"),
    ("100", "100!"),
    ("5", r"\text{five or six}"),
    ("6", r"\frac{6}{0}"),
    ("x+1", "y+1"),
    ("x=5", "y=5"),
    ("1", "1, 1.5"),
    (r"\frac12", "12"),
    ("25", "2 5 7"),
]
SAME["hard"], OTHER["hard"] = HARD_SAME, HARD_OTHER


def generated(draw: random.Random) -> list[tuple[str, str, str, str]]:
    """Pairs of two forms of one number, and pairs of a number and a number close to it."""
    pairs = []
    for _ in range(48):
        value = Fraction(draw.randint(-99, 99) or 1, draw.choice([2, 4, 5, 8, 20]))
        top, bottom, sign = abs(value.numerator), value.denominator, "-" if value < 0 else ""
        forms = [f"{sign}\\frac{{{top}}}{{{bottom}}}", f"{value.numerator}/{bottom}", f"{float(value)}"]
        gold, form = draw.sample(forms, 2)
        pairs.append(("numbers", gold, BOX % form, "correct"))
        pairs.append(("numbers", gold, BOX % float(value + Fraction(1, draw.choice([8, 10, 100, 1000]))), "wrong"))
        large = draw.randint(1000, 9_999_999)
        pairs.append(("thousands", str(large), BOX % f"{large:,}", "correct"))
        pairs.append(("thousands", f"{large:,}", BOX % (large + draw.choice([-1, 1, 10, 1000])), "wrong"))
        a, b = draw.randint(2, 9), draw.choice([2, 3, 5, 7])
        pairs.append(("surds", f"{a}\\sqrt{{{b}}}", BOX % f"\\sqrt{{{a * a * b}}}", "correct"))
        pairs.append(("surds", f"{a}\\sqrt{{{b}}}", BOX % f"\\sqrt{{{a * b}}}", "wrong"))
    return pairs


def rows() -> list[tuple[str, str, str, str]]:
    labelled = [("named", *row) for row in NAMED]
    for group, status in ((SAME, "correct"), (OTHER, "wrong")):
        labelled += [(name, gold, BOX % answer, status) for name, pairs in group.items() for gold, answer in pairs]
    labelled += generated(random.Random(0))
    return list(dict.fromkeys(labelled))


if __name__ == "__main__":
    with pathlib.Path(__file__).with_name("verify_pairs_2.jsonl").open("w", encoding="utf-8") as file:
        for category, gold, response, status in rows():
            record = {"category": category, "gold": gold, "response": response, "verdict": status}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
