"""How Countdown's states and steps are written.

A state is "make TARGET from NUMBERS" and a step is one line. A restated state therefore looks like a new problem.
"""

from __future__ import annotations

import re

from astro_jax.countdown.game import Move, Numbers, after

# The last line of an attempt ends with "!", not with "." as the other steps do (search.step_end). The search therefore
# takes the line and the end token after it as one step.
HIT = ", which is the target!\n"
MISS = ", which misses the target!\n"


def restate(numbers: Numbers, target: int) -> str:
    """Write a state. A prompt and a backtrack write the same state in the same words."""
    return f" make {target} from {' '.join(map(str, numbers))}.\n"


def prompt(numbers: Numbers, target: int) -> str:
    """Write the prompt of a problem, such as "Let us make 29 from 11 6 3.\\n"."""
    return "Let us" + restate(numbers, target)


def step_text(numbers: Numbers, move: Move, target: int, last_two: bool = False) -> str:
    """Write one step: the equation, and the numbers left. The last step says whether its result is the target."""
    left = after(numbers, move, last_two)
    text = f" {move.a} {move.op} {move.b} = {move.result}"
    if len(left) > 1:
        return f"{text}, left {' '.join(map(str, left))}.\n"
    return text + (HIT if left[0] == target else MISS)


def numbers_left(step: str) -> Numbers:
    """Read the numbers that a step leaves or restates. Empty if the step names no numbers of this kind."""
    match = re.search(r"(?:, left| from)((?: -?\d{1,9})+)\.$", step)
    return tuple(map(int, match[1].split())) if match else ()


def attempt_text(numbers: Numbers, path: tuple[Move, ...], target: int, last_two: bool = False) -> str:
    """Write the steps of a whole attempt."""
    text = ""
    for move in path:
        text += step_text(numbers, move, target, last_two)
        numbers = after(numbers, move, last_two)
    return text
