"""Config files: YAML with bases and overrides, from a path or from a recipe that ships with the package."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from typing import Any

import pydantic
import yaml
from etils import epath

from astro_jax.config.keys import Section, key_names
from astro_jax.config.problems import SOURCE_KINDS, USES, Problems, Source
from astro_jax.config.renamed import new_key
from astro_jax.config.sections import Config, sections
from astro_jax.errors import AstroError

# The shipped recipes: a link to configs/ in the repository, files in an installed package.
RECIPES = epath.Path(__file__).parents[1] / "configs"


class _Loader(yaml.SafeLoader):
    """YAML 1.1, where "3e-4" is a number too."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def recipes() -> list[str]:
    """Return the names of the shipped recipes, for example "quickstart" and "ablations/merge-root"."""
    paths = [*RECIPES.glob("*.yaml"), *RECIPES.glob("*/*.yaml")]
    names = (path.relative_to(RECIPES).as_posix().removesuffix(".yaml") for path in paths)
    return sorted(names, key=lambda name: ("/" in name, name))


def load(name: str | None, overrides: Sequence[str] = ()) -> Config:
    """Read a config: the path of a YAML file, or the name of a recipe.

    A file may begin with `base: PATH` (relative to the file) or `base: RECIPE`, and then holds only its changes of the
    base, which may have a base too. Sections merge key by key; all other values, lists too, replace those of the base.
    A change that names a source of problems replaces the sources and evaluation sets of the base.

    Args:
      name: a file that exists, else a recipe; None for the defaults of all keys.
      overrides: "section.key=value"; the value is YAML.

    Raises:
      AstroError: for a missing file, invalid YAML, a base that depends on itself, an unknown key or a value of the
        wrong type, with the dotted name of the key.
    """
    # OmegaConf does not serve here: it reads "${" inside a prompt as its own syntax, and refuses a list over a section.
    raw = _read(epath.Path(name), name, ()) if name is not None else {}
    return parse(raw, name or "config", overrides)


def parse(raw: dict[str, Any], origin: str = "config", overrides: Sequence[str] = ()) -> Config:
    """Validate a nested dict with overrides ("section.key=value").

    `origin` stands before the errors, which name each wrong key by its dotted name.
    """
    try:
        return _scaled(Config.model_validate(_put_over(raw, *map(_override, overrides))))
    except pydantic.ValidationError as e:
        problems = [f"{'.'.join(map(str, x['loc']))}: {_explain(x)}" for x in e.errors()]
        raise AstroError(f"{origin}: {'; '.join(problems)}") from e


def _read(path: epath.Path, name: str, dependents: tuple[str, ...]) -> dict[str, Any]:
    """Read a file, or the recipe `name`, and merge it over its bases. `dependents` are the files that build on it."""
    if not path.is_file() and name in recipes():
        path = RECIPES / f"{name}.yaml"
    normalized = os.path.normpath(path)
    if normalized in dependents:
        chain = " -> ".join((*dependents, normalized))
        raise AstroError(f"{dependents[0]}: depends on itself ({chain}); change one of the `base` keys")
    try:
        raw = yaml.load(path.read_text(), _Loader) or {}
    except OSError as e:
        dependent = f" (the base of {dependents[-1]})" if dependents else ""
        raise AstroError(
            f"{path}{dependent}: cannot be read ({e.strerror or e}); "
            f"give a YAML file or a recipe: {', '.join(recipes())}"
        ) from e
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise AstroError(f"{path}: not valid YAML ({' '.join(str(e).split())})") from e
    if not isinstance(raw, dict):
        raise AstroError(f"{path}: a config is a mapping of keys to values")
    base = raw.pop("base", None)
    if base is None:
        return raw
    if not isinstance(base, str):
        raise AstroError(f"{path}: base: must be the path of a YAML config or a recipe, got {base!r}")
    return _put_over(_read(path.parent / base, base, (*dependents, normalized)), raw)


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Put changes over a base. Only a mapping over a mapping merges."""
    sections = {
        k: _merged(base[k], v) for k, v in changes.items() if isinstance(v, dict) and isinstance(base.get(k), dict)
    }
    return base | changes | sections


def _put_over(base: dict[str, Any], *changes: dict[str, Any]) -> dict[str, Any]:
    """Put changes over a base, one after the other.

    Changes that name a source of problems replace the whole choice of data of the base: its sources, its evaluation
    sets and its held-out share.
    """
    problems = base.get("problems")
    named = {k for c in changes if isinstance(c.get("problems"), dict) for k, v in c["problems"].items() if v}
    if isinstance(problems, dict) and named & {*SOURCE_KINDS, "sources"}:
        replaced = {*Source.model_fields, "sources", "evaluation", "held_out"} - {"task"}
        base = base | {"problems": {k: v for k, v in problems.items() if k not in replaced}}
    return functools.reduce(_merged, changes, base)


def _override(text: str) -> dict[str, Any]:
    """Turn "a.b=value" into {"a": {"b": value}}."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise AstroError(f"override {text!r}: write key=value, as in sft.num_train_epochs=2")
    try:
        nested = yaml.load(value, _Loader)
    except yaml.YAMLError as e:
        raise AstroError(f"override {text!r}: the value is not valid YAML") from e
    for name in reversed(key.split(".")):
        nested = {name: nested}
    return nested


def _scaled(c: Config) -> Config:
    """Multiply the budgets by `scale`."""

    def times(section: Section, *names: str) -> Any:
        values = {n: getattr(section, n) for n in names}
        return section.model_copy(update={n: max(1, round(v * c.scale)) for n, v in values.items() if v})

    def scaled_problems(p: Problems) -> Problems:
        lists = {name: tuple(times(s, *USES) for s in getattr(p, name)) for name in ("sources", "evaluation")}
        p = times(p, *USES, "max_difficulty_prompts").model_copy(update=lists)
        return p.model_copy(update={use: sum(counts) for use in USES if (counts := p.counts(use)) is not None})

    budgets = {
        "problems": scaled_problems(c.problems),
        "corpus": times(c.corpus, "documents"),
        "grpo": times(c.grpo, "max_steps"),
    }
    return c.model_copy(update=budgets)


def _explain(error: Any) -> str:
    """Say what is wrong with a value, or which key to write."""
    if error["type"] == "value_error":  # of a validator of ours; a whole section is not repeated
        found = "" if isinstance(error["input"], dict) else f", got {error['input']!r}"
        return f"{error['ctx']['error']}{found}"
    if error["type"] == "tuple_type":
        value = error["input"]
        example = f", as in {error['loc'][-1]}=[{value}]" if isinstance(value, str | int | float) else ""
        return f"must be a list{example}, got {value!r}"
    if error["type"] != "extra_forbidden":
        return f"{error['msg'].lower()}, got {error['input']!r}"
    *parents, name = error["loc"]
    section = ".".join(part for part in parents if isinstance(part, str))
    if new := new_key(section, name, error["input"]):
        return f"renamed: write {new}"
    return f"no such key; {section or 'a config'} has {', '.join(key_names(sections()[section]))}"
