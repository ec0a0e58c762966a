"""Problems from reasoning-gym (extra `gym`), which generates problems without end and has a scorer for each task."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from astro_jax.errors import AstroError
from astro_jax.types import Problem

NUM_SELF_CHECKS = 3  # problems of a task whose own answers are scored


def read(task: str, size: int, seed: int, params: Mapping[str, Any]) -> list[Problem]:
    """Generate `size` problems of a task, each text once. The same task, seed and parameters give the same problems.

    Raises:
      AstroError: if the task is unknown (the message names similar tasks), if the task refuses the parameters, or if
        the task's scorer does not give its own answers full marks after they went through JSON.
    """
    try:
        import reasoning_gym
    except ImportError as e:
        raise AstroError("problems.gym: reasoning-gym needs the extra `gym`: pip install reasoning-gym") from e
    known = sorted(reasoning_gym.factory.DATASETS)
    if task not in known:
        similar = difflib.get_close_matches(task, known, n=5, cutoff=0.3) or known[:5]
        raise AstroError(f"problems.gym.task: no task {task!r}; similar names: {', '.join(similar)}")
    try:
        data = reasoning_gym.create_dataset(task, size=size, seed=seed, **params)
        entries = [data[i] for i in range(size)]
    except (TypeError, ValueError, AssertionError) as e:
        raise AstroError(f"problems.gym: {task} does not take {dict(params)} ({e})") from e
    score = reasoning_gym.get_score_answer_fn(task)
    problems: dict[str, Problem] = {}
    for i, entry in enumerate(entries):
        digest = hashlib.blake2b(entry["question"].encode(), digest_size=8).hexdigest()
        entry = json.loads(json.dumps(entry, default=str))  # the form that a run's files give back
        if i < NUM_SELF_CHECKS and score(entry["answer"], entry) < 1:
            raise AstroError(f"problems.gym.task: {task}'s scorer does not accept its own answers; choose another task")
        meta = {"task": task, "entry": entry}
        problems.setdefault(digest, Problem(f"{task}-{digest}", entry["question"], str(entry["answer"]), meta, "gym"))
    return list(problems.values())
