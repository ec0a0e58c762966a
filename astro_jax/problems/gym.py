"""Problems from reasoning-gym (extra `gym`): endless, with a scorer for each task."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from astro_jax.errors import AstroError
from astro_jax.types import Problem

CHECKED = 3  # problems whose own answers are scored


def read(task: str, size: int, seed: int, params: Mapping[str, Any]) -> list[Problem]:
    """`size` problems of a task, those of equal text once. The same task, seed and parameters give the same.

    Raises:
      AstroError: for an unknown task, with those of like names, for parameters that it does not take, and for a task
        whose scorer does not give its own answers full marks, as they come back from a run's files.
    """
    try:
        import reasoning_gym
    except ImportError as e:
        raise AstroError("problems.gym: reasoning-gym needs the extra `gym`: pip install reasoning-gym") from e
    known = sorted(reasoning_gym.factory.DATASETS)
    if task not in known:
        alike = difflib.get_close_matches(task, known, n=5, cutoff=0.3) or known[:5]
        raise AstroError(f"problems.gym.task: no task {task!r}; those of like names: {', '.join(alike)}")
    try:
        data = reasoning_gym.create_dataset(task, size=size, seed=seed, **params)
        entries = [data[i] for i in range(size)]
    except (TypeError, ValueError, AssertionError) as e:
        raise AstroError(f"problems.gym: {task} does not take {dict(params)} ({e})") from e
    score = reasoning_gym.get_score_answer_fn(task)
    found: dict[str, Problem] = {}
    for i, entry in enumerate(entries):
        digest = hashlib.blake2b(entry["question"].encode(), digest_size=8).hexdigest()
        entry = json.loads(json.dumps(entry, default=str))  # as it comes back from a run's files
        if i < CHECKED and score(entry["answer"], entry) < 1:
            raise AstroError(f"problems.gym.task: {task}'s scorer does not accept its own answers; choose another task")
        meta = {"task": task, "entry": entry}
        found.setdefault(digest, Problem(f"{task}-{digest}", entry["question"], str(entry["answer"]), meta, "gym"))
    return list(found.values())
