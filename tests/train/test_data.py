"""Packed batches: whole documents, none lost, exact resume."""

import itertools

import numpy as np
import pytest

from astro_jax.train import data
from astro_jax.train.data import Document, batches, document, pack

LENGTH = 16


def make_documents(n=30, seed=0):
    """Documents of 2 to 16 tokens; each starts with its own number, so that it can be told."""
    rng = np.random.default_rng(seed)
    return [document([100 + i, *rng.integers(1, 50, rng.integers(1, LENGTH)).tolist()], LENGTH) for i in range(n)]


DOCUMENTS = make_documents()


def unpack(batch):
    """The documents of a batch, in order, after a check of segments, positions, weights and padding."""
    found = []
    for tokens, segments, positions, weights in zip(
        batch.tokens, batch.segments, batch.positions, batch.weights, strict=True
    ):
        used = int((segments > 0).sum())
        assert (segments[used:] == 0).all() and (weights[used:] == 0).all() and (tokens[used:] == 0).all()
        assert (np.diff(segments[:used]) >= 0).all()
        for s in range(1, segments.max() + 1):
            where = segments == s
            np.testing.assert_array_equal(positions[where], np.arange(where.sum()))
            np.testing.assert_array_equal(weights[where], [0, *[1] * (where.sum() - 1)])
            found.append(tuple(tokens[where].tolist()))
    return found


def as_tuples(documents):
    return sorted(tuple(d.tokens.tolist()) for d in documents)


def take(iterator, n):
    return list(itertools.islice(iterator, n))


def assert_batches_equal(a, b):
    for x, y in zip(a, b, strict=True):
        for name in ("tokens", "segments", "positions", "weights"):
            np.testing.assert_array_equal(getattr(x, name), getattr(y, name))


def test_a_document_learns_all_its_tokens_but_the_first_and_is_cut():
    d = document(range(20), 8)
    assert d.tokens.tolist() == list(range(8)) and d.weights.tolist() == [0] + [1] * 7
    assert document([], 8).weights.tolist() == []


def test_pack_holds_every_document_once_and_whole():
    batch, extras = pack(DOCUMENTS, LENGTH)
    assert sorted(unpack(batch)) == as_tuples(DOCUMENTS) and extras == {}
    total = sum(len(d.tokens) for d in DOCUMENTS)
    assert len(batch.tokens) <= 1.3 * total / LENGTH + 1  # first-fit leaves few holes


def test_extra_columns_stand_beside_their_tokens():
    documents = [Document(d.tokens, d.weights, {"double": 2.0 * d.tokens.astype(np.float32)}) for d in DOCUMENTS]
    batch, extras = pack(documents, LENGTH)
    np.testing.assert_array_equal(extras["double"], 2.0 * batch.tokens)


def test_an_epoch_of_batches_holds_every_document_whole():
    found = [d for batch in take(batches(DOCUMENTS, 2, LENGTH, seed=0), 40) for d in unpack(batch)]
    counts = {d: found.count(d) for d in as_tuples(DOCUMENTS)}
    assert set(found) == set(counts)  # none is cut, none is missing
    # A packer holds a row back until it is full, so documents of neighbouring epochs may overlap, by a row or two.
    assert max(counts.values()) - min(counts.values()) <= 2


def first_tokens(seed, n=60, documents=DOCUMENTS):
    found = [d[0] for batch in take(batches(documents, 1, LENGTH, seed=seed), n) for d in unpack(batch)]
    return found[:30], found[30:60]


def test_order_differs_between_epochs_and_seeds_and_follows_the_seed():
    first, second = first_tokens(0)
    assert first != second
    assert first_tokens(0) == (first, second) != first_tokens(1)


def test_batches_have_the_asked_shape():
    (batch,) = take(batches(DOCUMENTS, 3, LENGTH, seed=0), 1)
    for name in ("tokens", "segments", "positions", "weights"):
        assert getattr(batch, name).shape == (3, LENGTH)
    assert batch.tokens.dtype == batch.segments.dtype == batch.positions.dtype == np.int32


@pytest.mark.parametrize("attend_across", [False, True])
@pytest.mark.parametrize("taken", [0, 1, 7, 23])
def test_a_restored_iterator_goes_on_exactly(attend_across, taken):
    def make():
        return batches(DOCUMENTS, 2, LENGTH, seed=3, attend_across=attend_across)

    iterator = make()
    take(iterator, taken)
    state = iterator.get_state()
    expected = take(iterator, 6)
    again = make()
    take(again, 2)  # wherever it stood
    again.set_state(state)
    assert_batches_equal(take(again, 6), expected)
    fresh = make()
    take(fresh, taken)
    assert_batches_equal(take(fresh, 6), expected)


def test_attend_across_joins_documents_and_wastes_nothing():
    rows = take(batches(DOCUMENTS, 2, LENGTH, seed=0, attend_across=True), 12)
    for batch in rows:
        assert (batch.segments == 1).all()
        np.testing.assert_array_equal(batch.positions, [np.arange(LENGTH)] * 2)
        assert (batch.weights[:, 0] == 0).all() and (batch.weights[:, 1:] == 1).all()
    stream = np.concatenate([batch.tokens.ravel() for batch in rows]).tolist()
    # Cut at the documents' own numbers, the stream gives whole documents back, but for the last.
    starts = [i for i, t in enumerate(stream) if t >= 100]
    assert starts[0] == 0
    pieces = [tuple(stream[a:b]) for a, b in itertools.pairwise(starts)]
    assert set(pieces) <= set(as_tuples(DOCUMENTS)) and sorted(pieces[:30]) == as_tuples(DOCUMENTS)


def test_documents_of_the_full_length_fit():
    documents = [document(range(1, 40), LENGTH)] * 3
    batch, _ = data.pack(documents, LENGTH)
    assert unpack(batch) == [tuple(range(1, 17))] * 3
