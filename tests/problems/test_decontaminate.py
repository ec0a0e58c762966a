"""Training problems that overlap with evaluation problems are removed, and no others."""

import random

import pytest

from astro_jax.problems.decontaminate import MIN_NGRAMS, jaccard, ngrams, remove_overlapping
from astro_jax.types import Problem

CATS = "Tom has 5 red cats and buys 3 blue ones at the market. How many cats has he now?"


def sentences(n, seed):
    """n random sentences of 3 to 40 words, then n / 2 variants of them with some other words."""
    rng = random.Random(seed)
    vocabulary = [f"word{i}" for i in range(300)]
    originals = [[rng.choice(vocabulary) for _ in range(rng.randint(3, 40))] for _ in range(n)]
    variants = [
        [rng.choice(vocabulary) if rng.random() < rng.choice((0.0, 0.02, 0.1)) else word for word in sentence]
        for sentence in originals[: n // 2]
    ]
    return [" ".join(sentence) for sentence in originals + variants]


@pytest.fixture(scope="module")
def all_pairs():
    """Evaluation texts, problems, and by problem the Jaccard index and contained share of all pairs, by brute force."""
    texts = sentences(300, seed=0)
    evaluation, problems = texts[:300], [Problem(str(i), text, "") for i, text in enumerate(texts[300:])]
    evaluation_ngrams = [ngrams(text) for text in evaluation]
    similarity = {}
    for p in problems:
        own = ngrams(p.prompt)
        contained = [
            len(own & other) / size for other in evaluation_ngrams if (size := min(len(own), len(other))) >= MIN_NGRAMS
        ]
        similarity[p.id] = max(jaccard(own, other) for other in evaluation_ngrams), max(contained, default=0.0)
    return evaluation, problems, similarity


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9])
def test_removed_problems_are_those_of_a_brute_force_over_all_pairs(all_pairs, threshold):
    evaluation, problems, similarity = all_pairs
    kept, removed = remove_overlapping(problems, evaluation, threshold)
    near = {id for id, (index, _) in similarity.items() if index >= threshold}
    contained = {id for id, (_, share) in similarity.items() if share >= threshold} - near
    exact = sum(p.prompt in evaluation for p in problems)
    assert {p.id for p in problems} - {p.id for p in kept} == near | contained
    assert removed == {"exact": exact, "near": len(near) - exact, "contained": len(contained)}
    assert exact and removed["near"] and contained


def test_contained_problem_is_removed_in_both_directions_but_not_a_short_phrase():
    context = " ".join(f"word{i}" for i in range(200))
    long, phrase = f"{context} {CATS} {context}", "How many cats has he now?"
    counts = {"exact": 0, "near": 0, "contained": 1}
    assert remove_overlapping([Problem("x", long, "")], [CATS], 0.7) == ([], counts)
    assert remove_overlapping([Problem("x", CATS, "")], [long], 0.7) == ([], counts)
    for a, b, threshold in [(phrase, long, 0.7), (long, phrase, 0.7), (CATS, context, 0.7), (CATS, long, 1.0)]:
        assert not remove_overlapping([Problem("x", a, "")], [b], threshold)[1].total()


def test_other_numbers_make_another_problem_and_other_spaces_do_not():
    problems = [
        Problem("numbers", CATS.replace("5", "7").replace("3", "4"), ""),
        Problem("spaces", CATS.upper().replace(" ", "  ").replace(".", " ."), ""),
        Problem("longer", CATS + " Explain.", ""),
    ]
    kept, removed = remove_overlapping(problems, [CATS], 0.7)
    assert [p.id for p in kept] == ["numbers"] and removed == {"exact": 1, "near": 1, "contained": 0}
    assert [p.id for p in remove_overlapping(problems, [CATS], 1.0)[0]] == ["numbers", "longer"]


@pytest.mark.parametrize("a, b", [("12 + 3", "1 + 23"), ("5 + 3", "5 * 3"), ("x^2 - 1", "x^2 + 1"), ("x < 2", "x > 2")])
def test_other_signs_make_another_problem(a, b):
    problems = [Problem("x", f"What is {a}?", "")]
    assert remove_overlapping(problems, [f"What is {b}?"], 1.0)[1]["exact"] == 0
    assert remove_overlapping(problems, [f"what  is {a}"], 1.0)[1]["exact"] == 1
