"""Weights that lie on disk: tensors in Hugging Face's layout, read and written a block of rows at a time.

A model may be many times larger than memory. What is held of it here is a header, and then one block.
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
# Of one file of weights.
MAX_BYTES = 5 * 10**9
# Rows are read and converted in blocks of about this size.
BLOCK_BYTES = 16 << 20
# The dtypes that a model may have on disk, and safetensors' names of them.
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_NAMES = {code: name for name, code in DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor on disk.

    Attributes:
      name: in the file that holds it.
      dtype: NumPy's name of it, or the file's own name where it is none of DTYPES.
      blocks: reads the rows (of the first axis) in order, some at a time.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    blocks: Callable[[], Iterator[np.ndarray]]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def to(self, dtype: str | None) -> Tensor:
        """The same in another dtype (None: its own). Its blocks raise an AstroError at values that are not finite."""
        name = dtype or self.dtype

        def converted() -> Iterator[np.ndarray]:
            for block in self.blocks():
                with np.errstate(over="ignore"):
                    value = block.astype(name, copy=False)
                if np.isfinite(value).all():
                    yield value
                elif np.isfinite(block).all():
                    raise AstroError(f"the tensor {self.name} holds values too large for {name}; choose another dtype")
                else:
                    raise AstroError(f"the tensor {self.name} holds values that are not finite; copy the weights again")

        return dataclasses.replace(self, dtype=name, blocks=converted)

    def read(self) -> np.ndarray:
        """The whole tensor."""
        value, row = np.empty(self.shape, self.dtype), 0
        for block in self.blocks():
            value[row : row + len(block)] = block
            row += len(block)
        return value


def spans(shape: tuple[int, ...], itemsize: int, together: int = 1) -> Iterator[tuple[int, int]]:
    """The first and the last row (exclusive) of each block, which has a multiple of `together` rows."""
    rows = BLOCK_BYTES // (itemsize * math.prod(shape[1:]))
    step = max(rows // together, 1) * together
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


def check(source: epath.Path, there: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse weights that lack a tensor, or hold it in another shape or in integers, or hold another tensor: what we do
    not read, we would not compute. No values are read.

    Raises:
      AstroError: that names the tensor.
    """
    if lacking := wanted.keys() - there.keys():
        raise AstroError(f"{source}: the tensor {min(lacking)} is missing from the weights")
    if unread := there.keys() - wanted.keys():
        raise AstroError(f"{source}: the tensor {min(unread)} has no place in a Llama; this model is not supported")
    for name, shape in wanted.items():
        if (tensor := there[name]).shape != shape:
            raise AstroError(f"{source}: {name} is {tensor.shape}, the model's config says {shape}")
        if tensor.dtype not in DTYPES:
            raise AstroError(f"{source}: {name} is stored as {tensor.dtype}; {', '.join(DTYPES)} can be read")


def of_folder(folder: epath.Path) -> dict[str, Tensor]:
    """The tensors of a folder's safetensors files. Only headers are read.

    Raises:
      AstroError: for a file that is missing or damaged.
    """
    index = folder / f"{WEIGHTS}.index.json"
    if not index.exists():
        if not (folder / WEIGHTS).exists():
            raise AstroError(f"{folder}: no {WEIGHTS} there")
        return _of_file(folder / WEIGHTS)
    try:
        where = {name: folder / file for name, file in json.loads(index.read_text())["weight_map"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise AstroError(f"{index}: damaged or unreadable ({e}); copy it again") from e
    files = sorted(set(where.values()))
    if lacking := [file for file in files if not file.exists()]:
        raise AstroError(f"{lacking[0]}: missing, though the index names it; copy it again")
    held = {file: _of_file(file) for file in files}
    if astray := [name for name, file in where.items() if name not in held[file]]:
        raise AstroError(f"{where[astray[0]]}: {astray[0]} is missing, though the index names it; copy it again")
    return {name: held[file][name] for name, file in where.items()}


def _of_file(path: epath.Path) -> dict[str, Tensor]:
    def tensor(name: str, shape: list[int], code: str) -> Tensor:
        return Tensor(name, tuple(shape), _NAMES.get(code, code), functools.partial(_blocks, path, name))

    if storage.is_remote(path):
        return _of_remote_file(path)
    try:
        with safetensors.safe_open(str(path), framework="numpy") as f:
            slices = {name: f.get_slice(name) for name in f.keys()}
            return {name: tensor(name, s.get_shape(), s.get_dtype()) for name, s in slices.items()}
    except (OSError, safetensors.SafetensorError) as e:
        raise _damaged(path, e) from e


def _blocks(path: epath.Path, name: str) -> Iterator[np.ndarray]:
    """The library maps the file, and pages that were read count as memory until it is closed: once a tensor."""
    try:
        with safetensors.safe_open(str(path), framework="numpy") as f:
            rows = f.get_slice(name)
            itemsize = np.dtype(_NAMES[rows.get_dtype()]).itemsize
            for start, stop in spans(tuple(rows.get_shape()), itemsize):
                yield rows[start:stop]
    except (OSError, safetensors.SafetensorError) as e:
        raise _damaged(path, e) from e


def _of_remote_file(path: epath.Path) -> dict[str, Tensor]:
    """The same of a file in a bucket, which the library cannot map: the header, and ranges of bytes (_write_file)."""

    def tensor(name: str, told: dict[str, Any], start: int) -> Tensor:
        dtype, shape = _NAMES.get(told["dtype"], told["dtype"]), tuple(told["shape"])
        return Tensor(name, shape, dtype, functools.partial(_remote_blocks, path, shape, dtype, start))

    try:
        with path.open("rb") as f:
            size = int.from_bytes(f.read(8), "little")
            header = json.loads(f.read(size))
        header.pop("__metadata__", None)
        return {name: tensor(name, told, 8 + size + told["data_offsets"][0]) for name, told in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise _damaged(path, e) from e


def _remote_blocks(path: epath.Path, shape: tuple[int, ...], dtype: str, start: int) -> Iterator[np.ndarray]:
    row = math.prod(shape[1:]) * np.dtype(dtype).itemsize
    with path.open("rb") as f:
        f.seek(start)
        for first, last in spans(shape, np.dtype(dtype).itemsize):
            rows = np.frombuffer(f.read((last - first) * row), dtype)
            if rows.nbytes < (last - first) * row:
                raise _damaged(path, EOFError("cut short"))
            yield rows.reshape(last - first, *shape[1:])


def _damaged(path: epath.Path, error: Exception) -> AstroError:
    return AstroError(f"{path}: damaged or unreadable ({error}); copy it again")


def files(tensors: Mapping[str, Tensor], max_bytes: int = MAX_BYTES) -> dict[str, dict[str, Tensor]]:
    """Which file will hold which tensors. A file has at most `max_bytes`, or a single tensor that is larger."""
    groups: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if size and size + tensor.nbytes > max_bytes:
            groups.append({})
            size = 0
        groups[-1][name] = tensor
        size += tensor.nbytes
    if len(groups) == 1:
        return {WEIGHTS: groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, 1)}


def write(
    folder: epath.Path, held: Mapping[str, dict[str, Tensor]], written: Callable[[], object] = lambda: None
) -> None:
    """Write safetensors files, and an index where they are several.

    Args:
      held: the tensors of each file.
      written: is called after each tensor.
    """
    for file, tensors in held.items():
        _write_file(folder / file, tensors, written)
    if len(held) > 1:
        size = sum(total_bytes(tensors.values()) for tensors in held.values())
        where = {name: file for file, tensors in held.items() for name in tensors}
        index = {"metadata": {"total_size": size}, "weight_map": where}
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _write_file(path: epath.Path, tensors: dict[str, Tensor], written: Callable[[], object]) -> None:
    """The library's own writer wants all values of a file in memory. The format: the header's length in 8 bytes, the
    header in JSON, the values one after the other; those of wider dtypes first, so that all are aligned."""
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
            written()


def total_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.nbytes for t in tensors)
