"""Tensors on disk in Hugging Face's layout (safetensors), read and written in blocks of rows.

A model may be many times larger than memory. Memory holds the headers of the files and one block of rows.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import ml_dtypes  # noqa: F401  (makes "bfloat16" a dtype of NumPy's)
import numpy as np
import safetensors
from etils import epath

from astro_jax import storage
from astro_jax.errors import AstroError

SUFFIX = ".safetensors"
WEIGHTS = f"model{SUFFIX}"
# The largest size of one safetensors file.
MAX_FILE_BYTES = 5 * 10**9
# The size of a block of rows.
BLOCK_BYTES = 16 << 20
# The dtypes that a model may have on disk, with their names in safetensors files.
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_DTYPE_NAMES = {code: name for name, code in DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor on disk. Its values are read on demand.

    Attributes:
      name: the name in the file.
      dtype: NumPy's name of the dtype; the file's own name for a dtype outside DTYPES.
      blocks: makes an iterator over blocks of rows (of the first axis), in order.
      rows: reads the rows from one number to before another; None where the format has no such access.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    blocks: Callable[[], Iterator[np.ndarray]]
    rows: Callable[[int, int], np.ndarray] | None = None

    @property
    def nbytes(self) -> int:
        """The size on disk."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def to(self, dtype: str | None) -> Tensor:
        """Convert to another dtype (None: keep the dtype), block by block, on demand.

        The blocks of the result raise an AstroError at a value that is not finite.
        """
        name = dtype or self.dtype

        def convert(block: np.ndarray) -> np.ndarray:
            with np.errstate(over="ignore"):
                value = block.astype(name, copy=False)
            if np.isfinite(value).all():
                return value
            if np.isfinite(block).all():
                raise AstroError(f"the tensor {self.name} holds values too large for {name}; choose another dtype")
            raise AstroError(f"the tensor {self.name} holds values that are not finite; copy the weights again")

        rows = self.rows
        return dataclasses.replace(
            self, dtype=name, blocks=lambda: map(convert, self.blocks()),
            rows=None if rows is None else lambda first, last: convert(rows(first, last)),
        )  # fmt: skip

    def read(self) -> np.ndarray:
        """Read the whole tensor."""
        value, row = np.empty(self.shape, self.dtype), 0
        for block in self.blocks():
            value[row : row + len(block)] = block
            row += len(block)
        return value


def block_ranges(shape: tuple[int, ...], itemsize: int, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """Split the rows of a tensor into blocks of about BLOCK_BYTES: (first row, end row) of each block.

    Args:
      itemsize: bytes of one value.
      multiple: the number of rows of a block is a multiple of this number.
    """
    rows = BLOCK_BYTES // (itemsize * math.prod(shape[1:]))
    step = max(rows // multiple, 1) * multiple
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


def check(source: epath.Path, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that a model has exactly the expected tensors, with the expected shapes, in a dtype of DTYPES.

    An extra tensor is an error: this model would ignore the tensor and compute other logits. No values are read.

    Args:
      source: the model, for error messages.
      shapes: the expected shape of each tensor.

    Raises:
      AstroError: the message names the tensor.
    """
    if missing := shapes.keys() - tensors.keys():
        raise AstroError(f"{source}: the tensor {min(missing)} is missing from the weights")
    if extra := tensors.keys() - shapes.keys():
        raise AstroError(f"{source}: the tensor {min(extra)} is not part of a Llama model; this model is not supported")
    for name, shape in shapes.items():
        if (tensor := tensors[name]).shape != shape:
            raise AstroError(f"{source}: {name} is {tensor.shape}, the model's config says {shape}")
        if tensor.dtype not in DTYPES:
            raise AstroError(f"{source}: {name} is stored as {tensor.dtype}; supported dtypes are {', '.join(DTYPES)}")


def open_folder(folder: epath.Path) -> dict[str, Tensor]:
    """Open the safetensors files of a folder: {name: tensor}. Only the headers are read.

    Raises:
      AstroError: when a file is missing or damaged.
    """
    index = folder / f"{WEIGHTS}.index.json"
    if not index.exists():
        if not (folder / WEIGHTS).exists():
            raise AstroError(f"{folder}: no {WEIGHTS} in this folder; download the weights as safetensors")
        return _open_file(folder / WEIGHTS)
    try:
        file_of = {name: folder / file for name, file in json.loads(index.read_text())["weight_map"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise AstroError(f"{index}: damaged or unreadable ({e}); copy it again") from e
    files = sorted(set(file_of.values()))
    if missing := [file for file in files if not file.exists()]:
        raise AstroError(f"{missing[0]}: the file is missing, but {index.name} names it; copy it again")
    tensors = {file: _open_file(file) for file in files}
    if absent := [name for name, file in file_of.items() if name not in tensors[file]]:
        raise AstroError(f"{file_of[absent[0]]}: {absent[0]} is missing, but {index.name} names it; copy it again")
    return {name: tensors[file][name] for name, file in file_of.items()}


def _open_file(path: epath.Path) -> dict[str, Tensor]:
    def tensor(name: str, shape: list[int], code: str) -> Tensor:
        readers = functools.partial(_blocks, path, name), functools.partial(_rows, path, name)
        return Tensor(name, tuple(shape), _DTYPE_NAMES.get(code, code), *readers)

    if storage.is_remote(path):
        return _open_remote_file(path)
    try:
        with safetensors.safe_open(str(path), framework="numpy") as f:
            slices = {name: f.get_slice(name) for name in f.keys()}
            return {name: tensor(name, s.get_shape(), s.get_dtype()) for name, s in slices.items()}
    except (OSError, safetensors.SafetensorError) as e:
        raise _damaged(path, e) from e


def _blocks(path: epath.Path, name: str) -> Iterator[np.ndarray]:
    """Read one tensor, with the file opened anew.

    safetensors maps the file. The pages that were read count as resident memory until the file is closed.
    """
    try:
        with safetensors.safe_open(str(path), framework="numpy") as f:
            rows = f.get_slice(name)
            itemsize = np.dtype(_DTYPE_NAMES[rows.get_dtype()]).itemsize
            for start, stop in block_ranges(tuple(rows.get_shape()), itemsize):
                yield rows[start:stop]
    except (OSError, safetensors.SafetensorError) as e:
        raise _damaged(path, e) from e


def _rows(path: epath.Path, name: str, first: int, last: int) -> np.ndarray:
    """Read some rows of one tensor."""
    try:
        with safetensors.safe_open(str(path), framework="numpy") as f:
            return f.get_slice(name)[first:last]
    except (OSError, safetensors.SafetensorError) as e:
        raise _damaged(path, e) from e


def _open_remote_file(path: epath.Path) -> dict[str, Tensor]:
    """Open a file in a bucket, which safetensors cannot map: read the header (see _write_file) and ranges of bytes."""

    def tensor(name: str, entry: dict[str, Any], start: int) -> Tensor:
        dtype, shape = _DTYPE_NAMES.get(entry["dtype"], entry["dtype"]), tuple(entry["shape"])
        blocks = functools.partial(_remote_blocks, path, shape, dtype, start)
        return Tensor(name, shape, dtype, blocks, functools.partial(_remote_rows, path, shape, dtype, start))

    try:
        with path.open("rb") as f:
            size = int.from_bytes(f.read(8), "little")
            header = json.loads(f.read(size))
        header.pop("__metadata__", None)
        return {name: tensor(name, entry, 8 + size + entry["data_offsets"][0]) for name, entry in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise _damaged(path, e) from e


def _remote_blocks(path: epath.Path, shape: tuple[int, ...], dtype: str, start: int) -> Iterator[np.ndarray]:
    with path.open("rb") as f:
        for first, last in block_ranges(shape, np.dtype(dtype).itemsize):
            yield _read_rows(f, path, shape, dtype, start, first, last)


def _remote_rows(path: epath.Path, shape: tuple[int, ...], dtype: str, start: int, first: int, last: int) -> np.ndarray:
    with path.open("rb") as f:
        return _read_rows(f, path, shape, dtype, start, first, last)


def _read_rows(
    f: Any, path: epath.Path, shape: tuple[int, ...], dtype: str, start: int, first: int, last: int
) -> np.ndarray:
    """Read rows of a tensor that begins at the byte `start` of an open file."""
    row_bytes = math.prod(shape[1:]) * np.dtype(dtype).itemsize
    f.seek(start + first * row_bytes)
    values = np.frombuffer(f.read((last - first) * row_bytes), dtype)
    if values.nbytes < (last - first) * row_bytes:
        raise _damaged(path, EOFError("unexpected end of file"))
    return values.reshape(last - first, *shape[1:])


def _damaged(path: epath.Path, error: Exception) -> AstroError:
    return AstroError(f"{path}: damaged or unreadable ({error}); copy it again")


def split_into_files(
    tensors: Mapping[str, Tensor], max_file_bytes: int = MAX_FILE_BYTES
) -> dict[str, dict[str, Tensor]]:
    """Assign tensors to files: {file name: {name: tensor}}, with the file names of transformers.

    Args:
      max_file_bytes: of one file. A larger tensor has a file of its own.
    """
    groups: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if size and size + tensor.nbytes > max_file_bytes:
            groups.append({})
            size = 0
        groups[-1][name] = tensor
        size += tensor.nbytes
    if len(groups) == 1:
        return {WEIGHTS: groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, 1)}


def write(
    folder: epath.Path, files: Mapping[str, dict[str, Tensor]], on_tensor: Callable[[], object] = lambda: None
) -> None:
    """Write safetensors files, and an index for several files.

    Args:
      files: the tensors of each file, as `split_into_files` returns them.
      on_tensor: called after each tensor.
    """
    for file, tensors in files.items():
        _write_file(folder / file, tensors, on_tensor)
    if len(files) > 1:
        size = sum(total_bytes(tensors.values()) for tensors in files.values())
        file_of = {name: file for file, tensors in files.items() for name in tensors}
        index = {"metadata": {"total_size": size}, "weight_map": file_of}
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _write_file(path: epath.Path, tensors: dict[str, Tensor], on_tensor: Callable[[], object]) -> None:
    """Write a safetensors file: the length of the header in 8 bytes, the header in JSON, the values.

    Values of wider dtypes come first, so that all values are aligned. safetensors' own writer would need all values of
    the file in memory.
    """
    ordered = dict(sorted(tensors.items(), key=lambda item: -np.dtype(item[1].dtype).itemsize))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, t in ordered.items():
        start, end = end, end + t.nbytes
        header[name] = {"dtype": DTYPES[t.dtype], "shape": t.shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for t in ordered.values():
            for block in t.blocks():
                f.write(np.ascontiguousarray(block).view(np.uint8))
            on_tensor()


def total_bytes(tensors: Iterable[Tensor]) -> int:
    """The size of tensors on disk."""
    return sum(t.nbytes for t in tensors)
