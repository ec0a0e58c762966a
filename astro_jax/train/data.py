"""Packing of documents into batches, with grain: shuffled by seed, and resumable.

Two strategies (the config's `packing_strategy`), for the documents `a b c`, `d e` and `f g h` in rows of S = 6:

    first-fit   a b c d e 0 | f g h 0 0 0   whole documents, which do not attend to each other
    wrapped     a b c d e f | g h ...       documents are joined and split at S, one segment a row
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import grain
import numpy as np

from astro_jax.train.losses import Batch


@dataclasses.dataclass(frozen=True)
class Document:
    """One tokenized example.

    Attributes:
      tokens: int32 [S].
      loss_weights: float32 [S], the weight of each token's prediction in the loss.
      extras: further columns of float32 [S], by name.
      index: the place of the example in its source, from 0.
    """

    tokens: np.ndarray
    loss_weights: np.ndarray
    extras: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    index: int = 0


class IndexedBatch(NamedTuple):
    """A packed batch, and the examples in it.

    Attributes:
      batch: NumPy arrays [B, S].
      indices: int32 [number of documents], `Document.index` of each document or part of one.
    """

    batch: Batch
    indices: np.ndarray


def make_document(tokens: Sequence[int], max_length: int, index: int = 0) -> Document:
    """A document whose every token is learned, prompt included (paper, appendix B.2: no masking).

    Tokens after the first `max_length` are left out. The first token has no weight: no token predicts it.
    """
    ids = np.asarray(tokens[:max_length], np.int32)
    loss_weights = np.ones(len(ids), np.float32)
    loss_weights[:1] = 0.0
    return Document(ids, loss_weights, index=index)


def batches(
    documents: Sequence[Document],
    batch_size: int,
    max_length: int,
    seed: int,
    packing_strategy: Literal["first-fit", "wrapped"] = "first-fit",
) -> grain.DatasetIterator:
    """Endless packed batches, in a new order each epoch.

    The iterator has get_state and set_state; a checkpoint holds the state.

    Yields:
      IndexedBatch with rows [batch_size, max_length].
    """
    elements = [_element(d) | {"index": np.full(len(d.tokens), d.index, np.int32)} for d in documents]
    source = _in_memory(grain.MapDataset.source(elements).shuffle(seed=seed).repeat())
    lengths = dict.fromkeys(elements[0], max_length)
    if packing_strategy == "wrapped":
        rows = grain.experimental.ConcatThenSplitIterDataset(source, length_struct=lengths)
        to_batch = _wrapped_batch
    else:
        rows = _first_fit(source, lengths, num_bins=batch_size)
        to_batch = _first_fit_batch

    def with_indices(rows: dict[str, np.ndarray]) -> IndexedBatch:
        return IndexedBatch(
            to_batch(rows), rows["index"][(rows["index_segment_ids"] > 0) & (rows["index_positions"] == 0)]
        )

    rows = rows.batch(batch_size, drop_remainder=True).map(with_indices)
    return iter(grain.experimental.ThreadPrefetchIterDataset(rows, prefetch_buffer_size=4))


def pack(documents: Sequence[Document], max_length: int) -> tuple[Batch, dict[str, np.ndarray]]:
    """Pack all documents once, first-fit, into as few rows of `max_length` as that gives.

    Returns:
      (Batch of NumPy arrays [B, max_length], the extra columns at the same places).
    """
    source = _in_memory(grain.MapDataset.source([_element(d) for d in documents]))
    lengths = dict.fromkeys(_element(documents[0]), max_length)
    rows = list(_first_fit(source, lengths, num_bins=len(documents)))
    stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return _first_fit_batch(stacked), {name: stacked[name] for name in documents[0].extras}


def _in_memory(source: grain.MapDataset) -> grain.IterDataset:
    """Read without threads. Threads help with slow storage; for documents in memory they cost more than they save."""
    return source.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))


def _element(d: Document) -> dict[str, np.ndarray]:
    return {"tokens": d.tokens, "loss_weights": d.loss_weights, **d.extras}


def _first_fit(source: Any, lengths: dict[str, int], num_bins: int) -> Any:
    return grain.experimental.FirstFitPackIterDataset(
        source, length_struct=lengths, num_packing_bins=num_bins, shuffle_bins=False
    )


def _first_fit_batch(rows: dict[str, np.ndarray]) -> Batch:
    return Batch(rows["tokens"], rows["tokens_segment_ids"], rows["tokens_positions"], rows["loss_weights"])


def _wrapped_batch(rows: dict[str, np.ndarray]) -> Batch:
    tokens = rows["tokens"]
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    loss_weights = np.ones_like(rows["loss_weights"])
    loss_weights[:, :1] = 0.0
    return Batch(tokens, np.ones_like(tokens), positions, loss_weights)
