"""Packing of documents into batches, with grain: shuffled by seed, and resumable.

Two strategies (the config's `packing_strategy`), for the documents `a b c`, `d e` and `f g h` in rows of S = 6:

    first-fit   a b c d e 0 | f g h 0 0 0   whole documents, which do not attend to each other
    wrapped     a b c d e f | g h ...       documents are joined and split at S, one segment a row
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import grain
import jax
import numpy as np

from astro_jax.errors import AstroError
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


def make_document(tokens: Sequence[int], index: int = 0) -> Document:
    """A document whose every token is learned, prompt included (paper, appendix B.2: no masking).

    The first token has no weight: no token predicts it.
    """
    ids = np.asarray(tokens, np.int32)
    loss_weights = np.ones(len(ids), np.float32)
    loss_weights[:1] = 0.0
    return Document(ids, loss_weights, index=index)


def make_documents(
    texts: Iterable[Sequence[int]], max_length: int, overlong: Literal["drop", "truncate", "error"]
) -> tuple[list[Document], dict[str, int]]:
    """Make a document of each text, and decide about texts of more than `max_length` tokens.

    Args:
      texts: token ids.
      max_length: the most tokens of a document.
      overlong: leave such a text out, keep its first `max_length` tokens, or refuse it.

    Returns:
      (documents, how many texts were `dropped` and `truncated`).

    Raises:
      AstroError: for a text that is too long, with `overlong="error"`; when no document is left.
    """
    documents, counts = [], {"dropped": 0, "truncated": 0}
    for index, tokens in enumerate(texts):
        if len(tokens) > max_length:
            if overlong == "error":
                raise AstroError(
                    f"example {index} has {len(tokens)} tokens, more than max_length={max_length}; raise max_length, "
                    "or set overlong to drop or truncate"
                )
            counts["dropped" if overlong == "drop" else "truncated"] += 1
            if overlong == "drop":
                continue
        documents.append(make_document(tokens[:max_length], index))
    if not documents:
        raise AstroError(f"all {counts['dropped']} examples have more than max_length={max_length} tokens; raise it")
    return documents, counts


def packed_batches(
    documents: Sequence[Document],
    batch_size: int,
    max_length: int,
    seed: int,
    num_train_epochs: float,
    packing_strategy: Literal["first-fit", "wrapped"] = "first-fit",
) -> grain.IterDataset:
    """Packed batches that hold each document exactly `num_train_epochs` times, in a new order each epoch.

    2.5 epochs hold each document twice, and half of the documents a third time. Rows without documents fill the last
    batch. A row may hold documents of two epochs.

    Yields:
      IndexedBatch with rows [batch_size, max_length].
    """
    elements = [_element(d) | {"index": np.broadcast_to(np.int32(d.index), len(d.tokens))} for d in documents]
    total = max(1, round(num_train_epochs * len(documents)))
    order = grain.MapDataset.source(elements).shuffle(seed=seed).repeat(-(-total // len(documents)))
    source, lengths = _in_memory(order[:total]), dict.fromkeys(elements[0], max_length)
    if packing_strategy == "wrapped":
        rows = grain.experimental.ConcatThenSplitIterDataset(source, length_struct=lengths)
        to_batch = _wrapped_batch
    else:
        rows = _first_fit(source, lengths, num_bins=batch_size)
        to_batch = _first_fit_batch

    def with_indices(rows: dict[str, np.ndarray]) -> IndexedBatch:
        is_start = (rows["index_segment_ids"] > 0) & (rows["index_positions"] == 0)
        missing = batch_size - len(rows["tokens"])
        batch = jax.tree.map(lambda x: np.pad(x, [(0, missing), (0, 0)]), to_batch(rows))
        return IndexedBatch(batch, rows["index"][is_start])

    return rows.batch(batch_size, drop_remainder=False).map(with_indices)


def prefetched(batches: grain.IterDataset) -> grain.DatasetIterator:
    """Iterate in a thread that packs ahead.

    The iterator has get_state and set_state; a checkpoint holds the state. `close` stops the thread.
    """
    return iter(grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=4))


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
    segment_ids = (rows["tokens_segment_ids"] > 0).astype(np.int32)  # 0 behind the last token of the last row
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    loss_weights = segment_ids.astype(np.float32)
    loss_weights[:, :1] = 0.0
    return Batch(tokens, segment_ids, positions, loss_weights)
