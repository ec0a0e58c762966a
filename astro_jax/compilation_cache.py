"""JAX's persistent compilation cache, in the folder of a run: a command that goes on after a kill compiles nothing.

The environment variable JAX_COMPILATION_CACHE_DIR names another folder, which several runs may share.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath
from jax.experimental.compilation_cache import compilation_cache

FOLDER = "compilation_cache"


@contextlib.contextmanager
def use(run: epath.Path) -> Iterator[None]:
    """Read compiled programs from RUN/compilation_cache inside the block, and write new ones there.

    A folder that the user has set stays in use. Of several processes the first writes, and all read.
    """
    changes: dict[str, Any] = {
        "jax_compilation_cache_dir": str(run / FOLDER / _machine()),
        "jax_persistent_cache_min_compile_time_secs": 0.0,  # JAX leaves out what compiles within a second
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in changes}
    if before["jax_compilation_cache_dir"]:
        yield
        return
    try:
        _set(changes)
        yield
    finally:
        _set(before)


def _set(values: dict[str, Any]) -> None:
    for name, value in values.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # JAX opens a cache once, and would keep the one of the run before


def _machine() -> str:
    """Return a name for what programs are compiled for. A program for one CPU may not run on another."""
    if jax.default_backend() != "cpu":
        return jax.default_backend()
    info = epath.Path("/proc/cpuinfo")
    flags = next((line for line in info.read_text().splitlines() if line.startswith(("flags", "Features"))), "")
    return f"cpu-{hashlib.sha256(flags.encode()).hexdigest()[:8]}"
