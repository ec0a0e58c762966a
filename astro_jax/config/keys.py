"""How a key of the configuration is declared."""

from __future__ import annotations

from typing import Any

import pydantic

OURS = "ours"


def key(default: Any, description: str, source: str = OURS, **bounds: Any) -> Any:
    """Declare a key.

    Args:
      default: the value of a config that does not name the key; `...` for a key that must be named.
      description: the meaning, in plain sentences, with the unit.
      source: where the default comes from.
      **bounds: limits of a number: ge, gt, le, lt.
    """
    return pydantic.Field(default, description=description, json_schema_extra={"source": source}, **bounds)


class Section(pydantic.BaseModel):
    """Base of all sections: immutable, and strict about key names."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)
