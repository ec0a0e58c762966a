"""A user-written reward in a worker process: import the function, call it, and check its result.

This module executes code of the user, on purpose. Text of the model reaches the function as an argument only.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import importlib
import importlib.util
import inspect
import operator
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

LARGEST = 1e30  # a larger reward could overflow in float32


class Rewards(NamedTuple):
    """What the function returned.

    Attributes:
      values: one reward for each completion. None: no reward.
    """

    values: list[float | None]


class UserError(NamedTuple):
    """What is wrong with the user's code.

    Attributes:
      message: one line.
    """

    message: str


class Source(NamedTuple):
    """The file that a function comes from.

    Attributes:
      path: of the file.
      sha256: of its content.
    """

    path: str
    sha256: str


def check(entry_point: str, folder: str, columns: Sequence[str]) -> Source | UserError:
    """Import a reward function, and check that it takes the columns. The function is not called.

    Args:
      entry_point: `module:function`, or `path/to/file.py:function`.
      folder: in which modules and files are looked for. It becomes the working folder.
      columns: names of the keyword arguments.
    """
    try:
        function = load(entry_point, folder)
    except BaseException as e:  # a module may raise anything, SystemExit too
        return UserError(_describe(e))
    if not callable(function):
        return UserError(f"{_line(repr(function))} is no function")
    try:
        inspect.signature(function).bind(**dict.fromkeys(columns))
    except (TypeError, ValueError) as e:
        arguments = ", ".join(columns)
        return UserError(f"{e}; its arguments are {arguments}: take `prompts`, `completions` and `**columns`")
    name = entry_point.rpartition(":")[0]
    path = os.path.join(folder, name) if name.endswith(".py") else sys.modules[name].__file__
    return Source(path, hashlib.sha256(Path(path).read_bytes()).hexdigest()) if path else Source("", "")


def call(entry_point: str, folder: str, columns: Mapping[str, Sequence[Any]]) -> Rewards | UserError:
    """Call a reward function for some completions.

    Args:
      columns: the keyword arguments: lists with one value for each completion.
    """
    n = len(columns["completions"])
    try:
        result = load(entry_point, folder)(**columns)
        if inspect.iscoroutine(result):
            result = asyncio.run(result)
        if not isinstance(result, Iterable):
            return UserError(f"returned {_line(repr(result))}, not a list of {n} rewards")
        values = [v.item() if hasattr(v, "item") else v for v in result]  # numbers of NumPy and PyTorch
    except BaseException as e:
        return UserError(_describe(e))
    if len(values) != n:
        return UserError(f"returned {len(values)} rewards for {n} completions")
    for i, value in enumerate(values):
        if not isinstance(value, int | float | None):
            return UserError(f"returned {_line(repr(value))} for completion {i}, not a number or None")
        if value is not None and not abs(value) <= LARGEST:
            return UserError(f"returned NaN, infinity or more than {LARGEST:g} for completion {i}; None is no reward")
    return Rewards([None if v is None else float(v) for v in values])


def load(entry_point: str, folder: str) -> Callable[..., Any]:
    """Import the module of an entry point, once in a process, and return the function.

    Raises:
      BaseException: whatever the import raises.
    """
    name, _, function = entry_point.rpartition(":")
    return operator.attrgetter(function)(_import(name, folder))


@functools.cache
def _import(name: str, folder: str) -> ModuleType:
    """Import a module by its name or by the path of its file, from this folder as the working folder."""
    os.chdir(folder)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return _import_file(os.path.join(folder, name)) if name.endswith(".py") else importlib.import_module(name)


def _import_file(path: str) -> ModuleType:
    """Import a file as a module of its name. Modules beside the file can be imported too."""
    name = Path(path).stem
    name = path if name in sys.modules else name  # a file math.py must not replace Python's module
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # the name ends with .py
    sys.path.insert(0, os.path.dirname(path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look for it
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _describe(error: BaseException) -> str:
    """Describe an exception of the user's code: its type, its message, and the last line in the user's own files."""
    text = _line(f"{type(error).__name__}: {error}")
    if isinstance(error, SyntaxError):
        return text  # the message has the file and the line
    python, packages = sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")
    frames = [
        f for f in traceback.extract_tb(error.__traceback__)
        if not f.filename.startswith(("<frozen ", os.path.dirname(__file__)))
    ]  # fmt: skip
    own = [f for f in frames if not f.filename.startswith((python, packages))]
    own = own or [f for f in frames if f.filename.startswith(packages)]
    return f"{text} ({os.path.basename(own[-1].filename)}, line {own[-1].lineno})" if own else text


def _line(text: str) -> str:
    """Return a text, which may hold text of the model, as one short line of printable characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:200]
