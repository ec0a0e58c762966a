"""An answer whose verdict takes longer than any deadline of the tests: an integral that sympy tries to solve."""

SLOW_ANSWER = "\\boxed{\\int_0^{\\infty} e^{-x^2}\\sin(\\tan(\\cos x)) dx}"
