"""Continuous batching on the host, simulated with random lengths."""

import collections
import random

import numpy as np
import pytest

from astro_jax.sampler.kv_cache import CacheLayout
from astro_jax.sampler.scheduler import Scheduler, Sequence

KEY = np.zeros(2, np.uint32)


def groups(*counts):
    """So many sequences of each request; the prompt of request i is (i, i)."""
    return [[Sequence(i, (i, i), KEY, 8) for _ in range(n)] for i, n in enumerate(counts)]


def layout(num_seqs, group_size):
    return CacheLayout(num_seqs, group_size, 1, 1, 8)


def simulate(counts, layout, seed, abort=()):
    """Run until no sequence waits; return the sequences in their order of start, and the computed requests."""
    rng = random.Random(seed)
    scheduler, started, computed, held = Scheduler(groups(*counts), layout), [], [], {}
    while scheduler.waiting or len(scheduler.live):
        prefixes, new = scheduler.schedule()
        old = [s for s in scheduler.running if s is not None and s not in new]
        for prefix in prefixes:
            for sequence in old:  # no prefix is replaced while a row attends to it
                group = sequence.row // layout.group_size
                assert group * layout.prefixes_per_group + sequence.prefix_slot != prefix.prefix_slot
            if prefix.copy_from is None:
                computed.append(prefix.request)
            else:
                assert held[prefix.copy_from] == prefix.request  # the source holds the prompt
            assert prefix.prompt_token_ids == (prefix.request,) * 2
            held[prefix.prefix_slot] = prefix.request
        for sequence in new:
            group = sequence.row // layout.group_size
            assert held[group * layout.prefixes_per_group + sequence.prefix_slot] == sequence.request
            assert scheduler.running[sequence.row] is sequence
        started += new
        free = layout.num_seqs - len(scheduler.live)
        assert not scheduler.waiting or layout.group_size > 1 or not free  # groups of one row: no row idles
        for request in abort:
            scheduler.abort(request)
        for sequence in [s for s in scheduler.running if s is not None]:
            if rng.random() < 0.4:
                scheduler.finish(sequence)
    return started, computed


@pytest.mark.parametrize("num_seqs, group_size", [(1, 1), (8, 1), (8, 2), (16, 4), (16, 16), (12, 4)])
@pytest.mark.parametrize("counts", [(1,), (3, 3, 3), (40, 1, 2), (16,) * 5, (0, 2, 0), (1,) * 30])
def test_each_sequence_starts_once_beside_its_prefix(num_seqs, group_size, counts):
    for seed in range(5):
        started, computed = simulate(counts, layout(num_seqs, group_size), seed)
        assert len(set(map(id, started))) == len(started)
        assert collections.Counter(s.request for s in started) == {i: n for i, n in enumerate(counts) if n}
        assert sorted(computed) == [i for i, n in enumerate(counts) if n]  # each prompt is computed once


def test_an_aborted_request_starts_no_more_sequences():
    started, _ = simulate((5, 30, 5), layout(4, 2), 0, abort=(1,))
    counts = collections.Counter(s.request for s in started)
    assert counts[0] == counts[2] == 5 and 1 <= counts[1] <= 4


def test_few_prompts_spread_over_all_prefix_groups():
    prefixes, started = Scheduler(groups(32, 32), layout(64, 16)).schedule()
    assert len(started) == 64 and sorted(p.request for p in prefixes) == [0, 0, 1, 1]
    assert [p.copy_from is None for p in prefixes].count(True) == 2


def test_a_prefix_group_starts_the_next_prompt_before_the_first_has_ended():
    scheduler = Scheduler(groups(4, 4), layout(4, 4))
    _, started = scheduler.schedule()
    assert len(started) == 4
    scheduler.finish(scheduler.running[2])
    prefixes, started = scheduler.schedule()
    assert [(p.request, p.prefix_slot) for p in prefixes] == [(1, 1)] and [s.row for s in started] == [2]


def test_shrinking_moves_the_running_sequences_to_the_first_rows():
    scheduler = Scheduler(groups(4), layout(4, 2))
    _, started = scheduler.schedule()
    by_row = sorted(started, key=lambda s: s.row)
    for row in (0, 2):
        scheduler.finish(by_row[row])
    scheduler.shrink(layout(4, 2).ungrouped(2))
    assert scheduler.running == [by_row[1], by_row[3]]
    assert [(s.row, s.prefix_slot) for s in scheduler.running] == [(0, 0), (1, 0)]


def test_a_request_can_be_aborted_after_shrinking():
    scheduler = Scheduler(groups(2, 2), layout(4, 2))
    _, started = scheduler.schedule()
    for sequence in [s for s in started if s.request == 0]:
        scheduler.finish(sequence)
    scheduler.shrink(layout(4, 2).ungrouped(2))
    assert scheduler.abort(1) == [0, 1] and not len(scheduler.live)
