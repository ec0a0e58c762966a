"""Write verify_pairs.jsonl: gold answers, responses, and the right verdict under the strict rule.

A line has the fields category, gold, response and verdict. The labels were decided by mathematics, before any grader ran.
"""

import json
import pathlib
import random

PAIRS = []


def box(answer):
    return f"So the answer is \\boxed{{{answer}}}."


def add(category, verdict, *pairs):
    for gold, answer in pairs:
        PAIRS.append({"category": category, "gold": gold, "response": box(answer), "verdict": verdict})


def add_responses(category, verdict, *pairs):
    """Add pairs of a gold answer and a whole response."""
    for gold, response in pairs:
        PAIRS.append({"category": category, "gold": gold, "response": response, "verdict": verdict})


def right(category, *pairs):
    add(category, "correct", *pairs)


def wrong(category, *pairs):
    add(category, "wrong", *pairs)


# ---- Failures of other verifiers, by name

NAMED = "named failure"
wrong(
    NAMED,
    ("1-\\frac{1}{e}", "1+\\frac{1}{e}"),
    ("1+1/e", "1-1/e"),
    ("3x-y+13=0", "3x+4y+14=0"),
    ("3x+4y+14=0", "3x-y+13=0"),
    ("\\frac{1}{e}", "\\frac{1}{e^2}"),
    ("2\\sqrt{3}-1", "2\\sqrt{3}+1"),
    ("(1,2)", "(2,1)"),
    ("x=3", "x=-3"),
)
right(NAMED, ("73", "**73**"), ("1-\\frac{1}{e}", "1-1/e"), ("3x-y+13=0", "3x-y+13=0"), ("3x-y+13=0", "y=3x+13"))
add_responses(
    NAMED, "correct", ("73", "The answer is **\\boxed{73}**."), ("73", "\\boxed{73}<|eot_id|> and then \\boxed{5}")
)
add_responses(
    NAMED,
    "unparsed",
    ("5", "First \\boxed{5}, but in the end \\boxed{7"),
    ("5", "First \\boxed{5}, but in the end \\boxed{\\frac{7}{2}"),
    ("5", "\\boxed{}"),
    ("5", "\\boxed{ }"),
    ("5", "The answer is 5."),
    ("5", "5"),
    ("5", ""),
    ("5", "I do not know."),
    ("5", "\\boxed{"),
    ("5", "no box<|eot_id|>\\boxed{5}"),
)
add_responses(NAMED, "wrong", ("5", "\\boxed{5} or rather \\boxed{6}"), ("8", "\\boxed{7} since 8 is too large"))
add_responses(
    NAMED, "correct", ("6", "\\boxed{5} or rather \\boxed{6}"), ("\\frac{1}{2}", "so \\boxed{\\frac{1}{2}} holds")
)

# ---- Numbers

rng = random.Random(0)
for _ in range(40):
    n = rng.randint(-5000, 5000)
    right("integer", (str(n), rng.choice([f"{n}", f" {n} ", f"${n}$", f"{n}.", f"{n}.0", f"{n}.00"])))
    wrong("integer near miss", (str(n), str(rng.choice([n + 1, n - 1, -n if n else 1, 10 * n + 10]))))
for _ in range(25):
    n = rng.randint(1000, 9_999_999)
    comma = f"{n:,}"
    right(
        "thousands", (str(n), rng.choice([comma, comma.replace(",", "{,}"), comma.replace(",", "\\,"), f"\\${comma}"]))
    )
for _ in range(40):
    a, b, m = rng.randint(1, 30), rng.randint(2, 30), rng.randint(2, 5)
    form = rng.choice(["\\frac{%d}{%d}", "\\dfrac{%d}{%d}", "\\tfrac{%d}{%d}", "%d/%d", "{%d}/{%d}"])
    right("fraction", (f"\\frac{{{a}}}{{{b}}}", form % (m * a, m * b)))
    wrong("fraction near miss", (f"\\frac{{{a}}}{{{b}}}", f"\\frac{{{a + b}}}{{{b}}}"))
for _ in range(25):
    whole, eighths = rng.randint(1, 40), rng.choice([1, 3, 5, 7])
    decimal = f"{whole + eighths / 8}"
    right(
        "decimal",
        (decimal, rng.choice([f"\\frac{{{8 * whole + eighths}}}{{8}}", decimal + "0", f"{8 * whole + eighths}/8"])),
    )
    right("mixed number", (decimal, f"{whole}\\frac{{{eighths}}}{{8}}"))
    wrong("decimal near miss", (decimal, f"{whole + eighths / 8 + 0.01:.3f}"))
right(
    "decimal",
    ("0.5", ".5"), ("0.5", "0.50"), ("-0.25", "-\\frac14"), ("-0.25", "-\\frac{1}{4}"),
    ("3.14159265", "3.14159265"), ("0.1", "\\frac{1}{10}"), ("100", "1\\times10^2"),
    ("300000", "3.0\\times 10^5"), ("0.0003", "3\\times 10^{-4}"), ("1200", "1.2\\cdot 10^3"), ("5", "05"), ("7", "+7"),
)  # fmt: skip
wrong(
    "decimal near miss",
    ("0.333333", "\\frac{1}{3}"), ("\\frac{2}{3}", "0.666667"), ("\\frac{1}{3}", "0.33"), ("\\frac{1}{3}", "0.3"), ("\\frac{2}{3}", "0.67"), ("\\pi", "3.14"), ("\\sqrt{2}", "1.41"),
    ("300000", "3.0\\times 10^4"), ("0.5", "5"), ("0.05", "0.5"), ("1000", "1,00"), ("0.1", "\\frac{1}{100}"),
)  # fmt: skip

# ---- Units, percent, degrees, money, text

for n in (5, 12, 37, 90, 144):
    right(
        "unit",
        (str(n), f"{n}\\text{{ cm}}"), (str(n), f"{n}\\ \\text{{meters}}"), (str(n), f"{n}^\\circ"),
        (str(n), f"{n}^{{\\circ}}"), (str(n), f"\\${n}"), (f"{n}^\\circ", f"{n}"), (f"{n}\\text{{ cm}}", f"{n}"),
        (f"{n}\\%", f"{n}\\%"), (f"{n}\\%", f"\\frac{{{n}}}{{100}}"),
    )  # fmt: skip
    wrong(
        "unit near miss",
        (str(n), f"{n + 1}\\text{{ cm}}"),
        (f"{n}^\\circ", f"{n + 2}^\\circ"),
        (f"{n}\\%", f"{n + 1}\\%"),
    )
right(
    "choice and text",
    ("A", "A"), ("A", "\\text{A}"), ("B", "\\text{(B)}"), ("C", "(C)"), ("D", "\\textbf{D}"), ("\\text{even}", "\\text{even}"),
    ("\\text{Monday}", "\\text{ Monday}"), ("E", "\\mathrm{E}"), ("\\text{Yes}", "\\text{Yes}"),
)  # fmt: skip
wrong(
    "choice and text",
    ("A", "B"), ("A", "\\text{B}"), ("B", "\\text{(C)}"), ("\\text{even}", "\\text{odd}"), ("\\text{Yes}", "\\text{No}"),
    ("\\text{Monday}", "\\text{Tuesday}"),
)  # fmt: skip

# ---- Roots, powers, constants

for a, b in ((2, 2), (3, 3), (2, 5), (4, 3), (5, 2), (6, 7), (3, 11)):
    right(
        "root",
        (f"{a}\\sqrt{{{b}}}", f"\\sqrt{{{a * a * b}}}"), (f"\\frac{{{a}}}{{\\sqrt{{{b}}}}}", f"\\frac{{{a}\\sqrt{{{b}}}}}{{{b}}}"),
        (f"{a}\\sqrt{{{b}}}", f"{a} \\sqrt {{{b}}}"), (f"{a}+\\sqrt{{{b}}}", f"\\sqrt{{{b}}}+{a}"),
    )  # fmt: skip
    wrong(
        "root near miss",
        (f"{a}\\sqrt{{{b}}}", f"{b}\\sqrt{{{a}}}" if a != b else f"{a}\\sqrt{{{b + 1}}}"), (f"{a}+\\sqrt{{{b}}}", f"{a}-\\sqrt{{{b}}}"),
        (f"{a}\\sqrt{{{b}}}", f"\\sqrt{{{a * b + 1}}}"),
    )  # fmt: skip
right(
    "constant",
    ("2\\pi", "\\pi\\cdot 2"), ("\\frac{\\pi}{2}", "\\pi/2"), ("\\frac{\\pi}{2}", "0.5\\pi"), ("e^2", "e\\cdot e"), ("4\\pi", "4 \\pi"),
    ("2^{10}", "1024"), ("10^{100}", "10^{100}"), ("2^{2023}", "2^{2023}"), ("\\log_2 8", "3"), ("5!", "120"),
    ("\\binom{5}{2}", "10"), ("\\sqrt[3]{8}", "2"), ("\\frac{\\sqrt{3}}{2}", "\\frac12\\sqrt3"), ("\\infty", "\\infty"), ("\\cos 0", "1"),
)  # fmt: skip
wrong(
    "constant near miss",
    ("2\\pi", "\\pi^2"), ("\\frac{\\pi}{2}", "\\frac{\\pi}{3}"), ("e^2", "2e"), ("2^{10}", "1023"), ("10^{100}", "10^{101}"),
    ("2^{2023}", "2^{2024}"), ("\\infty", "-\\infty"), ("5!", "60"), ("\\sqrt[3]{8}", "\\sqrt{8}"), ("\\pi", "e"),
)  # fmt: skip

# ---- Expressions, equations, inequalities

right(
    "expression",
    ("x^2+1", "1+x^2"), ("x^2-1", "(x-1)(x+1)"), ("2x+2", "2(x+1)"), ("(a+b)^2", "a^2+2ab+b^2"), ("\\frac{x}{2}", "\\frac12 x"),
    ("x+y", "y+x"), ("-x+3", "3-x"), ("x^{2}y", "yx^2"), ("\\frac{1}{x+1}", "(x+1)^{-1}"), ("3n^2-n", "n(3n-1)"),
    ("\\frac{n(n+1)}{2}", "\\frac{n^2+n}{2}"), ("\\sin^2 x+\\cos^2 x", "1"), ("2\\sin x\\cos x", "\\sin 2x"), ("a-b", "-(b-a)"),
    ("x^3+3x^2+3x+1", "(x+1)^3"), ("\\sqrt{x^2+1}", "(x^2+1)^{1/2}"), ("f(x)=2x+1", "2x+1"), ("y=2x+1", "2x+1"), ("x=5", "5"), ("5", "x=5"),
)  # fmt: skip
wrong(
    "expression near miss",
    ("x^2+1", "x^2-1"), ("x+1", "y+1"), ("2x+2", "2x+1"), ("(a+b)^2", "a^2+b^2"), ("x^2", "2x"), ("\\frac{1}{x+1}", "\\frac{1}{x}+1"),
    ("3n^2-n", "3n^2+n"), ("a-b", "b-a"), ("\\sin x", "\\cos x"), ("y=2x+1", "2x-1"), ("x=5", "6"), ("x^3", "x^2"),
    ("\\frac{n(n+1)}{2}", "\\frac{n(n-1)}{2}"), ("xy", "x+y"),
)  # fmt: skip
right(
    "relation",
    ("x>3", "3<x"), ("x\\geq 2", "x\\ge 2"), ("y=x^2", "y=x^2"), ("2x+4=0", "x+2=0"), ("x+y=3", "y=3-x"), ("x<5", "x < 5"),
    ("1<x<2", "1<x<2"), ("x\\le -1", "-1\\ge x"),
)  # fmt: skip
wrong(
    "relation near miss",
    ("x>3", "x<3"), ("x\\geq 2", "x>2"), ("y=x^2", "y=x^3"), ("2x+4=0", "x+3=0"), ("x+y=3", "x-y=3"), ("1<x<2", "1<x<3"),
)  # fmt: skip

# ---- Sets, tuples, intervals, matrices, several solutions

right(
    "set",
    ("\\{1,2\\}", "\\{2,1\\}"), ("\\{1,2,3\\}", "\\{3, 1, 2\\}"), ("1,2", "2,1"), ("-1, 3", "3, -1"), ("\\pm 3", "3, -3"), ("3,-3", "\\pm 3"),
    ("\\{1,2\\}", "\\left\\{1,2\\right\\}"), ("\\emptyset", "\\emptyset"), ("\\{0.5\\}", "\\{\\frac12\\}"), ("2,3,5", "2, 3, 5"),
)  # fmt: skip
wrong(
    "set near miss",
    ("\\{1,2\\}", "\\{1,3\\}"), ("\\{1,2\\}", "\\{1\\}"), ("1,2", "1"), ("1", "1,2"), ("\\pm 3", "3"), ("2,3,5", "2,3"), ("\\{1,2\\}", "(1,2)"),
    ("\\emptyset", "\\{0\\}"),
)  # fmt: skip
right(
    "tuple and interval",
    ("(1,2)", "(1, 2)"), ("(1,2)", "\\left(1,2\\right)"), ("(\\frac12,3)", "(0.5,3)"), ("[0,1]", "[0, 1]"), ("[0,1)", "[0, 1)"),
    ("(-\\infty,2]", "(-\\infty, 2]"), ("(1,2,3)", "(1,2,3)"), ("(-1,0)\\cup(2,3)", "(-1,0)\\cup(2,3)"), ("[2,5)", "\\left[2,5\\right)"),
    ("x\\in[1,2]", "[1,2]"), ("(0,\\sqrt{8})", "(0,2\\sqrt2)"), ("(3,-4)", "( 3 , -4 )"),
)  # fmt: skip
wrong(
    "tuple and interval near miss",
    ("(1,2)", "(1,3)"), ("[0,1]", "[0,1)"), ("[0,1)", "(0,1)"), ("(0,1)", "[0,1]"), ("(-\\infty,2]", "(-\\infty,2)"), ("(1,2,3)", "(1,2)"),
    ("(1,2,3)", "(3,2,1)"), ("(1,2)", "\\{1,2\\}"), ("(-1,0)\\cup(2,3)", "(-1,0)"), ("(3,-4)", "(-3,4)"),
)  # fmt: skip
right(
    "matrix",
    ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{bmatrix}1\\\\2\\end{bmatrix}"),
    ("\\begin{pmatrix}1/2\\\\2\\end{pmatrix}", "\\begin{pmatrix}0.5\\\\2\\end{pmatrix}"),
)
wrong(
    "matrix near miss",
    ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\begin{pmatrix}1&3\\\\2&4\\end{pmatrix}"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}2\\\\1\\end{pmatrix}"),
)
right(
    "complex and base",
    ("2+3i", "3i+2"), ("-i", "-i"), ("1+i", "1+1i"), ("101_2", "101_2"), ("101_{2}", "101_2"), ("2021_3", "2021_{3}"),
)  # fmt: skip
wrong("complex and base", ("2+3i", "2-3i"), ("-i", "i"), ("101_2", "111_2"), ("101_2", "101_3"), ("1+i", "1"))
right("ratio", ("3:4", "3:4"), ("3:4", "3 : 4"), ("1:2", "2:4"))
wrong("ratio", ("3:4", "4:3"), ("1:2", "1:3"))

# ---- Whole chains of thought

add_responses(
    "chain of thought",
    "correct",
    (
        "12",
        "We try 3 * 3 = 9.\nBut wait, are we solving the problem correctly so far? Hmm...\nLet's go back. \\boxed{12}",
    ),
    ("12", "Step 1: \\boxed{4} is an intermediate result. Step 2: \\boxed{8}. Final: $\\boxed{12}$"),
    ("12", "\\[\n\\boxed{12}\n\\]"),
    ("12", "$$x = \\boxed{12}.$$"),
    ("\\frac{3}{4}", "Thus $P = \\boxed{\\dfrac{3}{4}}$, as desired."),
    ("(2,3)", "The point is $\\boxed{(2,3)}$\n\nI hope this is correct."),
    ("12", "\\boxed {12}"),
    ("x", "\\boxed{x}"),
)
add_responses(
    "chain of thought",
    "wrong",
    ("12", "The answer is 12, but I write \\boxed{13}"),
    ("12", "\\boxed{12} is wrong; it is \\boxed{21}"),
    ("12", "\\boxed{12, 13}"),
    ("12", "\\boxed{12 \\text{ or } 13}"),
    ("\\frac{3}{4}", "Thus \\boxed{\\frac{4}{3}}"),
)

if __name__ == "__main__":
    path = pathlib.Path(__file__).with_name("verify_pairs.jsonl")
    path.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    print(len(PAIRS), "pairs")
