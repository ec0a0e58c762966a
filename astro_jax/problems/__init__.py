"""Problems with answers that can be checked."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
      id: unique and stable: random draws for this problem are named after it.
      prompt: its text.
      answer: the right answer, as text.
      meta: what the problem's verifier needs besides.
      task: what kind of problem it is, which says how answers are judged and traces are written.
    """

    id: str
    prompt: str
    answer: str
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)
    task: Literal["countdown", "number", "math", "gym"] = "countdown"
