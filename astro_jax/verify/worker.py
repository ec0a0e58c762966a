"""A worker process: run one call after another, without files to write, processes, connections, or too much memory.

An audit hook refuses processes and connections by the name of their event. The operating system limits memory, and
the size of files to 0 bytes. Workers for a user-written reward have none of these limits: they run code of the user.
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

from astro_jax.verify import gym_scorer, math, reward_function

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "math": math.grade,
    "gym": gym_scorer.grade,
    "readable": math.readable,
    "check reward": reward_function.check,
    "reward": reward_function.call,
}
# Prefixes of audit events (docs.python.org, "Audit events table"). Reading files stays allowed, for imports.
_REFUSED_EVENTS = (
    "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.startfile", "os.remove", "os.rename",
    "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown", "os.kill", "os.putenv",
    "subprocess.", "socket.", "shutil.", "ctypes.", "pty.", "ftplib.", "urllib.", "http.", "smtplib.", "webbrowser.",
    "tempfile.", "signal.pthread_kill",
)  # fmt: skip


def main(
    connection: Connection,
    seconds: float,
    memory: int | None,
    modules: Sequence[str],
    initializer: tuple[str, tuple[Any, ...]] | None,
) -> None:
    """Run the calls that the parent sends, until the parent closes the connection.

    The worker first sends its process id. Then each message from the parent is a list of (number, function name,
    arguments), and the worker answers each call with (number, result). A failed call has an exception as its result.

    Args:
      seconds: the deadline of one call. The parent keeps the deadline; a worker without a parent ends itself.
      memory: bytes that the worker may take in addition to the memory of its imports. None: no limit and no fence, and
        a process group of its own, which the parent ends with all processes that the user's code has started.
      modules: modules to import before the first call.
      initializer: a function and its arguments, called before the first call. The result is dropped.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and closes the connection
    for module in ("astro_jax.verify.preload", *modules):  # imports do not count against a deadline
        importlib.import_module(module)
    devnull = open(os.devnull, "w")
    if memory is None:
        os.setpgid(0, 0)
    else:
        _restrict(memory)
    if initializer:
        _call(*initializer)
    connection.send(os.getpid())
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            for number, function, arguments in connection.recv():
                # Ends the process from a thread that needs no GIL.
                faulthandler.dump_traceback_later(2 * seconds + 1, exit=True, file=devnull)
                result = _call(function, arguments)
                faulthandler.cancel_dump_traceback_later()
                connection.send((number, result))


def _call(function: str, arguments: tuple[Any, ...]) -> Any:
    try:
        return FUNCTIONS[function](*arguments)
    except MemoryError:
        return RuntimeError("out of memory")
    except Exception as e:  # sympy raises many kinds of exceptions, and none says anything about the answer
        return RuntimeError(f"{type(e).__name__}: {str(e)[:200]}")


def _restrict(memory: int) -> None:
    """Limit memory, files and recursion of this process, and install the audit hook. Nothing can undo this."""
    with open("/proc/self/statm") if os.path.exists("/proc/self/statm") else contextlib.nullcontext() as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize() if statm else 0
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.setrecursionlimit(5000)
    sys.addaudithook(_refuse)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    writes = event == "open" and (
        (isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"))
        or (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    )
    if writes or event.startswith(_REFUSED_EVENTS):
        raise PermissionError(f"{event}: a verifier's worker must not do this")
