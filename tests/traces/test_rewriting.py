"""Segments that a model writes: the prompts, the retries, and the template's segment in their place."""

import types

import pytest
from traces_fixtures import STEPS, make_records, pets_tree, rewrite_well, scripted_writer

from astro_jax import config as cfg
from astro_jax.phrases import CORRECT, DOUBT, GO_BACK, UNSURE
from astro_jax.traces import dataset
from astro_jax.verify import verify

WRONG_THEN_CORRECT = [1, 2, 3, 4]  # a trace of pets_tree
MODEL = dict(clone="model", search_examples=20)


def example_of(record, nodes):
    return next(e for e in record["astro"] if e["nodes"] == nodes)


def test_the_model_writes_steps_and_backtracks_with_the_trace_so_far_in_the_prompt():
    (record,), engine = make_records(rewrite_well, **MODEL)
    example = example_of(record, WRONG_THEN_CORRECT)
    assert example["response"] == (
        "So, First he buys 2 cats.\nSo, The answer is 7.\n" + DOUBT + UNSURE +
        GO_BACK + " said this: First he buys 2 cats.\nSo, Then 2 + 3 = 5.\nSo, The answer is 5.\n" + DOUBT + CORRECT
    )  # fmt: skip
    assert example["rewrites"] == {"segments": 5, "accepted": 5}
    assert verify(pets_tree().problem, example["response"], True).correct
    prompt = next(p for p in engine.prompts if "Draft of the next step: Then 2 + 3 = 5.\n" in p and UNSURE in p)
    assert "Solution so far:\nSo, First he buys 2 cats.\nSo, The answer is 7.\n" + DOUBT in prompt
    assert {(sampling.max_tokens, sampling.temperature) for sampling, _ in engine.calls} == {(128, 0.7)}
    for e in record["direct"]:
        assert e["rewrites"]["accepted"] == 2 * (len(e["nodes"]) == 2) + 3 * (len(e["nodes"]) == 3)


def test_traces_written_together_equal_traces_written_alone():
    trees = [pets_tree(f"pets {i}") for i in range(6)]
    together, engine = make_records(rewrite_well, trees, clone="model")
    alone = [make_records(rewrite_well, [tree], clone="model")[0][0] for tree in trees]
    assert together == alone and len(set(engine.request_ids)) == len(engine.request_ids)
    examples = [e for record in together for e in record["astro"] + record["direct"]]
    segments = [sum(s["kind"] != "reflect" for s in e["segments"]) for e in examples]
    assert len(engine.calls) <= max(segments) and len(engine.calls[0][1]) == len(segments) == 6 * 8


def test_the_model_may_write_only_the_reflections():
    (record,), _ = make_records(rewrite_well, phrases="model", search_examples=20)
    example = example_of(record, WRONG_THEN_CORRECT)
    assert example["response"] == (
        STEPS[0] + STEPS[1] + " Sure? No, it looks odd.\n" + GO_BACK + " wrote: First he buys 2 cats.\n" + STEPS[2]
        + STEPS[3] + " Sure?  Yes, it looks right.\n"
    )  # fmt: skip
    assert example["rewrites"] == {"segments": 2, "accepted": 2}


@pytest.mark.parametrize(
    "failures, retries, accepted, attempts", [(1, 2, True, 1), (2, 2, True, 2), (3, 2, False, 3), (1, 0, False, 1)]
)
def test_a_rejected_segment_is_sampled_again_and_then_taken_from_the_template(failures, retries, accepted, attempts):
    def fail_first(request_id, text, j):
        return "So 99." if "Draft" in text and request_id[-1] < failures else rewrite_well(request_id, text, j)

    (record,), engine = make_records(fail_first, clone="model", clone_retries=retries, search_examples=0)
    (example,) = record["astro"]
    steps = len(example["nodes"])
    assert example["response"].startswith("So, " if accepted else ("First", "So 6", "By"))
    counts = {"segments": steps, "numbers": attempts * steps} | ({"accepted": steps} if accepted else {})
    assert example["rewrites"] == counts
    assert len(set(engine.request_ids)) == len(engine.request_ids)  # each attempt draws anew


def test_a_trace_longer_than_the_models_context_goes_on_by_the_template():
    writer, engine = scripted_writer(rewrite_well)
    c = cfg.Traces(clone="model", direct_examples=20)
    dataset.make_records([pets_tree()], c, 0, writer)
    longest_prompt = max(len(r.prompt_token_ids) for r in engine.calls[0][1])
    engine.config = types.SimpleNamespace(max_positions=longest_prompt + 128)
    (record,) = dataset.make_records([pets_tree()], c, 0, writer)
    example = example_of(record, [1, 3, 4])
    assert example["response"].startswith("So, First he buys 2 cats.\n" + STEPS[2])
    assert example["rewrites"] == {"segments": 3, "accepted": 1, "too long to ask": 2}  # without retries


def test_a_last_step_that_changes_the_answer_is_rejected():
    def change_answer(request_id, text, j):  # all its numbers are known, but the verifier reads another answer
        return "7 dogs, or 2" if "next step: The answer is 7." in text else rewrite_well(request_id, text, j)

    (record,), _ = make_records(change_answer, **MODEL)
    example = example_of(record, WRONG_THEN_CORRECT)
    assert STEPS[1] in example["response"] and "So, The answer is 5.\n" in example["response"]
    assert example["rewrites"] == {"segments": 5, "accepted": 4, "final answer": 3}


def test_a_step_longer_than_clone_tokens_is_rewritten_and_not_cut_off():
    tree = pets_tree()
    (record,), engine = make_records(rewrite_well, [tree], clone="model", clone_tokens=2)
    assert all("cut off" not in e["rewrites"] for e in record["astro"])
    limits = {limit for _, requests in engine.calls for r in requests for limit in r.max_tokens}
    encode = scripted_writer(rewrite_well)[0].policy.tokenizer.encode_after
    assert min(limits) > 2 and max(limits) >= 2 * max(len(encode(n.text)) for n in tree.nodes)
