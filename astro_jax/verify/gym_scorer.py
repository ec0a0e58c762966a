"""The verifier of reasoning-gym problems (task "gym"): reasoning-gym's own scorers. It runs in workers only.

The scorers parse model output in many ways, hence the workers (verify.pool). The answer is the text of the last
<answer>...</answer>, the form that reasoning-gym asks for, else the answer that verify.answer extracts. An answer is
correct if its score is 1.
"""

from __future__ import annotations

import re
from typing import Any

from astro_jax.verify.answer import MAX_CHARACTERS, Rule, extract, until_end_token
from astro_jax.verify.math import Grade

_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def grade(task: str, entry: dict[str, Any], response: str, rule: Rule) -> Grade:
    """Score a response that an end token ended.

    Args:
      task: the name of the reasoning-gym task.
      entry: the item of the task's data set that the problem was made from.
    """
    import reasoning_gym

    tags = _TAG.findall(until_end_token(response))
    answer = tags[-1].strip() if tags else extract(response, rule)
    if not answer or len(answer) > 20 * MAX_CHARACTERS:
        return Grade(None, False, None, None)
    score = reasoning_gym.get_score_answer_fn(task)(answer, entry)
    return Grade(answer, score >= 1.0, None, answer)
