"""Imports for the fork server: its workers start in milliseconds, because the slow imports are done before the fork."""

from astro_jax.verify import math

math.grade("1", "\\boxed{x}", "strict")  # imports sympy, and makes the parser's first tables
