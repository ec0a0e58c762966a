"""Self-evaluation: the terminals that may end a trace."""

import pytest
from traces_fixtures import STEPS, make_records


def approve_first(approvals):
    """A model that approves the first so many judgements of each node."""
    return lambda request_id, text, j: (
        f"Hm.\nVerdict: {'correct' if j < approvals[request_id[3]] else 'incorrect'} and more"
    )


@pytest.mark.parametrize(
    "approvals, needed, passed",
    [({4: 8, 6: 7}, 1.0, {4}), ({4: 8, 6: 7}, 0.8, {4, 6}), ({4: 3, 6: 4}, 0.5, {6}), ({4: 7, 6: 7}, 1.0, set())],
)
def test_only_terminals_with_enough_approvals_end_a_trace(approvals, needed, passed):
    changes = dict(self_evaluation=8, self_evaluation_pass=needed, direct_examples=20, search_examples=20)
    (record,), engine = make_records(approve_first(approvals), **changes)
    assert {e["nodes"][-1] for e in record["astro"] + record["direct"]} == passed
    assert {t["node"]: t["approved"] for t in record["evaluation"]["terminals"]} == approvals
    ((sampling, requests),) = engine.calls  # all terminals in one call
    assert (sampling.max_tokens, sampling.temperature, [r.n for r in requests]) == (256, 1.0, [8, 8])
    prompt = engine.prompts[0]
    assert "Tom has 2 cats" in prompt and STEPS[0] + STEPS[2] + STEPS[3].strip() in prompt and STEPS[1] not in prompt


def test_without_self_evaluation_no_model_is_asked_and_all_correct_terminals_serve():
    (record,), engine = make_records(approve_first({}), direct_examples=20)
    assert {e["nodes"][-1] for e in record["astro"]} == {4, 6}
    assert not engine.calls and record["evaluation"] is None
