"""Imported once, by the server that workers are forked from: a new worker then starts in milliseconds, not seconds."""

from astro_jax.verify import math

math.judge("1", "\\boxed{x}", "strict")  # sympy's imports, and the parser's first tables
