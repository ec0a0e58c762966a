"""Packed batches: whole documents, none lost, exact resume."""

import itertools

import numpy as np
import pytest

from astro_jax.train import data
from astro_jax.train.data import Document, make_document, pack

LENGTH = 16
COLUMNS = ("tokens", "segment_ids", "positions", "loss_weights")


def make_documents(n=30, seed=0):
    """Documents of 2 to 16 tokens. Each starts with a number of its own, from 100."""
    rng = np.random.default_rng(seed)
    return [make_document([100 + i, *rng.integers(1, 50, rng.integers(1, LENGTH)).tolist()], LENGTH) for i in range(n)]


DOCUMENTS = make_documents()


def unpack(batch):
    """The documents of a batch, in order, after a check of segments, positions, weights and padding."""
    documents = []
    for tokens, segment_ids, positions, weights in zip(
        batch.tokens, batch.segment_ids, batch.positions, batch.loss_weights, strict=True
    ):
        used = int((segment_ids > 0).sum())
        assert (segment_ids[used:] == 0).all() and (weights[used:] == 0).all() and (tokens[used:] == 0).all()
        assert (np.diff(segment_ids[:used]) >= 0).all()
        for segment_id in range(1, segment_ids.max() + 1):
            mask = segment_ids == segment_id
            np.testing.assert_array_equal(positions[mask], np.arange(mask.sum()))
            np.testing.assert_array_equal(weights[mask], [0, *[1] * (mask.sum() - 1)])
            documents.append(tuple(tokens[mask].tolist()))
    return documents


def batches(*args, **kwargs):
    """The batches without the indices of their documents."""
    return IndexedIterator(data.batches(*args, **kwargs))


class IndexedIterator:
    """Drops the indices, and passes states on."""

    def __init__(self, iterator):
        self.iterator, self.get_state, self.set_state = iterator, iterator.get_state, iterator.set_state

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.iterator).batch


def as_tuples(documents):
    return sorted(tuple(d.tokens.tolist()) for d in documents)


def take(iterator, n):
    return list(itertools.islice(iterator, n))


def assert_batches_equal(a, b):
    for x, y in zip(a, b, strict=True):
        for name in COLUMNS:
            np.testing.assert_array_equal(getattr(x, name), getattr(y, name))


def test_document_is_truncated_and_all_its_tokens_but_the_first_have_weight():
    d = make_document(range(20), 8)
    assert d.tokens.tolist() == list(range(8)) and d.loss_weights.tolist() == [0] + [1] * 7
    assert make_document([], 8).loss_weights.tolist() == []


def test_pack_holds_each_document_once_and_whole():
    batch, extras = pack(DOCUMENTS, LENGTH)
    assert sorted(unpack(batch)) == as_tuples(DOCUMENTS) and extras == {}
    total = sum(len(d.tokens) for d in DOCUMENTS)
    assert len(batch.tokens) <= 1.3 * total / LENGTH + 1  # first-fit leaves few holes


def test_extra_columns_stand_beside_their_tokens():
    documents = [Document(d.tokens, d.loss_weights, {"double": 2.0 * d.tokens.astype(np.float32)}) for d in DOCUMENTS]
    batch, extras = pack(documents, LENGTH)
    np.testing.assert_array_equal(extras["double"], 2.0 * batch.tokens)


def test_epoch_of_batches_holds_each_document_whole():
    unpacked = [d for batch in take(batches(DOCUMENTS, 2, LENGTH, seed=0), 40) for d in unpack(batch)]
    counts = {d: unpacked.count(d) for d in as_tuples(DOCUMENTS)}
    assert set(unpacked) == set(counts)  # none is split, none is missing
    # A packer holds a row back until it is full, so documents of neighbouring epochs may overlap, by a row or two.
    assert max(counts.values()) - min(counts.values()) <= 2


def first_tokens(seed, n=60, documents=DOCUMENTS):
    numbers = [d[0] for batch in take(batches(documents, 1, LENGTH, seed=seed), n) for d in unpack(batch)]
    return numbers[:30], numbers[30:60]


def test_order_differs_between_epochs_and_seeds_and_follows_the_seed():
    first, second = first_tokens(0)
    assert first != second
    assert first_tokens(0) == (first, second) != first_tokens(1)


def test_batches_have_requested_shape_and_dtype():
    (batch,) = take(batches(DOCUMENTS, 3, LENGTH, seed=0), 1)
    for name in COLUMNS:
        assert getattr(batch, name).shape == (3, LENGTH)
    assert batch.tokens.dtype == batch.segment_ids.dtype == batch.positions.dtype == np.int32


@pytest.mark.parametrize("packing_strategy", ["first-fit", "wrapped"])
@pytest.mark.parametrize("taken", [0, 1, 7, 23])
def test_restored_iterator_goes_on_exactly(packing_strategy, taken):
    def make():
        return batches(DOCUMENTS, 2, LENGTH, seed=3, packing_strategy=packing_strategy)

    iterator = make()
    take(iterator, taken)
    state = iterator.get_state()
    expected = take(iterator, 6)
    again = make()
    take(again, 2)  # the position before set_state does not matter
    again.set_state(state)
    assert_batches_equal(take(again, 6), expected)
    fresh = make()
    take(fresh, taken)
    assert_batches_equal(take(fresh, 6), expected)


def test_wrapped_packing_joins_documents_without_padding():
    rows = take(batches(DOCUMENTS, 2, LENGTH, seed=0, packing_strategy="wrapped"), 12)
    for batch in rows:
        assert (batch.segment_ids == 1).all()
        np.testing.assert_array_equal(batch.positions, [np.arange(LENGTH)] * 2)
        assert (batch.loss_weights[:, 0] == 0).all() and (batch.loss_weights[:, 1:] == 1).all()
    stream = np.concatenate([batch.tokens.ravel() for batch in rows]).tolist()
    # Split before each document's number, the stream gives whole documents back, except for the last.
    starts = [i for i, t in enumerate(stream) if t >= 100]
    assert starts[0] == 0
    whole = [tuple(stream[a:b]) for a, b in itertools.pairwise(starts)]
    assert set(whole) <= set(as_tuples(DOCUMENTS)) and sorted(whole[:30]) == as_tuples(DOCUMENTS)


def test_documents_of_full_length_fit():
    documents = [make_document(range(1, 40), LENGTH)] * 3
    batch, _ = data.pack(documents, LENGTH)
    assert unpack(batch) == [tuple(range(1, 17))] * 3


@pytest.mark.parametrize("packing_strategy", ["first-fit", "wrapped"])
def test_batch_names_its_documents(packing_strategy):
    documents = [make_document(d.tokens, LENGTH, index=7 * i) for i, d in enumerate(DOCUMENTS)]
    iterator = data.batches(documents, 2, LENGTH, seed=0, packing_strategy=packing_strategy)
    for batch, indices in itertools.islice(iterator, 5):
        starts = batch.tokens[batch.tokens >= 100] - 100
        assert set(starts) <= set(indices // 7) and (indices % 7 == 0).all()
        if packing_strategy == "first-fit":
            assert (starts == indices // 7).all()
