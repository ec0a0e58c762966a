"""Continuous batching on the host, played with random lengths: what must hold whatever happens."""

import collections
import random

import pytest

from astro_jax.sampler.cache import Shape
from astro_jax.sampler.schedule import NONE, Schedule


def play(counts, shape, seed, drop=()):
    """Run until nothing waits; returns how often each (request, sample) began, and the loads without a source."""
    rng = random.Random(seed)
    schedule, begun, fresh, holds = Schedule(counts, shape), collections.Counter(), [], {}
    while schedule.waiting or len(schedule.live):
        loads, rows = schedule.fill()
        for load in loads:
            users = schedule.live[schedule.live // shape.lane == load.slot // shape.prefixes]
            for row in set(users) - set(rows):  # no prefix is replaced while a row looks at it
                assert schedule.slot[row] != load.slot % shape.prefixes
            if load.source is None:
                fresh.append(load.request)
            else:
                assert holds[load.source] == load.request  # what is copied is there
            holds[load.slot] = load.request
        for row in rows:
            request = int(schedule.request[row])
            begun[request, int(schedule.sample[row])] += 1
            assert holds[row // shape.lane * shape.prefixes + int(schedule.slot[row])] == request
        free = [r for r in range(shape.rows) if schedule.request[r] == NONE]
        assert not schedule.waiting or shape.lane > 1 or not free  # one row a lane: none idles while samples wait
        for request in drop:
            schedule.drop(request)
        for row in map(int, schedule.live):
            if rng.random() < 0.4:
                schedule.end(row)
    return begun, fresh


@pytest.mark.parametrize("rows, lane", [(1, 1), (8, 1), (8, 2), (16, 4), (16, 16), (12, 4)])
@pytest.mark.parametrize("counts", [(1,), (3, 3, 3), (40, 1, 2), (16,) * 5, (0, 2, 0), (1,) * 30])
def test_every_sample_begins_once_beside_its_prefix(rows, lane, counts):
    for seed in range(5):
        begun, fresh = play(counts, Shape(rows, lane, 1, 1, 8), seed)
        assert begun == {(i, j): 1 for i, n in enumerate(counts) for j in range(n)}
        assert sorted(fresh) == [i for i, n in enumerate(counts) if n]  # each prefix is computed once


def test_a_dropped_request_begins_nothing_more():
    begun, _ = play((5, 30, 5), Shape(4, 2, 1, 1, 8), 0, drop=(1,))
    assert {i for i, _ in begun} == {0, 1, 2} and sum(n for (i, _), n in begun.items() if i == 1) <= 4


def test_few_groups_spread_over_all_lanes():
    loads, rows = Schedule((32, 32), Shape(64, 16, 1, 1, 8)).fill()
    assert len(rows) == 64 and sorted(load.request for load in loads) == [0, 0, 1, 1]
    assert [load.source is None for load in loads].count(True) == 2


def test_a_lane_begins_the_next_group_before_the_last_sample_of_the_first_has_ended():
    schedule = Schedule((4, 4), Shape(4, 4, 1, 1, 8))
    assert len(schedule.fill()[1]) == 4
    schedule.end(2)
    loads, rows = schedule.fill()
    assert [load.request for load in loads] == [1] and rows == [2]
