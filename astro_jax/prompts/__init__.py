"""The prompts of self-evaluation, rewriting and judging: jinja2 templates, one file each in this folder.

The wording is ours, after the paper's description (sections 2.3 and 2.4, appendix A). Each template asks for one thing,
shows examples that belong to no data set, and says how the answer has to end. A config's `prompts: {name: path}`
replaces a template by another file.
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

# The templates, with the variables that each must use.
VARIABLES = {
    "evaluate": frozenset({"problem", "solution"}),
    "rewrite": frozenset({"problem", "solution", "step"}),
    "go_back": frozenset({"problem", "solution", "step"}),
    "reflect": frozenset({"problem", "solution", "correct"}),
    "classify": frozenset({"problem", "solution", "answer"}),
}
OF_TRACES = ("evaluate", "rewrite", "go_back", "reflect")  # those with which traces are written
_COPY_LENGTH = 6  # so many words in a row are copied, not written by chance
_ENVIRONMENT = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True)


@dataclasses.dataclass(frozen=True)
class PromptTemplate:
    """One template.

    Attributes:
      source: the text of the template. `VARIABLES` names its variables.
    """

    source: str

    def render(self, **values: Any) -> str:
        """Fill in the variables."""
        return self._template.render(values)

    def is_copied(self, text: str) -> bool:
        """Whether a text repeats a label of the template ("Problem:"), or six words in a row of its fixed text."""
        words = _words(text)
        return not _runs(words).isdisjoint(self._fixed_runs) or any(label in text for label in self._labels)

    @functools.cached_property
    def _template(self) -> jinja2.Template:
        return _ENVIRONMENT.from_string(self.source)

    @functools.cached_property
    def _fixed_texts(self) -> list[str]:
        """The texts between the variables."""
        return re.split(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", self.source, flags=re.DOTALL)

    @functools.cached_property
    def _labels(self) -> frozenset[str]:
        labels = (re.findall(r"^[A-Z][\w ]*:", text, re.MULTILINE) for text in self._fixed_texts)
        return frozenset(label for group in labels for label in group)

    @functools.cached_property
    def _fixed_runs(self) -> frozenset[tuple[str, ...]]:
        return frozenset().union(*(_runs(_words(text)) for text in self._fixed_texts))


def load(overrides: Mapping[str, str]) -> dict[str, PromptTemplate]:
    """Read all templates, by name.

    Args:
      overrides: name -> path of a file that replaces the template.

    Raises:
      AstroError: for a name that is no template, a file that cannot be read, and a template that is not valid, leaves
        out one of its variables or uses another.
    """
    if unknown := sorted(overrides.keys() - VARIABLES.keys()):
        raise AstroError(f"prompts.{unknown[0]}: no such prompt; the prompts are {', '.join(VARIABLES)}")
    shipped = epath.Path(__file__).parent
    return {name: _read(name, epath.Path(overrides.get(name, shipped / f"{name}.txt"))) for name in VARIABLES}


def _read(name: str, path: epath.Path) -> PromptTemplate:
    try:
        source = path.read_text()
    except (OSError, UnicodeDecodeError) as e:
        raise AstroError(f"prompts.{name}: {path} cannot be read; give the path of a jinja2 template") from e
    try:
        used = jinja2.meta.find_undeclared_variables(_ENVIRONMENT.parse(source))
    except jinja2.TemplateSyntaxError as e:
        raise AstroError(f"prompts.{name}: {path}, line {e.lineno}: not a jinja2 template ({e.message})") from e
    if used != VARIABLES[name]:
        needed = ", ".join(sorted(VARIABLES[name]))
        raise AstroError(f"prompts.{name}: {path} must use {needed}; it uses {', '.join(sorted(used)) or 'nothing'}")
    return PromptTemplate(source)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _runs(words: list[str]) -> frozenset[tuple[str, ...]]:
    """All runs of `_COPY_LENGTH` words."""
    return frozenset(tuple(words[i : i + _COPY_LENGTH]) for i in range(len(words) - _COPY_LENGTH + 1))
