"""The command line: `astro COMMAND`. `parser` declares commands and options, `commands` runs them."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import logging
import os
import select
import shlex
import sys
import traceback
from collections.abc import Sequence

from astro_jax import distributed, host_memory
from astro_jax.cli.parser import parse
from astro_jax.errors import AstroError, is_transient, lacks_space


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
      the exit code: 0; 2 for bad input, with one line on stderr; 1 for what may go away, such as a lost process or
      connection, so that launchers start the command again; 3 when a plan does not fit; 130 after Ctrl-C. A run exits
      with 143 after SIGTERM.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    args = parse(argv)
    _silence_libraries()
    if _computes_on_cpu():
        host_memory.keep_freed()
    code, message = _run(args, shlex.join(["astro", *argv]))
    if code and distributed.process_count() > 1:
        distributed.exit_all(code, message)
    return code


def _run(args: argparse.Namespace, command: str) -> tuple[int, str]:
    """Run a parsed command. Return its exit code and the error message."""
    try:
        if hasattr(args, "stages"):
            distributed.initialize(args.coordinator, args.processes, args.process, args.timeout, args.start_timeout)
            if args.profile:
                import jax

                # The server would use the CPU, whose number of devices `mesh.*` sets later.
                jax.profiler.start_server(args.profile, requires_backend=not _computes_on_cpu())
        code = args.call(args, command)
        sys.stdout.flush()
        return code, ""
    except KeyboardInterrupt:
        print(f"astro: stopped; {_resume_hint(args)}", file=sys.stderr)
        return 130, "stopped"
    except Exception as e:
        if isinstance(e, BrokenPipeError) and _reader_has_gone():  # `head` has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return 1, "nobody reads the output"
        if lacks_space(str(e)):
            return _fail(f"no space left on device, or in your quota: free some, and {_resume_hint(args)}")
        if isinstance(e, AstroError):
            return _fail(str(e), code=1 if is_transient(e) else 2)
        if isinstance(e, PermissionError | NotADirectoryError | IsADirectoryError | FileExistsError) and e.filename:
            reason = "no permission" if isinstance(e, PermissionError) else (e.strerror or "").lower()
            return _fail(f"{e.filename}: {reason}; name another path (that of a run is out=DIR)")
        if os.environ.get("JAX_PLATFORMS") and (reason := _why_no_device(e)):
            return _fail(
                f"JAX_PLATFORMS={os.environ['JAX_PLATFORMS']}: no such device can be used ({reason}); set "
                "JAX_PLATFORMS=cpu, or unset it",
                code=1 if any(word in reason for word in ("UNAVAILABLE", "in use")) else 2,
            )
        if is_transient(e):
            return _fail(f"{type(e).__name__}: {e}; {_resume_hint(args)}", code=1)
        if distributed.process_count() == 1:
            raise
        if lost := distributed.silent_processes():
            return _fail(f"{lost} has gone; {_resume_hint(args)}", code=1)
        traceback.print_exc()
        return 1, f"{type(e).__name__}: {e}"


def _why_no_device(e: Exception) -> str:
    """The reason for which JAX finds no device of JAX_PLATFORMS; "" for any other error."""
    if isinstance(e, RuntimeError) and str(e).startswith("Unable to initialize backend"):
        return str(e).splitlines()[0].partition(" (set JAX_PLATFORMS")[0]
    frames = traceback.extract_tb(e.__traceback__)
    if isinstance(e, AssertionError) and frames and frames[-1].filename.endswith("xla_bridge.py"):
        return "its plugin of JAX is not installed"
    return ""


def _reader_has_gone() -> bool:
    """Whether stdout is a pipe that nobody reads any more."""
    with contextlib.suppress(OSError):
        poll = select.poll()
        poll.register(1, 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    return False


def _resume_hint(args: argparse.Namespace) -> str:
    """Say what the same command does after an interruption: stages keep finished work."""
    return "the same command goes on from here" if hasattr(args, "stages") else "the same command starts anew"


def _fail(message: str, code: int = 2) -> tuple[int, str]:
    """Print an error as one line."""
    message = " ".join(message.split())
    print(f"astro: {message}", file=sys.stderr)
    return code, message


def _silence_libraries() -> None:
    """Hide notices of libraries that are not about the user's input."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # two lines a retry, where there is no network
    logging.getLogger("absl").setLevel(logging.ERROR)


def _computes_on_cpu() -> bool:
    """Whether JAX has no choice but the CPU."""
    plugins = ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin")
    platforms = os.environ.get("JAX_PLATFORMS")
    return platforms == "cpu" or (not platforms and not any(map(importlib.util.find_spec, plugins)))
