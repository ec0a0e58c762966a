"""The steps of wrong attempts in a trace."""

import pytest

from astro_jax.traces.wrong_steps import wrong_spans


def segment(kind, node, text):
    return {"kind": kind, "node": node, "text": text}


STEPS = {n: segment("step", n, f"step {n}.\n") for n in range(1, 6)}


def back(node):
    return segment("backtrack", node, f"back to {node}\n")


DOUBT = segment("reflect", 0, "hm\n")


@pytest.mark.parametrize(
    "segments, wrong",
    [
        ([STEPS[1], STEPS[2]], []),
        ([STEPS[1], STEPS[3], DOUBT, back(1), STEPS[4]], [3]),
        ([STEPS[1], STEPS[3], DOUBT, back(0), STEPS[2], STEPS[5], back(0), STEPS[4]], [1, 3, 2, 5]),
        ([STEPS[1], STEPS[3], back(0), STEPS[1], STEPS[4]], [3]),  # merged at the root: the path is repeated
        ([segment("step", None, "a whole solution")], []),
    ],
)
def test_steps_that_the_trace_goes_back_from_are_wrong(segments, wrong):
    response = "".join(s["text"] for s in segments)
    spans = wrong_spans({"segments": segments, "response": response})
    assert [response[a:b] for a, b in spans] == [STEPS[n]["text"] for n in wrong]
