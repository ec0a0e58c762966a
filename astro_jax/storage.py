"""Atomic writes, append-only shards and manifests, on a disk or in a bucket (`gs://...`).

In a run of several processes (astro_jax.distributed) the main process writes the files and every process reads them.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
import shutil
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any, cast

import fsspec
from etils import epath

import astro_jax
from astro_jax import distributed
from astro_jax.errors import AstroError, TransientError, is_transient

Json = dict[str, Any]
_GZIP_LEVEL = 3  # a higher level takes twice the time for a tenth of the bytes of search trees

# gcsfs keeps listings, and would not see the files that another process has written since.
fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False


def absolute(path: str | epath.Path) -> epath.Path:
    """Return the absolute path, as Orbax requires. A `gs://` path is absolute already.

    `~` is the home folder: the shell leaves it as it is in `out=~/runs`.
    """
    return epath.Path(path if is_remote(path) else os.path.abspath(os.path.expanduser(path)))


def write_text(path: epath.Path, text: str, is_work: bool = True) -> None:
    """Write a text file atomically.

    A reader sees the old file or the new file, never an incomplete file, also after a kill. In a run of several
    processes only the main process writes.

    Args:
      path: the file. Missing folders above it are made.
      text: its content.
      is_work: whether the file holds work that need not be done again (`last_write`).
    """
    write_bytes(path, text.encode(), is_work)


def write_bytes(path: epath.Path, data: bytes, is_work: bool = True) -> None:
    """Write a file atomically, as `write_text`. An object of a bucket appears whole, without a temporary name."""
    if not is_remote(path):
        with writer(path, is_work) as file:
            file.write(data)
    elif distributed.is_main_process():
        path.write_bytes(data)
        if is_work:
            mark_write()


@contextlib.contextmanager
def writer(path: epath.Path, is_work: bool = True) -> Iterator[IO[bytes]]:
    """Open a file to write into. It appears at `path` when the block ends without an exception, as with `write_text`.

    In the other processes of a run, what is written goes nowhere.
    """
    if not distributed.is_main_process():
        with open(os.devnull, "wb") as nowhere:
            yield nowhere
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f"{path.name}.part"
    try:
        with partial.open("wb") as file:
            yield file
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(path)
    if is_work:
        mark_write()


_last_write = 0.0


def last_write() -> float:
    """Return when this process last saved work, as time.monotonic."""
    return _last_write


def mark_write() -> None:
    """Note that work has just been saved: after a kill it need not be done again."""
    global _last_write
    _last_write = time.monotonic()


@contextlib.contextmanager
def renewing(seconds: float, write: Callable[[], None]) -> Iterator[None]:
    """Call `write` in a thread every `seconds` seconds, until the end of the block. A failed write is passed over."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(seconds):
            with contextlib.suppress(Exception):  # the next write may go through; gcsfs has errors of its own
                write()

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def append_text(path: epath.Path, text: str) -> None:
    """Append to a text file on a local disk. A kill may leave a part of the text, so the last line may lack its end.

    In a run of several processes only the main process writes.
    """
    if distributed.is_main_process():
        with path.open("a") as file:
            file.write(text)


def require_absent(path: epath.Path) -> None:
    """Check that nothing exists at a path that a user names as an output.

    Raises:
      AstroError: when a file or folder exists at `path`.
    """
    if path.exists():
        raise AstroError(f"{path}: exists; nothing was written, choose another folder or remove it")


def is_remote(path: str | epath.Path) -> bool:
    """Return whether a path is a URL such as `gs://bucket/run`, and not a path on a disk of this machine."""
    return "://" in os.fspath(path)


@contextlib.contextmanager
def local_copy(folder: epath.Path, skip_suffix: str) -> Iterator[epath.Path]:
    """Yield a folder on a local disk, for libraries that cannot read a bucket.

    Args:
      folder: a local folder is yielded itself. The files of a remote folder are copied to a temporary folder.
      skip_suffix: files whose names end with this suffix are not copied.
    """
    if not is_remote(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as name:
        for path in folder.iterdir():
            if not path.name.endswith(skip_suffix) and not path.is_dir():
                (epath.Path(name) / path.name).write_bytes(path.read_bytes())
        yield epath.Path(name)


def move(source: epath.Path, target: epath.Path, last: Sequence[str] = ()) -> None:
    """Rename a folder. `target` must not exist; the folders above it are made.

    A bucket has no folders: its files are moved, and a kill leaves some at the source. Another call moves the rest.

    Args:
      last: names of files in the folder that are moved after all others in a bucket, in this order.
    """
    if is_remote(source):
        filesystem, path = fsspec.core.url_to_fs(os.fspath(source))
        _, new = fsspec.core.url_to_fs(os.fspath(target))
        at_the_end = [f"{path}/{name}" for name in last]
        files = filesystem.find(path)
        if first := [file for file in files if file not in at_the_end]:
            filesystem.copy(first, [new + file.removeprefix(path) for file in first])
            filesystem.rm(first)
        for file in (file for file in at_the_end if file in files):
            filesystem.mv(file, new + file.removeprefix(path))
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)


def bucket_refusal(folder: epath.Path) -> str:
    """Return why the account of this machine cannot use a bucket; empty if it can, and for a folder on a disk.

    A run reads, writes and deletes files. Orbax also asks for the bucket itself (storage.buckets.get).

    Raises:
      TransientError: when the bucket does not answer.
    """
    if not is_remote(folder):
        return ""
    probe = folder.parent / f"{folder.name}.writable-{distributed.process_index()}"
    try:
        probe.write_text("of a run that has just started")
        probe.read_text()
        probe.unlink()
        _get_bucket(os.fspath(folder).partition("://")[2].partition("/")[0])
    except Exception as e:  # of gcsfs, google.auth or google.cloud
        message = " ".join(str(e).split())[:200]
        if is_transient(e):
            raise TransientError(f"{folder}: the bucket does not answer ({message}); run the same command again") from e
        return (
            f"{folder}: this machine's account cannot use the bucket ({message}); give the account the roles Storage "
            "Object Admin and Storage Legacy Bucket Reader on the bucket, as docs/tpu.md says"
        )
    return ""


def _get_bucket(name: str) -> None:
    try:
        from google.cloud import storage
    except ImportError:  # gcsfs, which has just written, came without it
        return
    storage.Client().get_bucket(name)


def free_bytes(path: epath.Path) -> float:
    """Return the free bytes of the disk that holds `path`, which need not exist; infinity for a remote path."""
    path = absolute(path)
    if is_remote(path):
        return math.inf
    return shutil.disk_usage(next(p for p in path.parents if p.exists())).free


def size(folder: epath.Path) -> int:
    """Return the bytes of all files in a folder on a disk; 0 for one that does not exist or is in a bucket."""
    if is_remote(folder):
        return 0
    return sum(file.stat().st_size for file in pathlib.Path(folder).rglob("*") if file.is_file())


@contextlib.contextmanager
def new_folder(path: epath.Path) -> Iterator[epath.Path]:
    """Yield a temporary folder to write into, and rename it to `path` at the end.

    After an exception the temporary folder is removed. After a kill `<name>.part` stays; the next call removes it.

    Raises:
      AstroError: when a file or folder exists at `path`.
    """
    require_absent(path)
    partial = path.parent / f"{path.name}.part"
    if partial.exists():
        partial.rmtree()
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        partial.rmtree(missing_ok=True)  # in a bucket a folder without files does not exist
        raise
    partial.rename(path)


@contextlib.contextmanager
def replace_folder(path: epath.Path) -> Iterator[epath.Path]:
    """Yield a temporary folder that all processes write into, and put it in the place of `path` at the end."""
    partial = path.parent / f"{path.name}.part"
    with contextlib.ExitStack() as stack:
        if distributed.is_main_process():
            if path.exists():
                path.rmtree()
            partial = stack.enter_context(new_folder(path))
        distributed.assert_equal_across_processes(f"{path.name}: folder created")
        yield partial
        distributed.assert_equal_across_processes(f"{path.name}: files written")
    distributed.assert_equal_across_processes(f"{path.name}: folder renamed")


def write_json(path: epath.Path, value: Any, is_work: bool = True) -> None:
    """Write a JSON file atomically, indented. The arguments are those of `write_text`."""
    write_text(path, json.dumps(value, indent=2) + "\n", is_work)


def read_json(path: epath.Path) -> Json:
    """Read a JSON file that holds one object.

    Raises:
      AstroError: when the file is missing, is not valid JSON or holds no object.
    """
    try:
        return _object(path.read_text())
    except OSError as e:
        raise AstroError(f"{path}: cannot be read ({e.strerror or e})") from e
    except ValueError as e:
        raise AstroError(f"{path}: not valid JSON ({e}); delete the file and run the same command again") from e


def write_jsonl(path: epath.Path, records: Iterable[Json]) -> None:
    """Write a JSONL file atomically, one record a line: `write_lines`. One record is in memory at a time."""
    write_lines(path, map(to_line, records))


def write_lines(path: epath.Path, lines: Iterable[str | bytes]) -> None:
    """Write lines, each with its line break, atomically. A name that ends with `.gz` asks for gzip.

    Equal lines give equal bytes: the file holds neither its name nor a time.
    """
    with writer(path) as file, contextlib.ExitStack() as stack:
        if path.name.endswith(".gz"):
            file = cast(IO[bytes], stack.enter_context(gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0)))
        for line in lines:
            file.write(line.encode() if isinstance(line, str) else line)


def to_line(record: Json) -> str:
    """Format a record as a line of a JSONL file."""
    return json.dumps(record) + "\n"


def to_lines(records: Iterable[Json]) -> str:
    """Format records as the lines of a JSONL file."""
    return "".join(map(to_line, records))


def read_jsonl(path: epath.Path, allow_truncated: bool = False) -> Iterator[Json]:
    """Yield the objects of a JSONL file. One line is in memory at a time.

    Args:
      path: one JSON object a line. A name that ends with `.gz` stands for gzip.
      allow_truncated: skip a last line that may be incomplete. A process that is killed while it appends leaves a line
        without a line break. Of a gzip file without its end, the last line that can be read is skipped.

    Raises:
      AstroError: when the file is missing or cut short, or for a line that is not valid JSON or holds no object. The
        message gives the line's number. Blank lines are skipped.
    """
    for number, line in enumerate(read_lines(path, allow_truncated), 1):
        try:
            if line.strip():
                yield _object(line)
        except ValueError as e:
            raise AstroError(f"{path}, line {number}: not valid JSON ({e}); write the file again") from e


def read_lines(path: epath.Path, allow_truncated: bool = False) -> Iterator[bytes]:
    """Yield the lines of a file, each with its line break. The arguments are those of `read_jsonl`.

    Raises:
      AstroError: when the file is missing or cut short.
    """
    previous = b""  # one line behind: the last line may have to be left out
    try:
        with path.open("rb") as file, contextlib.ExitStack() as stack:
            if path.name.endswith(".gz"):
                file = stack.enter_context(gzip.GzipFile(fileobj=file))
            for line in file:
                if previous:
                    yield previous
                previous = line
    except (EOFError, zlib.error) as e:
        if not allow_truncated:
            raise AstroError(f"{path}: cut short or damaged ({e}); write the file again") from e
        return
    except OSError as e:
        raise AstroError(f"{path}: cannot be read ({e.strerror or e})") from e
    if previous and (previous.endswith(b"\n") or not allow_truncated):
        yield previous


def _object(text: str | bytes) -> Json:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, got {type(value).__name__}")
    return value


def files(path: epath.Path) -> Iterator[epath.Path]:
    """Yield all files below a folder, in the order of their names; of a file, the file itself."""
    if not path.is_dir():
        yield path
        return
    for inner in sorted(path.iterdir(), key=lambda p: p.name):
        yield from files(inner)


def fingerprint(path: epath.Path) -> str:
    """Hash the names, sizes and contents of a file, or of all files in a folder. 16 hexadecimal digits.

    Of a file over 64 MiB the hash covers 64 blocks of 64 KiB, at equal distances: the weights of a large model need not
    be read from a bucket.
    """
    digest = hashlib.sha256()
    for file in files(path):
        size = file.stat().length
        digest.update(f"{file.relative_to(path)} {size}\n".encode())
        blocks = 64 if size > 2**26 else 1
        with file.open("rb") as stream:
            for i in range(blocks):
                stream.seek(i * (size // blocks))
                digest.update(stream.read(2**16 if blocks > 1 else -1))
    return digest.hexdigest()[:16]


class Shards:
    """An append-only store of numbered JSONL files. Each file, a shard, is written atomically.

    The work that makes a shard is deterministic. After a kill only the missing shards are computed again.

    Args:
      folder: holds the files.
      name: of the store. Shard 3 of `Shards(folder, "trees")` is `trees-00003.jsonl`.
      compressed: write by gzip: `trees-00003.jsonl.gz`. A shard that stands there uncompressed is read, and stays so.
    """

    def __init__(self, folder: epath.Path, name: str, compressed: bool = False):
        self.folder, self.name, self.compressed = folder, name, compressed

    def path(self, index: int) -> epath.Path:
        """Return the path of a shard, which need not exist."""
        path = self.folder / f"{self.name}-{index:05d}.jsonl"
        return path.parent / f"{path.name}.gz" if self.compressed and not path.exists() else path

    def has(self, index: int) -> bool:
        """Return whether a shard has been written."""
        return self.path(index).exists()

    def write(self, index: int, records: Iterable[Json]) -> None:
        """Write a shard of records (`write_lines`)."""
        self.write_lines(index, map(to_line, records))

    def write_lines(self, index: int, lines: Iterable[str | bytes]) -> None:
        """Write a shard. All processes wait for each other before and after the write."""
        point = f"{self.name}-{index}"
        distributed.assert_equal_across_processes(point)
        write_lines(self.path(index), lines)
        distributed.assert_equal_across_processes(f"{point}: written")

    def paths(self) -> list[epath.Path]:
        """Return the files of all shards, in the order of the shards' numbers."""
        paths = self.folder.glob(f"{self.name}-*.jsonl*") if self.folder.exists() else []
        return sorted(
            (path for path in paths if path.name.endswith((".jsonl", ".jsonl.gz"))),
            key=lambda path: (len(path.name.removesuffix(".gz")), path.name),
        )

    def read(self) -> Iterator[Json]:
        """Yield the records of all shards, in the order of the shards' numbers."""
        for path in self.paths():
            yield from read_jsonl(path)

    def read_lines(self) -> Iterator[bytes]:
        """Yield the lines of all shards, in the order of `read`."""
        for path in self.paths():
            yield from read_lines(path)


def versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on, by package name."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "math-verify")
    # This package may run from a clone that is not installed, which has no metadata.
    return {"astro_jax": astro_jax.__version__} | {name: importlib.metadata.version(name) for name in names}
