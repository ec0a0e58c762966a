"""reasoning-gym's own scorers. They parse what a model wrote in many ways: so they run in workers only (verify.pool).

The answer is that of the last <answer>...</answer>, as reasoning-gym asks for it, else of the last \\boxed{...}, else,
in the lenient rule, what follows "the answer is" (verify.answer). It is correct where the score is 1.
"""

from __future__ import annotations

import re
from typing import Any

from astro_jax.verify.answer import MAX_CHARACTERS, Rule, extract, until_end
from astro_jax.verify.math import Graded

_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def judge(task: str, entry: dict[str, Any], response: str, rule: Rule) -> Graded:
    """Score a response that an end token ended."""
    import reasoning_gym

    tags = _TAG.findall(until_end(response))
    answer = tags[-1].strip() if tags else extract(response, rule)
    if not answer or len(answer) > 20 * MAX_CHARACTERS:
        return Graded(None, False, None, None)
    score = reasoning_gym.get_score_answer_fn(task)(answer, entry)
    return Graded(answer, score >= 1.0, None, answer)
