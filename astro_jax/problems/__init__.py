"""Problems with answers that can be checked."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
      id: unique and stable: random draws for this problem are named after it.
      prompt: the text that the model continues.
      answer: the right answer, as text.
      meta: what the problem's verifier needs besides.
    """

    id: str
    prompt: str
    answer: str
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)
