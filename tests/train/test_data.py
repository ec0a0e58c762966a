"""Packed batches: whole documents, none lost, exact resume."""

import collections
import itertools

import numpy as np
import pytest

from astro_jax.errors import AstroError
from astro_jax.train import data
from astro_jax.train.data import Document, Example, make_document, pack

LENGTH = 16
COLUMNS = ("tokens", "segment_ids", "positions", "loss_weights")


def make_documents(n=30, seed=0):
    """Documents of 2 to 16 tokens. Each starts with a number of its own, from 100."""
    rng = np.random.default_rng(seed)
    return [make_document([100 + i, *rng.integers(1, 50, rng.integers(1, LENGTH)).tolist()]) for i in range(n)]


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


def batches(*args, epochs=100, **kwargs):
    """The batches of many epochs, without the indices of their documents."""
    return IndexedIterator(data.prefetched(data.packed_batches(*args, num_train_epochs=epochs, **kwargs)))


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


def test_all_tokens_of_a_document_but_the_first_have_weight():
    d = make_document(range(8), index=3)
    assert d.tokens.tolist() == list(range(8)) and d.loss_weights.tolist() == [0] + [1] * 7 and d.index == 3
    assert make_document([]).loss_weights.tolist() == []


TEXTS = [Example((), range(n)) for n in (16, 17, 3, 40)]


@pytest.mark.parametrize(
    "overlong, sizes, indices, counts",
    [("drop", [16, 3], [0, 2], (2, 0)), ("truncate", [16, 16, 3, 16], [0, 1, 2, 3], (0, 2))],
)
def test_too_long_example_is_counted_not_cut_without_a_word(overlong, sizes, indices, counts):
    documents, counted = data.make_documents(TEXTS, LENGTH, overlong)
    assert [len(d.tokens) for d in documents] == sizes and [d.index for d in documents] == indices
    assert (counted["dropped"], counted["truncated"]) == counts


def test_too_long_example_is_refused_where_the_config_says_so():
    with pytest.raises(AstroError, match=r"^example 1 has 17 tokens, more than max_length=16; [^\n]*$"):
        data.make_documents(TEXTS, LENGTH, "error")
    assert len(data.make_documents(TEXTS[:1], LENGTH, "error")[0]) == 1


def test_no_example_that_fits_is_an_error():
    with pytest.raises(AstroError, match="all 2 examples have more than max_length=16"):
        data.make_documents([Example((), range(20)), Example(range(4), range(26))], LENGTH, "drop")


def test_pack_holds_each_document_once_and_whole():
    batch, extras = pack(DOCUMENTS, LENGTH)
    assert sorted(unpack(batch)) == as_tuples(DOCUMENTS) and extras == {}
    total = sum(len(d.tokens) for d in DOCUMENTS)
    assert len(batch.tokens) <= 1.3 * total / LENGTH + 1  # first-fit leaves few holes


def test_extra_columns_stand_beside_their_tokens():
    documents = [Document(d.tokens, d.loss_weights, {"double": 2.0 * d.tokens.astype(np.float32)}) for d in DOCUMENTS]
    batch, extras = pack(documents, LENGTH)
    np.testing.assert_array_equal(extras["double"], 2.0 * batch.tokens)


@pytest.mark.parametrize("epochs", [1, 2.5, 4, 0.1])
@pytest.mark.parametrize("batch_size, packing_strategy", [(2, "first-fit"), (7, "first-fit"), (2, "bfd"), (7, "bfd")])
def test_each_example_is_seen_exactly_so_many_times(epochs, batch_size, packing_strategy):
    """Steps were tokens / (rows x length): padding made 4 epochs 3.78."""
    all_batches = list(batches(DOCUMENTS, batch_size, LENGTH, seed=0, epochs=epochs, packing_strategy=packing_strategy))
    assert all(batch.tokens.shape == (batch_size, LENGTH) for batch in all_batches)
    counts = collections.Counter(d for batch in all_batches for d in unpack(batch))
    assert counts.keys() <= set(as_tuples(DOCUMENTS)) and sum(counts.values()) == round(epochs * len(DOCUMENTS))
    assert {counts[d] for d in as_tuples(DOCUMENTS)} <= {int(epochs), -int(-epochs // 1)}


def test_one_example_gives_one_step():
    (batch,) = batches(DOCUMENTS[:1], 2, LENGTH, seed=0, epochs=0.01)
    assert unpack(batch) == as_tuples(DOCUMENTS[:1])


def test_wrapped_epochs_hold_each_token_exactly_so_many_times():
    all_batches = list(batches(DOCUMENTS, 2, LENGTH, seed=0, epochs=3, packing_strategy="wrapped"))
    tokens = np.concatenate([b.tokens[b.segment_ids > 0] for b in all_batches])
    expected = np.concatenate([d.tokens for d in DOCUMENTS])
    np.testing.assert_array_equal(np.sort(tokens), np.sort(np.tile(expected, 3)))
    padding = all_batches[-1].segment_ids == 0
    assert not all_batches[-1].loss_weights[padding].any()


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


@pytest.mark.parametrize("packing_strategy", ["first-fit", "bfd", "wrapped"])
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
    documents = [make_document(range(1, 17))] * 3
    batch, _ = data.pack(documents, LENGTH)
    assert unpack(batch) == [tuple(range(1, 17))] * 3


@pytest.mark.parametrize("packing_strategy", ["first-fit", "bfd", "wrapped"])
def test_batch_names_its_documents(packing_strategy):
    documents = [make_document(d.tokens, index=7 * i) for i, d in enumerate(DOCUMENTS)]
    for batch, indices in data.packed_batches(documents, 2, LENGTH, 0, 1, packing_strategy):
        starts = batch.tokens[batch.tokens >= 100] - 100
        assert set(starts) <= set(indices // 7) and (indices % 7 == 0).all()
        if packing_strategy != "wrapped":
            assert (starts == indices // 7).all()


def test_wrapped_rows_hold_examples_longer_than_a_row():
    (batch,) = batches([make_document(range(1, 41))], 3, LENGTH, seed=0, epochs=1, packing_strategy="wrapped")
    assert batch.tokens.ravel()[:40].tolist() == list(range(1, 41)) and (batch.segment_ids > 0).sum() == 40


# ---- Which tokens the loss counts, held-out examples, padding


@pytest.mark.parametrize(
    "loss_on, weights",
    [("all", [0, 1, 1, 1, 1, 1]), ("completion", [0, 0, 1, 1, 1, 1]), ("correct-steps", [0, 0, 1, 0, 0, 1])],
)
def test_loss_counts_the_tokens_that_the_config_names(loss_on, weights):
    example = Example((7, 8), (1, 2, 3, 4), wrong=(1, 2))
    (document,), _ = data.make_documents([example], LENGTH, "error", loss_on)
    assert document.tokens.tolist() == [7, 8, 1, 2, 3, 4] and document.loss_weights.tolist() == weights
    (cut,), _ = data.make_documents([example], 4, "truncate", loss_on)
    assert cut.tokens.tolist() == [7, 8, 1, 2] and cut.loss_weights.tolist() == weights[:4]


def test_examples_of_one_prompt_are_held_out_together():
    examples = [Example((i // 4,), (1, i)) for i in range(40)] + [Example((), (2, i)) for i in range(10)]
    documents, _ = data.make_documents(examples, LENGTH, "error")
    rest, held_out = data.hold_out(documents, 0.2, seed=3)
    assert sorted(d.index for d in (*rest, *held_out)) == list(range(50))
    prompts = {d.prompt for d in held_out if d.prompt}
    assert len(prompts) + sum(not d.prompt for d in held_out) == 4  # of 20: 10 prompts, and 10 documents without one
    assert not prompts & {d.prompt for d in rest}
    others = [{d.index for d in data.hold_out(documents, 0.2, seed)[1]} for seed in (3, 4)]
    assert others[0] == {d.index for d in held_out} != others[1]
    with pytest.raises(AstroError, match="leaves none to train on"):
        data.hold_out(documents[:4], 0.5, seed=0)


@pytest.mark.parametrize("median, spread, length", [(60, 0.5, 256), (550, 0.7, 2048), (1500, 0.6, 8192)])
def test_best_fit_decreasing_leaves_at_most_3_percent_of_padding(median, spread, length):
    """Lengths like those of the quickstart and of word problems. First-fit leaves 3 to 7%."""
    rng = np.random.default_rng(0)
    sizes = np.clip(median * np.exp(spread * rng.normal(size=2000)), 8, length).astype(int).tolist()
    rows = data._best_fit_decreasing(sizes, length, 5000, seed=1)
    assert all(0 < sum(sizes[i] for i in row) <= length for row in rows)
    assert collections.Counter(i for row in rows for i in row).total() == 5000
    padding = 1 - sum(sizes[i] for row in rows for i in row) / (length * len(rows))
    assert padding < 0.03


# Documents of astro-sft of the quickstart when its trees grew by MCTS (scale 0.5, seed 0), by tokens: traces, and then
# documents of the corpus.
QUICKSTART = {
    26: 687, 41: 84, 51: 379, 56: 4, 66: 215, 76: 257, 81: 64, 91: 272, 96: 5, 101: 99, 106: 121, 116: 152, 121: 34,
    126: 23, 131: 116, 136: 7, 141: 43, 146: 37, 151: 3, 156: 35, 161: 17, 166: 3, 171: 35, 176: 5, 181: 10, 186: 24,
    191: 1, 196: 15, 206: 1, 7: 72, 14: 209, 24: 455, 30: 88,
}  # fmt: skip


def test_batches_of_the_quickstart_have_at_most_3_percent_of_padding():
    """With the rows that fill the last batch. First-fit leaves 5.5%."""
    documents = [make_document(np.ones(size, int)) for size, n in QUICKSTART.items() for _ in range(n)]
    packed = data.packed_batches(documents, 16, 256, 0, 2, "bfd")
    assert 1 - np.mean([batch.segment_ids > 0 for batch, _ in packed]) < 0.03


def test_best_fit_decreasing_by_hand():
    """6, 5, 5, 4, 3, 2 in rows of 9: the 3 goes to the 6, the 4 to a 5, and the 2 to the other 5."""
    rows = data._best_fit_decreasing([3, 6, 5, 5, 2, 4], 9, 6, seed=0)
    assert sorted(sorted([3, 6, 5, 5, 2, 4][i] for i in row) for row in rows) == [[2, 5], [3, 6], [4, 5]]
