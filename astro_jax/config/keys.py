"""How a key of the configuration is declared."""

from __future__ import annotations

from typing import Any, Literal

import pydantic

OURS = "ours"


# What a change of a key does. "results": a stage that reads the key runs again. "rounding": only the rounding of its
# results may change. "none": its results stay the same.
Effect = Literal["results", "rounding", "none"]


def key(default: Any, description: str, source: str = OURS, effect: Effect = "results", **bounds: Any) -> Any:
    """Declare a key.

    Args:
      default: the value of a config that does not name the key; `...` for a key that must be named.
      description: the meaning, in plain sentences, with the unit.
      source: where the default comes from.
      effect: what a change of the key does. A stage's digest covers the keys with the effect "results".
      **bounds: limits of a number (ge, gt, le, lt), and other arguments of pydantic.Field.
    """
    extra: dict[str, Any] = {"source": source, "effect": effect}
    return pydantic.Field(default, description=description, json_schema_extra=extra, **bounds)


class Section(pydantic.BaseModel):
    """Base of all sections: immutable, and strict about key names."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, serialize_by_alias=True)


def key_names(section: type[Section]) -> dict[str, pydantic.fields.FieldInfo]:
    """Return the keys of a section by the names that a config writes: `from`, where Python needs another name."""
    return {info.alias or name: info for name, info in section.model_fields.items()}
