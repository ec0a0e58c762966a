"""The Direct control: independent solutions, and as many examples or tokens as ASTRO has."""

import pytest
from traces_fixtures import TOKENIZER, make_records, pets_tree, write_dataset

from astro_jax.errors import AstroError
from astro_jax.traces import dataset
from astro_jax.traces.direct import interleave, match_size
from astro_jax.traces.pool import PooledExample

PLACES = {"a1": 0, "a2": 100, "b1": 200}  # of examples in the file of the pool


def pool(**tokens):
    """The examples a1 and a2 of a problem, none of another, and b1 of a third."""
    size = dict.fromkeys(PLACES, 1) | tokens
    return [
        [PooledExample(PLACES[name], size[name], 0, b"") for name in names] for names in (("a1", "a2"), (), ("b1",))
    ]


def names(taken):
    return [next(name for name, place in PLACES.items() if place == example.offset) for example in taken]


def test_a_pool_is_taken_in_turns_and_again_from_its_beginning():
    assert names(match_size(interleave(pool()), 5)) == ["a1", "b1", "a2", "a1", "b1"]


@pytest.mark.parametrize(
    "astro_tokens, expected",
    [(5, ["a1"]), (4, []), (24, ["a1"]), (25, ["a1", "b1"]), (60, ["a1", "b1", "a2", "a1"]), (0, [])],
)
def test_the_tokens_match_to_within_half_an_example(astro_tokens, expected):
    assert names(match_size(interleave(pool(a1=10, a2=10, b1=30)), astro_tokens)) == expected


def test_the_same_number_of_tokens_needs_more_examples(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "length", lambda example, tokenizer: len(example["response"]))
    _, astro, few = write_dataset(tmp_path / "few")
    _, same, many = write_dataset(tmp_path / "many", direct_match="tokens")
    size = [sum(len(e["response"]) for e in examples) for examples in (astro, few, many)]
    assert astro == same and len(few) == len(astro) < len(many) and many[: len(few)] == few
    assert abs(size[2] - size[0]) <= max(len(e["response"]) for e in many) / 2 and size[1] < 0.8 * size[0]


def test_a_pool_without_solutions_is_refused_in_one_line():
    with pytest.raises(AstroError, match=r"no sample is right.*raise traces\.direct_samples"):
        match_size([], 5)


# ---- Best of N


def solve(request_id, text, j):
    """Eight samples of a problem: correct, the same again, wrong, correct in other words, cut off, and wrong."""
    problem = request_id[2]
    return ["The answer is 5.", "The answer is 5.", "The answer is 6.", f"{problem}: 5", "…The answer is 5.", "", "?",
            "8"][j]  # fmt: skip


def test_best_of_n_keeps_the_different_correct_samples_of_all_problems_solved_or_not():
    unsolved = pets_tree("p2")
    for node in unsolved.nodes:
        node.correct = False if node.terminal else None
    records, engine = make_records(solve, [pets_tree("p1"), unsolved], direct="best-of-n", direct_tokens=50)
    assert [[e["response"] for e in r["direct"]] for r in records] == [
        ["The answer is 5.", f"{p}: 5"] for p in ("p1", "p2")
    ]
    assert not records[1]["astro"] and all(e["segments"][0]["node"] is None for r in records for e in r["direct"])
    ((sampling, requests),) = engine.calls
    assert (sampling.max_tokens, sampling.temperature, [r.n for r in requests]) == (50, 1.0, [8, 8])
    prompt = TOKENIZER.decode(requests[0].prompt_token_ids)
    assert prompt.startswith("<system>Solve the problem.<user>Tom")  # as in evaluation
    records, _ = make_records(solve, [pets_tree("p1")], direct="best-of-n", direct_samples=1)
    assert [e["response"] for e in records[0]["direct"]] == ["The answer is 5."]
