"""Generates two pages of the documentation when mkdocs builds it.

`configuration.md` comes from the typed config, `command-line.md` from the parser of the command line. In mkdocs.yml:
`hooks: [docs/hooks.py]`.
"""

from __future__ import annotations

import argparse
import types
import typing
from typing import Any, Literal

from astro_jax import config as cfg
from astro_jax.cli import parser
from astro_jax.config import Section

CONFIGURATION = """# Configuration

A run has one config: a recipe that ships with the package, or a YAML file of yours. Change any key on the command line.

    astro run quickstart                                      # a recipe by its name
    astro run quickstart seed=7 sft.num_train_epochs=2        # two keys changed
    astro run my.yaml                                         # a file of yours

A file may begin with `base: RECIPE` or `base: PATH` (relative to the file), and then holds only its changes:

    base: quickstart
    out: runs/mine
    search: {num_samples: 24}

Sections merge key by key. All other values, lists too, replace the value of the base. An unknown key is an error that
names the keys of the section. A key of an older version is an error that names the new key.

After a change of a key, the stages that depend on it run again, and the others are kept: [Change one
thing](change-one-thing.md). The last column says what a change affects: the results, only their rounding, or nothing.

Recipes: RECIPES.

Each default names its source: a section of the [ASTRO paper](https://arxiv.org/abs/2507.00417), another paper, or
"ours". The keys are declared in `astro_jax/config/sections.py`, `problems.py` and `grpo.py`, and files are read in
`astro_jax/config/files.py`.
"""

COMMAND_LINE = """# Command line

`astro --help` lists the commands, and `astro COMMAND --help` the options of one command. `CONFIG` is the name of a
recipe, as in `quickstart`, or the path of a YAML file. `key=value` changes a key of the
[configuration](configuration.md).

| exit code | meaning |
|---|---|
| 0 | finished |
| 1 | a lost process, a lost connection, or a bucket that does not answer: start the same command again |
| 2 | bad input, something that `astro check` found, or `--max-hours` is used up; one line on the standard error |
| 3 | `astro plan`: a program does not fit |
| 130 | stopped by Ctrl-C |
| 143 | stopped by SIGTERM: the same command goes on from what was saved |

Commands and options are declared in `astro_jax/cli/parser.py`, and each command is a function of
`astro_jax/cli/commands.py`.
"""


def configuration_page() -> str:
    """Return the page on all config keys: a table for each section."""
    recipes = ", ".join(f"`{name}`" for name in cfg.recipes())
    parts = [CONFIGURATION.replace("RECIPES", recipes)]
    shown: dict[type[Section], str] = {}
    for name, section in cfg.sections().items():
        heading = f"`{name}`" if name else "The config itself"
        if first := shown.get(section):
            parts.append(f"## {heading}\n\nKeys as in [`{first}`](#{_anchor(first)}).\n")
            continue
        shown[section] = name
        rows = [_row(name, key, info) for key, info in cfg.key_names(section).items()]
        table = "\n".join(
            ["| key | type | default | meaning | source of the default | affects |", "|---|---|---|---|---|---|", *rows]
        )
        parts.append(f"## {heading}\n\n{_paragraphs(section.__doc__)}\n\n{table}\n")
    return "\n".join(parts)


def command_line_page() -> str:
    """Return the page on all commands: usage and options, by group."""
    parts = [COMMAND_LINE]
    for group in dict.fromkeys(command.group for command in parser.COMMANDS):
        parts.append(f"## {group}\n")
        parts += [_command(command) for command in parser.COMMANDS if command.group == group]
    return "\n".join(parts)


def on_files(files: Any, config: Any) -> Any:
    """Hook of mkdocs: add the two pages, in the place of files of the same name."""
    from mkdocs.structure.files import File

    for name, text in (("configuration.md", configuration_page()), ("command-line.md", command_line_page())):
        if existing := files.get_file_from_path(name):
            files.remove(existing)
        files.append(File.generated(config, name, content=text))
    return files


def _row(section: str, key: str, info: Any) -> str:
    """One key as a row of a table."""
    dotted = f"{section}.{key}" if section else key
    cells = (f"`{dotted}`", _code(type_name(info.annotation)), _default(dotted, info), info.description)
    extra = info.json_schema_extra
    return f"| {' | '.join(_cell(text) for text in (*cells, extra['source'], extra['effect']))} |"


def _default(dotted: str, info: Any) -> str:
    """A default in YAML's notation, or a link to the table of a section."""
    if info.is_required():
        return "none"
    if isinstance(info.default, Section):
        return f"[below](#{_anchor(dotted)})"
    return _code(_yaml(info.default))


def _anchor(dotted: str) -> str:
    """The anchor that mkdocs makes from a heading."""
    return dotted.replace(".", "")


def _yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, str):
        return value if value and value.isprintable() else '"' + value.replace("\n", "\\n") + '"'
    return "{}" if value == {} else f"{value:g}".replace("e-0", "e-") if isinstance(value, float) else str(value)


def type_name(annotation: Any) -> str:
    """Write a type for readers: `"strict" or "lenient"`, `int or null`, `list of float`."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " or ".join(map(str, args))
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if arg is type(None) else type_name(arg) for arg in args)
    if origin is typing.Annotated:
        return type_name(args[0])
    if origin is tuple:
        items = [type_name(arg) for arg in args if arg is not Ellipsis]
        return f"list of {items[0]}" if Ellipsis in args else f"[{', '.join(items)}]"
    if origin is dict:
        return f"mapping to {type_name(args[1])}"
    if origin is list:
        return f"list of {type_name(args[0])}"
    if annotation is Any:
        return "any"
    return "section" if issubclass(annotation, Section) else annotation.__name__


def _command(command: parser.Command) -> str:
    """One command: purpose, usage, and a table of its arguments, without those that `astro run` has too."""
    built = parser.of_command(command)
    usage = " ".join(built.format_usage().removeprefix("usage: ").split())
    rows = {_invocation(action): _help(action) for action in built._actions if action.dest != "help"}
    note = ""
    if command.stages:
        common = {_invocation(action) for action in parser.of_command(parser.COMMANDS[0])._actions}
        rows = {name: text for name, text in rows.items() if name not in common}
        note = f"Arguments as for [`astro run`](#astro-run){', and:' if rows else '.'}\n"
    table = "\n".join(f"| {_code(name)} | {_cell(text)} |" for name, text in rows.items())
    table = f"| argument | meaning |\n|---|---|\n{table}\n" if rows else ""
    parts = (f"### `astro {command.name}`\n", f"{built.description}\n", f"    {usage}\n", note, table)
    return "\n".join(part for part in parts if part)


def _invocation(action: argparse.Action) -> str:
    """An argument with its value, as in `--top-k K`."""
    value = action.metavar or (" or ".join(map(str, action.choices)) if action.choices else action.dest.upper())
    if not action.option_strings:
        return str(value)
    return action.option_strings[0] + ("" if action.nargs == 0 else f" {value}")


def _help(action: argparse.Action) -> str:
    return (action.help or "") % {"default": action.default}


def _paragraphs(docstring: str | None) -> str:
    return "\n".join(line.strip() for line in (docstring or "").strip().splitlines())


def _code(text: str) -> str:
    return f"`{text}`"


def _cell(text: str) -> str:
    """Text inside a table: a bar would end the cell."""
    return text.replace("|", "\\|")
