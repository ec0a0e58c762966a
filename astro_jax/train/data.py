"""From documents to packed batches, through grain: shuffled by name, resumable, the same at every start."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from astro_jax.train.losses import Batch


@dataclasses.dataclass(frozen=True)
class Document:
    """One tokenized example. The weight of a token is what its prediction counts in the loss."""

    tokens: np.ndarray  # int32 [S]
    weights: np.ndarray  # float32 [S]
    extras: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # more columns, float32 [S]


def document(tokens: Sequence[int], length: int) -> Document:
    """A document whose every token is learned (paper, appendix B.2: no masking), cut at `length`."""
    ids = np.asarray(tokens[:length], np.int32)
    weights = np.ones(len(ids), np.float32)
    weights[:1] = 0.0  # nothing precedes the first token
    return Document(ids, weights)


def batches(
    documents: Sequence[Document], batch: int, length: int, seed: int, attend_across: bool = False
) -> grain.DatasetIterator:
    """Endless packed batches, a new order each epoch. The iterator is saved and restored by Orbax.

    Args:
      attend_across: join documents and cut them at `length`, one segment a row, as plain pretraining does;
        else documents are packed whole and do not see each other.

    Yields:
      Batch of NumPy arrays [batch, length].
    """
    source = _in_memory(grain.MapDataset.source([_element(d) for d in documents]).shuffle(seed=seed).repeat())
    if attend_across:
        rows = grain.experimental.ConcatThenSplitIterDataset(source, length_struct=_lengths(documents[0], length))
    else:
        rows = _pack(source, documents[0], length, bins=batch)
    rows = rows.batch(batch, drop_remainder=True).map(_whole_rows if attend_across else _segments)
    return iter(grain.experimental.ThreadPrefetchIterDataset(rows, prefetch_buffer_size=4))


def pack(documents: Sequence[Document], length: int) -> tuple[Batch, dict[str, np.ndarray]]:
    """Pack all documents once, in as few rows of `length` as first-fit finds.

    Returns:
      (Batch of NumPy arrays [rows, length], the extra columns in the same places).
    """
    source = _in_memory(grain.MapDataset.source([_element(d) for d in documents]))
    rows = list(_pack(source, documents[0], length, bins=len(documents)))
    stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return _segments(stacked), {name: stacked[name] for name in documents[0].extras}


def _in_memory(source: grain.MapDataset) -> grain.IterDataset:
    """Read without threads: they are for slow storage, and cost more than they save on documents in memory."""
    return source.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))


def _element(d: Document) -> dict[str, np.ndarray]:
    return {"tokens": d.tokens, "weights": d.weights, **d.extras}


def _lengths(d: Document, length: int) -> dict[str, int]:
    return dict.fromkeys(_element(d), length)


def _pack(source: Any, first: Document, length: int, bins: int) -> Any:
    return grain.experimental.FirstFitPackIterDataset(
        source, length_struct=_lengths(first, length), num_packing_bins=bins, shuffle_bins=False
    )


def _segments(row: dict[str, np.ndarray]) -> Batch:
    return Batch(row["tokens"], row["tokens_segment_ids"], row["tokens_positions"], row["weights"])


def _whole_rows(row: dict[str, np.ndarray]) -> Batch:
    tokens = row["tokens"]
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    weights = np.ones_like(row["weights"])
    weights[:, :1] = 0.0
    return Batch(tokens, np.ones_like(tokens), positions, weights)
