"""Imports for the fork server: its workers start in milliseconds, because the slow imports are done before the fork."""

import signal

from astro_jax.verify import math

signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the run saves after it, and still needs verdicts

math.grade("1", "\\boxed{x}", "strict")  # imports sympy, and makes the parser's first tables
