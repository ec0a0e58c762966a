"""What runs in a worker process: answers one question after another, fenced in.

No file can be written, no process or connection made, and no more memory taken than allowed: an audit hook refuses the
first three by name, the operating system the last, and files by their size.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from astro_jax.verify import gym, math

FUNCTIONS: dict[str, Callable[..., Any]] = {"math": math.judge, "gym": gym.judge, "readable": math.readable}
# Events (docs.python.org, "Audit events table") by what they begin with; reading files stays allowed, for imports.
_REFUSED = (
    "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.startfile", "os.remove", "os.rename",
    "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown", "os.kill", "os.putenv",
    "subprocess.", "socket.", "shutil.", "ctypes.", "pty.", "ftplib.", "urllib.", "http.", "smtplib.", "webbrowser.",
    "tempfile.", "signal.pthread_kill",
)  # fmt: skip


def main(questions: Connection, seconds: float, memory: int, modules: Sequence[str]) -> None:
    """Answer (number, function, arguments) with (number, result), an exception in place of a result where there is one.

    Args:
      seconds: deadline of an answer, which the parent keeps. A worker without one ends itself past twice that.
      memory: bytes that may be taken beside what the imports took.
      modules: what to import before the first question.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; it closes the connection
    for module in ("astro_jax.verify.preload", *modules):  # imports do not count against a deadline
        importlib.import_module(module)
    quiet = open(os.devnull, "w")
    _fence(memory)
    questions.send(os.getpid())
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            for number, function, arguments in questions.recv():
                faulthandler.dump_traceback_later(2 * seconds + 1, exit=True, file=quiet)  # a thread that needs no GIL
                result = _answer(function, arguments)
                faulthandler.cancel_dump_traceback_later()
                questions.send((number, result))


def _answer(function: str, arguments: tuple[Any, ...]) -> Any:
    try:
        return FUNCTIONS[function](*arguments)
    except MemoryError:
        return RuntimeError("out of memory")
    except Exception as e:  # whatever sympy raises says nothing of the answer
        return RuntimeError(f"{type(e).__name__}: {str(e)[:200]}")


def _fence(memory: int) -> None:
    with open("/proc/self/statm") if os.path.exists("/proc/self/statm") else contextlib.nullcontext() as statm:
        taken = int(statm.read().split()[0]) * resource.getpagesize() if statm else 0
    resource.setrlimit(resource.RLIMIT_AS, (taken + memory, taken + memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.setrecursionlimit(5000)
    sys.addaudithook(_refuse)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    writes = event == "open" and (
        (isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"))
        or (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    )
    if writes or event.startswith(_REFUSED):
        raise PermissionError(f"{event} is not for a verifier")
