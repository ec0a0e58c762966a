"""A worker process cannot write files, start processes, open connections or take too much memory, and needs no JAX."""

import subprocess
import sys

import pytest

# Runs in a process of its own. It restricts itself as a worker does, because nothing can undo the restrictions.
RESTRICTED = """
import os, socket, sys

import astro_jax.verify

print(sorted({"sympy", "math_verify", "antlr4", "jax"} & set(sys.modules)))
import astro_jax.verify.preload
from astro_jax.verify import worker

print(sorted({"jax", "transformers", "flax"} & set(sys.modules)))
path = sys.argv[1]
worker.FUNCTIONS |= {
    "write": lambda: open(path, "w"),
    "process": lambda: os.system(f"touch {path}"),
    "fork": os.fork,
    "socket": socket.socket,
    "memory": lambda: len(bytearray(4 * 2**30)),
    "allowed": lambda: "allowed",
}
worker._restrict(2**30)
for name in ("write", "process", "fork", "socket", "memory", "allowed"):
    print(name, repr(worker._call(name, ())))
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("worker") / "written"


@pytest.fixture(scope="module")
def lines(path):
    """The lines that the restricted process prints."""
    process = subprocess.run([sys.executable, "-c", RESTRICTED, str(path)], capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines()


def test_main_process_imports_no_parsers_and_workers_import_no_jax(lines):
    """Parsers take seconds to import. JAX would take memory and half a minute."""
    assert lines[:2] == ["[]", "[]"]


def test_restricted_process_is_refused_files_processes_connections_and_memory(lines, path):
    results = dict(line.split(" ", 1) for line in lines[2:])
    for name in ("write", "process", "fork", "socket"):
        assert "a verifier's worker must not do this" in results[name]
    assert "out of memory" in results["memory"]
    assert results["allowed"] == "'allowed'"
    assert not path.exists()
