"""Responses that begin inside a trace."""

import json
import types

import numpy as np
import pytest
from etils import epath
from grpo_fixtures import CONFIG, GRPO, PROBLEMS, FunctionVerifier, Letters, fresh, make_shared
from helpers import assert_trees_equal, tiny_params

from astro_jax import config as cfg
from astro_jax import pipeline
from astro_jax.errors import AstroError
from astro_jax.train.restarts import Beginning, Restarts


class Continuing(Letters):
    def encode_after(self, text):
        return self.prompt(text)


def trace(problem, *segments):
    return {"problem_id": problem.id, "prompt": problem.prompt, "segments": [{"text": text} for text in segments]}


TRACES = [trace(p, "bb", "cc", "dd") for p in PROBLEMS[:4]] + [trace(PROBLEMS[0], "b" * 30, "c")]


def make_restarts(rate=0.5, positions=10_000, **settings):
    return Restarts(GRPO.model_copy(update={"restart_rate": rate} | settings), TRACES, Continuing(), positions)


def test_beginnings_are_whole_segments_that_leave_room_for_a_completion():
    restarts = make_restarts(1.0)
    drawn = {restarts.draw("p0", i).text for i in range(50)}
    assert drawn == {"bb", "bbcc"}  # neither the whole trace, nor the segment of 30 tokens
    assert restarts.longest == 7
    assert restarts.draw("p6", 0) == Beginning()  # no trace
    share = np.mean([bool(make_restarts(0.25).draw("p1", i).text) for i in range(400)])
    assert share == pytest.approx(0.25, abs=0.07)
    assert make_restarts(1.0, GRPO.max_completion_length + 5).longest == 5  # the model's context is smaller than a row
    with pytest.raises(AstroError, match=r"grpo\.restart_rate=1: no trace .* raise grpo\.max_length"):
        make_restarts(1.0, max_length=16)


def test_only_the_continuation_is_learned_and_the_verifier_sees_both():
    seen = []
    verifier = FunctionVerifier(lambda r: bool(seen.append(r)))
    trainer = make_shared(verifier=verifier, restarts=make_restarts())
    groups = trainer.generate_rollouts(tiny_params(CONFIG), 0)
    indices = trainer._prompt_indices(0)
    begins = [trainer._beginning(PROBLEMS[j], 0, place) for place, j in enumerate(indices)]
    assert 0 < sum(bool(b.text) for b in begins) < 3
    responses = iter(seen)
    for group, begin, j in zip(groups, begins, indices, strict=True):
        for r in group:
            assert list(r.prompt_ids) == [*Letters().prompt(PROBLEMS[j].prompt), *begin.token_ids]
            assert next(responses).text == begin.text + Letters().decode(r.completion_ids.tolist())
        micro_batches = trainer._pack(group, np.ones(4)).micro_batches
        learned = sum(int((m.batch.loss_weights > 0).sum()) for m in micro_batches)
        assert learned == sum(len(r.completion_ids) for r in group)


def test_step_with_restarts_is_repeated_bitwise():
    (a, metrics), (b, _) = (make_shared(restarts=make_restarts()).step(fresh(), 1) for _ in range(2))
    assert_trees_equal(a, b)
    assert 0 < metrics["restarted_rate"] <= 1


def test_the_control_does_not_begin_inside_a_trace_that_searches(tmp_path):
    for kind in ("astro", "direct"):
        line = json.dumps(trace(PROBLEMS[0], kind[0], "c"))
        (tmp_path / f"{kind}.jsonl").write_text(line + "\n")
    c = cfg.Config(grpo=GRPO.model_copy(update={"restart_rate": 1.0}))
    run = types.SimpleNamespace(c=c, folder_of=lambda stage: epath.Path(tmp_path))
    for stage, text in (("direct-rl", "d"), ("astro-rl", "a"), ("grpo", "a")):
        assert pipeline._restarts(run, stage, CONFIG, Continuing()).draw("p0", 0).text == text
