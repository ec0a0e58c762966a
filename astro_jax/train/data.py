"""Packing of documents into batches, with grain: shuffled by seed, and resumable.

Three strategies (the config's `packing_strategy`), for the documents `a b c`, `d e` and `f g h` in rows of S = 6:

    first-fit   a b c d e 0 | f g h 0 0 0   whole documents, which do not attend to each other
    bfd         a b c f g h | d e 0 0 0 0   whole documents, the longest first, each into the fullest row that has room
    wrapped     a b c d e f | g h ...       documents are joined and split at S, one segment a row
"""

from __future__ import annotations

import bisect
import dataclasses
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import grain
import jax
import numpy as np

from astro_jax.errors import AstroError
from astro_jax.train.losses import Batch

LossOn = Literal["all", "completion", "correct-steps"]


@dataclasses.dataclass(frozen=True)
class Example:
    """One example of SFT, as tokens.

    Attributes:
      prompt: the prompt; empty for a document without one.
      completion: the response to the prompt, or the whole document.
      wrong: places in `completion` of the steps of wrong attempts.
    """

    prompt: Sequence[int]
    completion: Sequence[int]
    wrong: Sequence[int] = ()

    def learned(self, loss_on: LossOn) -> np.ndarray:
        """Which tokens the loss counts: bool [number of tokens]."""
        n = len(self.prompt)
        learned = np.ones(n + len(self.completion), bool)
        if loss_on != "all":
            learned[:n] = False
        if loss_on == "correct-steps":
            learned[n + np.asarray(self.wrong, int)] = False
        return learned


@dataclasses.dataclass(frozen=True)
class Document:
    """One tokenized example.

    Attributes:
      tokens: int32 [S].
      loss_weights: float32 [S], the weight of each token's prediction in the loss.
      extras: further columns of float32 [S], by name.
      index: the place of the example in its source, from 0.
      prompt: the tokens of its prompt; empty without one.
    """

    tokens: np.ndarray
    loss_weights: np.ndarray
    extras: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    index: int = 0
    prompt: tuple[int, ...] = ()


class IndexedBatch(NamedTuple):
    """A packed batch, and the examples in it.

    Attributes:
      batch: NumPy arrays [B, S].
      indices: int32 [number of documents], `Document.index` of each document or part of one.
    """

    batch: Batch
    indices: np.ndarray


def make_document(tokens: Sequence[int], index: int = 0, learned: np.ndarray | None = None) -> Document:
    """Make a document from tokens.

    Args:
      learned: bool [number of tokens], the tokens that the loss counts. Default: all, prompt included (paper, appendix
        B.2: no masking). The first token never counts: no token predicts it.
    """
    ids = np.asarray(tokens, np.int32)
    loss_weights = np.ones(len(ids), np.float32) if learned is None else learned.astype(np.float32)
    loss_weights[:1] = 0.0
    return Document(ids, loss_weights, index=index)


def make_documents(
    examples: Iterable[Example],
    max_length: int,
    overlong: Literal["drop", "truncate", "error"],
    loss_on: LossOn = "all",
) -> tuple[list[Document], dict[str, int]]:
    """Make a document of each example, and decide about examples of more than `max_length` tokens.

    Args:
      max_length: the most tokens of a document.
      overlong: leave such an example out, keep its first `max_length` tokens, or refuse it.
      loss_on: the tokens that the loss counts.

    Returns:
      (the documents, how many examples were dropped and truncated).

    Raises:
      AstroError: for an example that is too long, with `overlong="error"`; when no document is left.
    """
    documents, counts = [], {"dropped": 0, "truncated": 0}
    for index, example in enumerate(examples):
        tokens = [*example.prompt, *example.completion]
        if len(tokens) > max_length:
            if overlong == "error":
                raise AstroError(
                    f"example {index} has {len(tokens)} tokens, more than max_length={max_length}; raise max_length, "
                    "or set overlong to drop or truncate"
                )
            counts["dropped" if overlong == "drop" else "truncated"] += 1
            if overlong == "drop":
                continue
        document = make_document(tokens[:max_length], index, example.learned(loss_on)[:max_length])
        documents.append(dataclasses.replace(document, prompt=tuple(example.prompt)))
    if not documents:
        raise AstroError(f"all {counts['dropped']} examples have more than max_length={max_length} tokens; raise it")
    return documents, counts


def hold_out(documents: Sequence[Document], share: float, seed: int) -> tuple[list[Document], list[Document]]:
    """Split documents at random. Documents with the same prompt stay together: an example tells much about another.

    Args:
      share: of the prompts that are held out, at least one.

    Returns:
      (the documents to train on, those held out), in order.

    Raises:
      AstroError: when no document is left to train on.
    """
    held_out = held_out_prompts(list(dict.fromkeys(d.prompt or d.index for d in documents)), share, seed)
    parts: tuple[list[Document], list[Document]] = ([], [])
    for d in documents:
        parts[(d.prompt or d.index) in held_out].append(d)
    return parts


def held_out_prompts(prompts: Sequence[Hashable], share: float, seed: int) -> set[Hashable]:
    """Choose the prompts that are held out, at random: at least one.

    Args:
      prompts: different prompts, or names of prompts.
      share: of the prompts.

    Raises:
      AstroError: when no prompt is left to train on.
    """
    n = max(1, round(share * len(prompts)))
    if n >= len(prompts):
        raise AstroError(f"eval_share={share:g} of {len(prompts)} prompts leaves none to train on; give more prompts")
    order = np.random.default_rng((seed, len(prompts))).permutation(len(prompts))
    return {prompts[i] for i in order[:n]}


def packed_batches(
    documents: Sequence[Document],
    batch_size: int,
    max_length: int,
    seed: int,
    num_train_epochs: float,
    packing_strategy: Literal["first-fit", "bfd", "wrapped"] = "first-fit",
) -> grain.IterDataset:
    """Packed batches that hold each document exactly `num_train_epochs` times, in a new order each epoch.

    2.5 epochs hold each document twice, and half of the documents a third time. Rows without documents fill the last
    batch. A row may hold documents of two epochs, except with "bfd".

    Yields:
      IndexedBatch with rows [batch_size, max_length].
    """
    elements = [_element(d) | {"index": np.broadcast_to(np.int32(d.index), len(d.tokens))} for d in documents]
    total = max(1, round(num_train_epochs * len(documents)))
    order = grain.MapDataset.source(elements).shuffle(seed=seed).repeat(-(-total // len(documents)))
    source, lengths = _in_memory(order[:total]), dict.fromkeys(elements[0], max_length)
    if packing_strategy == "bfd":
        packed = _best_fit_decreasing([len(d.tokens) for d in documents], max_length, total, seed)
        rows = _in_memory(
            grain.MapDataset.source(packed).map(lambda row: _join([elements[i] for i in row], max_length))
        )
        to_batch = _whole_documents
    elif packing_strategy == "wrapped":
        rows = grain.experimental.ConcatThenSplitIterDataset(source, length_struct=lengths)
        to_batch = _wrapped_batch
    else:
        rows = _first_fit(source, lengths, num_bins=batch_size)
        to_batch = _whole_documents

    def with_indices(rows: dict[str, np.ndarray]) -> IndexedBatch:
        is_start = (rows["tokens_segment_ids"] > 0) & (rows["tokens_positions"] == 0)  # of `index` too
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
    return _whole_documents(stacked), {name: stacked[name] for name in documents[0].extras}


def _in_memory(source: grain.MapDataset) -> grain.IterDataset:
    """Read without threads. Threads help with slow storage; for documents in memory they cost more than they save."""
    return source.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))


def _element(d: Document) -> dict[str, np.ndarray]:
    return {"tokens": d.tokens, "loss_weights": d.loss_weights, **d.extras}


def _first_fit(source: Any, lengths: dict[str, int], num_bins: int) -> Any:
    return grain.experimental.FirstFitPackIterDataset(
        source, length_struct=lengths, num_packing_bins=num_bins, shuffle_bins=False
    )


def _best_fit_decreasing(sizes: Sequence[int], max_length: int, total: int, seed: int) -> list[list[int]]:
    """Assign documents to rows by best-fit decreasing, epoch by epoch: the longest document first, each into the row
    with the least room that still holds it. Documents of one length are in a new order in each epoch, and so are the
    rows.

    Args:
      sizes: tokens of each document, at most `max_length`.
      total: documents of all epochs together.

    Returns:
      the indices of the documents of each row.
    """
    rows: list[list[int]] = []
    for epoch, start in enumerate(range(0, total, len(sizes))):
        rng = np.random.default_rng((seed, epoch))
        order = rng.permutation(len(sizes))[: total - start]
        packed: list[list[int]] = []
        by_room: dict[int, list[int]] = defaultdict(list)  # room -> the rows with this room
        rooms: list[int] = []  # the rooms that exist, in order
        for i in sorted(order.tolist(), key=lambda i: -sizes[i]):
            place = bisect.bisect_left(rooms, sizes[i])
            if place == len(rooms):
                row, room = len(packed), max_length
                packed.append([])
            else:
                room = rooms[place]
                row = by_room[room].pop()
                if not by_room[room]:
                    del rooms[place]
            packed[row].append(i)
            if left := room - sizes[i]:
                if not by_room[left]:
                    bisect.insort(rooms, left)
                by_room[left].append(row)
        rows += [packed[i] for i in rng.permutation(len(packed))]
    return rows


def _join(elements: Sequence[dict[str, np.ndarray]], max_length: int) -> dict[str, np.ndarray]:
    """Join documents to a row, with the columns that grain's packers give."""
    sizes = [len(e["tokens"]) for e in elements]
    columns = {name: np.concatenate([e[name] for e in elements]) for name in elements[0]}
    columns["tokens_segment_ids"] = np.repeat(np.arange(1, len(sizes) + 1, dtype=np.int32), sizes)
    columns["tokens_positions"] = np.concatenate([np.arange(n, dtype=np.int32) for n in sizes])
    return {name: np.pad(x, (0, max_length - len(x))) for name, x in columns.items()}


def _whole_documents(rows: dict[str, np.ndarray]) -> Batch:
    return Batch(rows["tokens"], rows["tokens_segment_ids"], rows["tokens_positions"], rows["loss_weights"])


def _wrapped_batch(rows: dict[str, np.ndarray]) -> Batch:
    tokens = rows["tokens"]
    segment_ids = (rows["tokens_segment_ids"] > 0).astype(np.int32)  # 0 behind the last token of the last row
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    loss_weights = segment_ids.astype(np.float32)
    loss_weights[:, :1] = 0.0
    return Batch(tokens, segment_ids, positions, loss_weights)
