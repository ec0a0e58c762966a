"""`astro` commands in processes that are forked from one server, so that the packages are imported once."""

import atexit
import multiprocessing
import os
import resource
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["forked_cli", "astro_jax.cli", "astro_jax.pipeline"])


def _main(arguments, output, prepare):
    """Run a command with its output in a file, and end the process as the interpreter does after `astro`."""
    fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)
    try:
        import jax

        from astro_jax.cli import main

        os.environ["XLA_FLAGS"] = os.environ["ASTRO_TEST_XLA_FLAGS"]
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # the processes share all programs
        if prepare is not None:
            prepare()
        code = main(arguments)
    except SystemExit as e:
        code = e.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    atexit._run_exitfuncs()  # multiprocessing runs none of them, and JAX's leave the coordination service
    os._exit(code)


def group_flags(count):
    """The flags of each process of a run by `count` processes on this machine."""
    if count == 1:
        return [[]]
    with socket.socket() as s:
        s.bind(("", 0))
        port = s.getsockname()[1]
    return [[f"--coordinator=localhost:{port}", f"--processes={count}", f"--process={i}"] for i in range(count)]


def full_disk():
    """Prepare a process whose writes beyond the first 20 kB of a file fail, as on a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


class AstroProcess:
    """A running `astro` command.

    Args:
      arguments: of the command line, such as ["run", "run.yaml"].
      output: file that the command's standard output and error are written to.
      prepare: called in the process before the command.
    """

    def __init__(self, arguments: list[str], output: Path, prepare: Callable[[], None] | None = None):
        self.output_path = output
        self._process = _context.Process(target=_main, args=(arguments, str(output), prepare), daemon=True)
        self._process.start()

    def send_signal(self, number):
        os.kill(self._process.pid, number)

    def kill(self):
        self._process.kill()

    @property
    def is_alive(self):
        return self._process.is_alive()

    @property
    def output(self):
        return self.output_path.read_text() if self.output_path.exists() else ""

    def wait(self, timeout=550):
        """Wait for the end, and return the exit code and the output."""
        self._process.join(timeout)
        assert self._process.exitcode is not None, self.output
        return self._process.exitcode, self.output

    def wait_for(self, path, timeout=550):
        """Wait until the command, which must not end before, has written a file."""
        deadline = time.monotonic() + timeout
        while not path.exists():
            assert self._process.is_alive() and time.monotonic() < deadline, self.output
            time.sleep(0.02)


def start_group(count: int, arguments: list[str], output: Path, prepare: Callable[[], None] | None = None):
    """Start the processes of one run. The output of process i is in the file `<output>-<i>.log`."""
    return [
        AstroProcess([*arguments, *flags], output.with_name(f"{output.name}-{i}.log"), prepare)
        for i, flags in enumerate(group_flags(count))
    ]


def assert_success(processes):
    """Wait for the end of all processes, and check that each has succeeded."""
    ends = [process.wait() for process in processes]
    assert {code for code, _ in ends} == {0}, ends[0][1]
