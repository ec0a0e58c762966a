"""What a model is asked besides its problems: jinja2 templates, one file each in this folder.

The wording is ours, in the sense of the paper (sections 2.3 and 2.4, appendix A): each asks for one thing, shows it on
examples that are no problem of any data set, and says how the answer has to end. A config's `prompts: {name: path}`
puts another file in the place of one.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import jinja2
import jinja2.meta
from etils import epath

from astro_jax.errors import AstroError

# The prompts, with the variables that each must use.
VARIABLES = {
    "evaluate": frozenset({"problem", "solution"}),
    "rewrite": frozenset({"problem", "solution", "step"}),
    "go_back": frozenset({"problem", "solution", "step"}),
    "reflect": frozenset({"problem", "solution", "correct"}),
}
_COPIED = 6  # words in a row that nobody writes by chance
_ENVIRONMENT = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One template.

    Attributes:
      source: its text, whose variables VARIABLES names.
    """

    source: str

    def render(self, **values: Any) -> str:
        return self._template.render(values)

    def is_copied(self, text: str) -> bool:
        """Whether a text holds a label of the template, or six words in a row of what it says whatever the values."""
        words = _words(text)
        runs = {tuple(words[i : i + _COPIED]) for i in range(len(words) - _COPIED + 1)}
        return not runs.isdisjoint(self._runs) or any(label in text for label in self._labels)

    @functools.cached_property
    def _template(self) -> jinja2.Template:
        return _ENVIRONMENT.from_string(self.source)

    @functools.cached_property
    def _said(self) -> list[str]:
        return re.split(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", self.source, flags=re.DOTALL)

    @functools.cached_property
    def _labels(self) -> frozenset[str]:
        return frozenset(label for part in self._said for label in re.findall(r"^[A-Z][\w ]*:", part, re.MULTILINE))

    @functools.cached_property
    def _runs(self) -> frozenset[tuple[str, ...]]:
        parts = map(_words, self._said)
        return frozenset(tuple(part[i : i + _COPIED]) for part in parts for i in range(len(part) - _COPIED + 1))


def load(overrides: Mapping[str, str]) -> dict[str, Prompt]:
    """All prompts by name; those of `overrides` are read from its paths.

    Raises:
      AstroError: for a name that is none, a file that cannot be read, or a template that is not valid, leaves out one
        of its variables or asks for another.
    """
    if unknown := sorted(overrides.keys() - VARIABLES.keys()):
        raise AstroError(f"prompts.{unknown[0]}: no such prompt; there are {', '.join(VARIABLES)}")
    shipped = epath.Path(__file__).parent
    return {name: _read(name, epath.Path(overrides.get(name, shipped / f"{name}.txt"))) for name in VARIABLES}


def _read(name: str, path: epath.Path) -> Prompt:
    try:
        source = path.read_text()
    except (OSError, UnicodeDecodeError) as e:
        raise AstroError(f"prompts.{name}: {path} cannot be read; give the path of a jinja2 template") from e
    try:
        used = jinja2.meta.find_undeclared_variables(_ENVIRONMENT.parse(source))
    except jinja2.TemplateSyntaxError as e:
        raise AstroError(f"prompts.{name}: {path}, line {e.lineno}: not a jinja2 template ({e.message})") from e
    if used != VARIABLES[name]:
        wanted = ", ".join(sorted(VARIABLES[name]))
        raise AstroError(f"prompts.{name}: {path} must use {wanted}; it uses {', '.join(sorted(used)) or 'nothing'}")
    return Prompt(source)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
