"""Examples on disk: the traces of many large trees do not fit into memory."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import NamedTuple

from astro_jax import storage
from astro_jax.storage import Json


class PooledExample(NamedTuple):
    """An example of a pool.

    Attributes:
      offset: its place in the file of the pool, in bytes.
      size: 1, or the number of its tokens where tokens are counted.
      k: the number of backtracks. 0 for a direct solution.
      digest: equal for examples of one problem with equal responses.
    """

    offset: int
    size: int
    k: int
    digest: bytes


class ExamplePool:
    """Examples in a temporary file, which is removed at the end of the context."""

    def __enter__(self) -> ExamplePool:
        self._file = tempfile.TemporaryFile()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()

    def add(self, example: Json, size: int) -> PooledExample:
        """Add an example to the end of the file."""
        offset = self._file.tell()
        self._file.write(storage.to_line(example).encode())
        text = repr((example["problem_id"], example["response"]))
        digest = hashlib.sha256(text.encode(errors="surrogatepass")).digest()
        return PooledExample(offset, size, example["k"], digest)

    def lines(self, examples: Iterable[PooledExample]) -> Iterator[bytes]:
        """Read examples as lines of a JSONL file, one at a time."""
        for example in examples:
            self._file.seek(example.offset)
            yield self._file.readline()
