"""Verification that overlaps sampling: the same rewards, in workers that judge while others are still sampled."""

import contextlib
import zlib

import pytest
from etils import epath
from grpo_fixtures import PROBLEMS, fresh, make_shared
from helpers import assert_trees_equal

from astro_jax import config as cfg
from astro_jax.train.rewards import Rewarder
from astro_jax.types import Problem
from astro_jax.verify import Verifier, tasks
from astro_jax.verify.pool import Call
from astro_jax.verify.verifier import VerdictStream

MATH = [Problem(p.id, p.prompt, "1", task="math") for p in PROBLEMS]


@pytest.fixture(scope="module")
def verifier():
    """A verifier whose workers judge an answer that follows from the text."""

    def call(response, rule):
        return Call("math", ("1", f"\\boxed{{{zlib.crc32(response.text.encode()) % 2}}}", rule))

    with pytest.MonkeyPatch.context() as patch, contextlib.closing(Verifier(cfg.Verify(num_workers=1))) as verifier:
        patch.setitem(tasks.VERIFIERS, "math", tasks.WorkerVerifier(call))
        yield verifier


def without_times(metrics):
    return {name: value for name, value in metrics.items() if not name.startswith("seconds_")}


def test_step_is_bitwise_equal_with_and_without_overlap(verifier, tmp_path, monkeypatch):
    trainer = make_shared(MATH)
    trainer.rewarder = Rewarder(verifier, None, epath.Path(tmp_path / "rl"))

    state, metrics = trainer.step(fresh(), 1)
    after_one = dict(verifier.counts.by_status)
    assert after_one.keys() == {"correct", "wrong", "unparsed"}  # unparsed: cut off
    serial = make_shared(MATH)
    serial.rewarder = Rewarder(verifier, None, epath.Path(tmp_path / "serial"))
    monkeypatch.setattr(serial.rewarder, "stream", lambda *_: contextlib.nullcontext())
    expected, serial_metrics = serial.step(fresh(), 1)
    assert_trees_equal(state, expected)
    assert without_times(metrics) == without_times(serial_metrics)
    assert verifier.counts.by_status == {status: 2 * n for status, n in after_one.items()}
    records = [(tmp_path / name / "rewards" / "step-00001.jsonl") for name in ("rl", "serial")]
    assert records[0].read_bytes() == records[1].read_bytes()
    # After a kill the record decides, and nobody is asked.
    again, replayed = trainer.step(fresh(), 1)
    assert_trees_equal(again, state)
    assert without_times(replayed) == without_times(metrics)
    assert verifier.counts.by_status == {status: 2 * n for status, n in after_one.items()}


def test_responses_are_judged_before_the_last_one_has_ended(verifier, monkeypatch):
    trainer, events = make_shared(MATH), []
    trainer.rewarder = Rewarder(verifier)

    def add(stream, index, response, add=VerdictStream.add):
        events.append((index, trainer.engine.stats.tokens))
        add(stream, index, response)

    monkeypatch.setattr(VerdictStream, "add", add)
    groups = trainer.generate_rollouts(trainer._reshard(fresh().params), 0)
    assert sorted(index for index, _ in events) == list(range(12))
    assert len({tokens for _, tokens in events}) > 1  # the sampler went on between them
    for index, (g, j) in enumerate((g, j) for g in range(3) for j in range(4)):
        text = trainer.tokenizer.decode(groups[g][j].completion_ids.tolist())
        expected = groups[g][j].stopped and zlib.crc32(text.encode()) % 2 == 1
        assert groups[g][j].verdict.correct == expected, index
