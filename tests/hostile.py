"""Random answers that try to crash, stall or misuse a verifier."""

import random

CODE = (
    "__import__('os').system('touch {path}')", "open('{path}','w').write('x')", "exec(\"open('{path}','w')\")",
    "[x for x in ().__class__.__base__.__subclasses__()]", "eval('9**9**9')", "lambda: 0", "sympy.factorial(10**9)",
    "Integral(exp(-x**2)*sin(tan(x)),(x,0,oo)).doit()", "Sum(1/n**n,(n,1,oo)).doit()", "factorial(factorial(20))",
    "print(open('/etc/passwd').read())", "import subprocess; subprocess.run(['touch','{path}'])", "os.fork()",
    "\\input{{/etc/passwd}}", "\\write18{{touch {path}}}", "\\def\\a{{\\a\\a}}\\a", "1;touch {path}", "$(touch {path})",
)  # fmt: skip
FRAGMENTS = (
    "\\frac{", "}", "{", "\\sqrt{", "^", "_", "(", ")", "[", "]", "\\left(", "\\right)", "9", "x", "+", "-", "!", "=", ",", "\\int",
    "\\sum_{n=1}^{\\infty}", "\\lim_{x\\to0}", "\\begin{pmatrix}", "\\end{pmatrix}", "&", "\\\\", "\\infty", "\\sin", "\\log",
    "\\text{", "\\%", "\\pm", "|", "<", "\\in", "\\cup", "i", "e", "\\pi", "\\cdot", "\\prod", "\\partial", "d", "'", "\\binom{",
)  # fmt: skip
ODD = "\u0000\u202e\u200b\ufeff\ud800\udfff\U0001f600٣٤৫𝟙𝟚½²³∞√∫∑π−×÷≤≥≠∈∪°％＋１２\u0301\x1b[31m"


def answers(n, path, seed=0):
    """n responses. The responses that are code try to write the file `path`."""
    rng = random.Random(seed)
    kinds = (_code, _nested, _powers, _soup, _unicode, _digits, _long, _heavy, _matrix, _factorials)
    return [rng.choice(kinds)(rng, str(path)) for _ in range(n)]


def _box(text):
    return f"\\boxed{{{text}}}"


def _code(rng, path):
    text = rng.choice(CODE).replace("{{", "{").replace("}}", "}").replace("{path}", path)
    return rng.choice((_box(text), text, _box(f"\\text{{{text}}}"), _box(f"1+{text}")))


def _nested(rng, _):
    n = rng.choice((5, 15, 19, 30, 200, 5000))
    left, right = rng.choice(
        (("(", ")"), ("{", "}"), ("\\sqrt{", "}"), ("\\frac{1}{1+", "}"), ("[", "]"), ("|", "|"), ("x^{", "}"))
    )
    return _box(left * n + "1" + right * rng.choice((n, n, n - 1)))


def _powers(rng, _):
    base = rng.choice(("9", "x", "\\frac{1}{3}", "(1+x)", "e"))
    return _box(
        "^{".join([base] * rng.randint(2, 6))
        + "}" * rng.randint(1, 6)
        + rng.choice(("", f"^{{{10 ** rng.randint(1, 9)}}}"))
    )


def _soup(rng, _):
    return _box("".join(rng.choice(FRAGMENTS) for _ in range(rng.randint(1, 60))))


def _unicode(rng, _):
    return _box("".join(rng.choice(ODD) for _ in range(rng.randint(1, 40))))


def _digits(rng, _):
    return _box(
        rng.choice(("", "-", "0.", "1/", "\\frac{1}{", "1e"))
        + rng.choice("0179") * rng.choice((50, 99, 101, 5000, 10**5))
    )


def _long(rng, _):
    return rng.choice(("{", "}", "\\boxed{", "\\boxed{1}", "$", "(", "\\", "1+")) * rng.choice((10, 1000, 10**5))


def _heavy(rng, _):
    text = rng.choice(
        (
            "\\int_0^{\\infty} e^{-x^2}\\sin(\\tan(\\cos x)) dx", "\\sum_{n=1}^{\\infty} \\frac{1}{n^n}", "\\prod_{n=1}^{999999} n",
            "\\sum_{n=1}^{99999} n!", "(x+y+z+w+1)^{%d}", "\\binom{99999}{4999}", "\\sqrt{2}^{\\sqrt{3}^{\\sqrt{5}}}",
            "\\lim_{x \\to 0} \\frac{\\sin(\\sin(\\sin x))-x}{x^{9}}", "x^{%d}-y^{%d}", "\\frac{d^{9}}{dx^{9}} e^{e^{x}}",
            "\\cos(\\cos(\\cos(\\cos(x^{99999}))))", "\\log_{\\log_2 3}{\\log_5 7}", "e^{e^{e^{9}}}", "(1+\\sqrt2)^{%d}",
        )
    )  # fmt: skip
    return _box(text.replace("%d", str(rng.choice((9, 99, 999, 99999)))))


def _matrix(rng, _):
    n = rng.choice((2, 5, 12, 40))
    rows = "\\\\".join("&".join(rng.choice(("1", "x", "\\frac12", "")) for _ in range(n)) for _ in range(n))
    return _box(f"\\begin{{pmatrix}}{rows}\\end{{pmatrix}}" + rng.choice(("", "^{-1}", "^{99}")))


def _factorials(rng, _):
    return _box(rng.choice(("9", "99", "999", "99999", "x")) + "!" * rng.randint(1, 9))


def main():
    """`python tests/hostile.py N SECONDS`: print the counts of verdicts, the longest time, and whether a file was written."""
    import collections
    import pathlib
    import sys
    import tempfile

    from astro_jax.verify.pool import Call, Timeout, WorkerPool

    n, seconds = int(sys.argv[1]), float(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "written"
        pool = WorkerPool(2, seconds, 2**30)
        outcomes = pool.run([Call("math", ("x^2+1", a, "strict")) for a in answers(n, path)])
        pool.close()
        kinds = collections.Counter(
            "timeout" if isinstance(o.result, Timeout) else str(o.result) if isinstance(o.result, Exception) else
            "correct" if o.result.correct else "unparsed" if o.result.answer is None else "wrong"
            for o in outcomes
        )  # fmt: skip
        print(dict(kinds), f"longest {max(o.seconds for o in outcomes):.2f} s, file written: {path.exists()}")


if __name__ == "__main__":
    main()
