"""Read the records of a file of the user: JSON lines, one JSON list, or Parquet."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from etils import epath

from astro_jax import storage
from astro_jax.errors import AstroError
from astro_jax.storage import Json

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")


def read(path: epath.Path) -> Iterator[tuple[str, Json]]:
    """Yield (place, record) for each record of a file: "FILE, line 3", "FILE, record 3" or "FILE, row 3".

    A file whose name ends with .json holds one list of objects, .parquet is Parquet, and any other file holds one JSON
    object a line.

    Raises:
      AstroError: when the file cannot be read, or does not hold records.
    """
    rows: Iterable[Json]
    if path.suffix == ".parquet":
        rows, unit = read_parquet(path), "row"
    elif path.suffix == ".json":
        rows, unit = _read_list(path), "record"
    else:
        rows, unit = storage.read_jsonl(path), "line"
    for i, record in enumerate(rows, 1):
        yield f"{path}, {unit} {i}", record


def read_parquet(path: epath.Path, advice: str = "") -> list[Json]:
    """Read the rows of a Parquet file.

    Args:
      path: the file.
      advice: the end of the error message.

    Raises:
      AstroError: when the file cannot be read, and when pyarrow is missing.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as e:
        raise AstroError(f"{path}: reading Parquet needs the extra `hub`: pip install pyarrow") from e
    try:
        # A copy in Arrow's memory: a thread of Arrow that lets go of a Python file when the interpreter ends aborts the
        # process.
        copy = pyarrow.BufferOutputStream()
        copy.write(path.read_bytes())
        return parquet.read_table(pyarrow.BufferReader(copy.getvalue())).to_pylist()
    except (OSError, ValueError) as e:  # pyarrow's errors are of both kinds
        raise AstroError(f"{path}: cannot be read as Parquet ({str(e).splitlines()[0]}){advice}") from e


def _read_list(path: epath.Path) -> Iterator[Json]:
    try:
        records = json.loads(path.read_text())
    except OSError as e:
        raise AstroError(f"{path}: cannot be read ({e.strerror or e})") from e
    except ValueError as e:
        raise AstroError(f"{path}: not valid JSON ({e}); one object a line needs the ending .jsonl") from e
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise AstroError(f"{path}: must hold one list of objects; one object a line needs the ending .jsonl")
    yield from records
