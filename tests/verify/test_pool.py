"""The pool of worker processes: order, deadlines, killed workers, replaced workers, hostile answers."""

import os
import signal
import threading
import time
from multiprocessing import forkserver

import hostile
import pytest
from slow_answer import SLOW_ANSWER

from astro_jax.verify import pool
from astro_jax.verify.pool import Call, Timeout, WorkerPool, WorkerStartError


def call(answer, gold="5"):
    """A call that grades a boxed answer."""
    return Call("math", (gold, f"\\boxed{{{answer}}}", "strict"))


def test_outcomes_are_in_order_and_a_slow_call_delays_no_other(workers):
    calls = [call(i) for i in range(40)]
    calls[7] = calls[20] = Call("math", ("5", SLOW_ANSWER, "strict"))
    start = time.monotonic()
    outcomes = workers.run(calls)
    assert time.monotonic() - start < 30
    for i, outcome in enumerate(outcomes):
        if i in (7, 20):
            assert isinstance(outcome.result, Timeout) and 1.0 <= outcome.seconds < 2.5
        else:
            assert outcome.result.correct == (i == 5) and outcome.result.answer == str(i)


def test_killed_worker_loses_only_its_current_call(workers):
    workers.run([call(1)] * 4)  # both workers are ready

    def kill_all(index, outcome):
        if index == 3:
            for w in workers._workers:
                os.kill(w.process.pid, signal.SIGKILL)

    outcomes = workers.run([call(5) for _ in range(60)], kill_all)
    died = [o for o in outcomes if isinstance(o.result, RuntimeError)]
    assert len(died) <= 2  # at most one call for each worker
    assert sum(not isinstance(o.result, Exception) and o.result.correct for o in outcomes) == 60 - len(died)


def test_sigterm_to_the_whole_process_group_leaves_the_workers_at_work(workers):
    """The run saves after it, and verdicts that were lost would be saved as wrong."""
    workers.run([call(1)] * 4)  # both workers are ready
    pids = [w.process.pid for w in workers._workers]
    for pid in (*pids, forkserver._forkserver._forkserver_pid):
        os.kill(pid, signal.SIGTERM)
    assert all(outcome.result.correct for outcome in workers.run([call(5)] * 40))
    assert [w.process.pid for w in workers._workers] == pids


@pytest.mark.parametrize("when", ["before it is ready", "when it is ready"])
def test_worker_that_dies_before_it_takes_its_calls_loses_none_of_them(workers, monkeypatch, when):
    """The pool sent calls to a worker that had just died, and the run ended with a broken pipe."""
    workers.close()
    start, killed = workers._start, []

    def start_and_kill_the_first_two():
        w = start()
        if len(killed) < 2:
            assert when == "before it is ready" or w.connection.poll(60)
            w.process.kill()
            w.process.join()  # else it may live long enough to take a call, and lose it
            killed.append(w)
        return w

    monkeypatch.setattr(workers, "_start", start_and_kill_the_first_two)
    assert [o.result.correct for o in workers.run([call(5), call(6)])] == [True, False]
    assert len(killed) == 2 and not any(w.ready for w in killed)


def test_pool_runs_calls_from_a_thread(workers):
    """Verifiers that use alarm signals work only in the main thread, and find all answers wrong in other threads."""
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.extend(workers.run([call(5), call(6)])))
    thread.start()
    thread.join()
    assert [o.result.correct for o in outcomes] == [True, False]


def test_stream_runs_calls_while_the_thread_that_adds_them_goes_on(workers):
    with workers.stream() as stream:
        slow = stream.add(Call("math", ("5", SLOW_ANSWER, "strict")))
        numbers = [stream.add(call(i)) for i in range(6)]
        deadline = time.monotonic() + 20
        while len(stream._batch.outcomes) < 7 and time.monotonic() < deadline:
            time.sleep(0.01)  # nobody has asked for the outcomes
        later = stream.add(call(5))
        assert (slow, numbers, later) == (0, [1, 2, 3, 4, 5, 6], 7) and len(stream._batch.outcomes) >= 7
        outcomes = stream.outcomes()
    assert isinstance(outcomes[slow].result, Timeout)
    assert [o.result.correct for o in outcomes[1:]] == [i == 5 for i in (*range(6), 5)]
    with workers.stream() as stream:
        assert stream.outcomes() == []


def test_stream_that_nobody_waits_for_ends_its_calls(workers):
    start = time.monotonic()
    with pytest.raises(KeyError), workers.stream() as stream:
        for _ in range(40):
            stream.add(Call("math", ("5", SLOW_ANSWER, "strict")))
        raise KeyError("the sampler failed")
    assert time.monotonic() - start < 3 and not workers._workers and not stream._thread.is_alive()
    assert workers.run([call(5)])[0].result.correct


def test_stream_without_workers_raises_where_its_outcomes_are_read():
    broken = WorkerPool(1, seconds=1.0, memory=2**30, modules=("no_such_module",))
    with broken.stream() as stream:
        stream.add(call(5))
        with pytest.raises(WorkerStartError, match="a worker did not start"):
            stream.outcomes()


def test_workers_are_replaced_after_a_number_of_calls(workers, monkeypatch):
    monkeypatch.setattr(pool, "MAX_CALLS", 5)
    before = {w.process.pid for w in workers._workers}
    workers.run([call(5)] * 60)
    assert not before & {w.process.pid for w in workers._workers}


def test_new_modules_are_imported_by_new_workers(workers):
    workers.run([call(5)])
    before, modules = {w.process.pid for w in workers._workers}, workers.modules
    workers.add_modules(modules)
    assert {w.process.pid for w in workers._workers} == before
    workers.add_modules(("colorsys",))
    assert workers.modules == (*modules, "colorsys") and not workers._workers
    assert workers.run([call(5)])[0].result.correct


def test_hostile_answers_write_no_file_and_end_at_the_deadline(tmp_path):
    path = tmp_path / "written"
    files = set(os.listdir("."))
    workers = WorkerPool(4, seconds=1.0, memory=2**30)
    try:
        outcomes = workers.run([Call("math", ("x^2+1", a, "strict")) for a in hostile.answers(150, path)])
        assert max(o.seconds for o in outcomes) < 2.5
        assert not any(getattr(o.result, "correct", False) for o in outcomes)
        assert not path.exists() and set(os.listdir(".")) == files
        assert [o.result.correct for o in workers.run([call(5)])] == [True]
    finally:
        workers.close()
