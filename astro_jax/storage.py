"""Files that are whole or not there: atomic writes, append-only shards, manifests. Paths may be gs://.

Of several processes (astro_jax.distributed) the first one writes, and all read.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

from etils import epath

from astro_jax import distributed
from astro_jax.errors import AstroError

Json = dict[str, Any]


def absolute(path: str | epath.Path) -> epath.Path:
    """The absolute path, which Orbax asks for; gs:// and the like are absolute already."""
    return epath.Path(path if remote(path) else os.path.abspath(path))


def write_text(path: epath.Path, text: str) -> None:
    """Write a file so that a reader, or a kill at any moment, finds the old one or the new one, never a part."""
    if not distributed.is_main_process():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.parent / f"{path.name}.part"
    part.write_text(text)
    part.replace(path)


def refuse_existing(path: epath.Path) -> None:
    """Raise an AstroError where there is something already: what a user names to be written is never replaced."""
    if path.exists():
        raise AstroError(f"{path}: exists; nothing was written, choose another folder or remove it")


def remote(path: str | epath.Path) -> bool:
    """Whether a path is not on a disk of this machine."""
    return "://" in os.fspath(path)


@contextlib.contextmanager
def on_disk(folder: epath.Path, but: str) -> Iterator[epath.Path]:
    """A folder for libraries that read disks only: itself, or where it is remote a copy of its files.

    Args:
      but: files that end so are not copied.
    """
    if not remote(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as name:
        for path in folder.iterdir():
            if not path.name.endswith(but) and not path.is_dir():
                (epath.Path(name) / path.name).write_bytes(path.read_bytes())
        yield epath.Path(name)


def free_bytes(path: epath.Path) -> float:
    """The room for something at `path`, which need not exist; no bound where it is remote."""
    path = absolute(path)
    if remote(path):
        return math.inf
    return shutil.disk_usage(next(p for p in path.parents if p.exists())).free


@contextlib.contextmanager
def new_folder(path: epath.Path) -> Iterator[epath.Path]:
    """A folder to write into, which becomes `path` when all went well. When it did not, nothing is left; after a kill,
    a folder of another name is, and the next try begins with its removal.

    Raises:
      AstroError: when there is something at `path`.
    """
    refuse_existing(path)
    part = path.parent / f"{path.name}.part"
    if part.exists():
        part.rmtree()
    part.mkdir(parents=True)
    try:
        yield part
    except BaseException:
        part.rmtree()
        raise
    part.rename(path)


@contextlib.contextmanager
def shared_folder(path: epath.Path) -> Iterator[epath.Path]:
    """A new_folder that all processes write into; what is at `path` is replaced."""
    part = path.parent / f"{path.name}.part"
    with contextlib.ExitStack() as stack:
        if distributed.is_main_process():
            if path.exists():
                path.rmtree()
            part = stack.enter_context(new_folder(path))
        distributed.assert_equal_across_processes(f"{path.name} is begun")
        yield part
        distributed.assert_equal_across_processes(f"{path.name} is written")
    distributed.assert_equal_across_processes(f"{path.name} is there")


def write_json(path: epath.Path, value: Any) -> None:
    """Write JSON for people: indented, atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: epath.Path) -> Json:
    """Read the object of a JSON file.

    Raises:
      AstroError: when the file is missing or holds anything else.
    """
    try:
        return _object(path.read_text())
    except OSError as e:
        raise AstroError(f"{path}: cannot be read ({e.strerror or e})") from e
    except ValueError as e:
        raise AstroError(f"{path}: not valid JSON ({e}); delete it to make it anew") from e


def write_jsonl(path: epath.Path, records: Iterable[Json]) -> None:
    """Write one record a line, atomically."""
    write_text(path, "".join(json.dumps(r) + "\n" for r in records))


def read_jsonl(path: epath.Path, torn: bool = False) -> Iterator[Json]:
    """Read one object a line.

    Args:
      torn: the last line may be cut short, as a process that was killed while it appended leaves it; it is left out.

    Raises:
      AstroError: when the file is missing or a line is anything else, with its number.
    """
    try:
        lines = path.read_text().splitlines(keepends=True)
    except OSError as e:
        raise AstroError(f"{path}: cannot be read ({e.strerror or e})") from e
    for number, line in enumerate(lines, 1):
        if torn and not line.endswith("\n"):
            return
        try:
            yield _object(line)
        except ValueError as e:
            raise AstroError(f"{path}, line {number}: not valid JSON ({e}); make the file anew") from e


def _object(text: str) -> Json:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"an object is wanted, found {type(value).__name__}")
    return value


class Shards:
    """An append-only store: numbered JSONL files, each written whole.

    Work that makes a shard is deterministic, so after a kill only the shards that are missing are made again.
    """

    def __init__(self, folder: epath.Path, name: str):
        self.folder, self.name = folder, name

    def path(self, index: int) -> epath.Path:
        return self.folder / f"{self.name}-{index:05d}.jsonl"

    def has(self, index: int) -> bool:
        return self.path(index).exists()

    def write(self, index: int, records: Iterable[Json]) -> None:
        """Written when all processes have come to it, and before any goes on."""
        point = f"{self.name}-{index}"
        distributed.assert_equal_across_processes(point)
        write_jsonl(self.path(index), records)
        distributed.assert_equal_across_processes(f"{point} is there")

    def read(self) -> Iterator[Json]:
        """All records, in the order of the shards."""
        paths = self.folder.glob(f"{self.name}-*.jsonl") if self.folder.exists() else []
        for path in sorted(paths, key=lambda path: (len(path.name), path.name)):
            yield from read_jsonl(path)


def versions() -> dict[str, str]:
    """The versions that results depend on."""
    names = ("astro_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers")
    return {name: importlib.metadata.version(name) for name in names}


def finish(folder: epath.Path, stage: str, digest: str, parents: list[str], wall_s: float, **counts: Any) -> None:
    """Write a stage's manifest: from then on it is finished."""
    manifest = {"stage": stage, "config_hash": digest, "parents": parents, "wall_s": round(wall_s, 2)}
    write_json(folder / "manifest.json", manifest | counts | {"versions": versions()})


def finished(folder: epath.Path) -> bool:
    """Whether a stage has ended here."""
    return (folder / "manifest.json").exists()
