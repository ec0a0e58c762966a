"""Comparisons of models on the same problems, on cases worked by hand."""

from astro_jax.evaluate import comparison

RATES = {
    "base": {"a": 0.0, "b": 0.0, "c": 1.0, "d": 0.0},
    "direct-rl": {"a": 0.0, "b": 1.0, "c": 1.0, "d": 0.0},
    "astro-rl": {"a": 0.0, "b": 1.0, "c": 1.0, "d": 1.0, "only here": 1.0},
}


def test_pairs_are_each_model_with_the_base_and_astro_with_direct():
    differences = comparison.paired_differences(RATES)
    assert {pair: d["difference"] for pair, d in differences.items()} == {
        "direct-rl - base": 0.25, "astro-rl - base": 0.5, "astro-rl - direct-rl": 0.25,
    }  # fmt: skip
    assert differences["astro-rl - base"]["n"] == 4
    assert comparison.difference({"a": 1.0}, {"b": 1.0}) == {}


def test_difficulty_of_a_problem_counts_the_other_models_alone():
    """For astro-rl no other model solves a and d, one of two solves b, both solve c."""
    groups = comparison.by_difficulty(RATES)
    assert [(g["difficulty"], g["mean"], g["n"]) for g in groups["astro-rl"]] == [
        ("none right", 0.5, 2), ("half or more right", 1.0, 1), ("all right", 1.0, 1),
    ]  # fmt: skip
    assert [(g["difficulty"], g["mean"]) for g in groups["base"]][0] == ("none right", 0.0)
    assert comparison.by_difficulty({"a": {"p": 1.0}, "b": {"p": 1.0}}) == {}
    assert comparison.by_difficulty({"a": {"p": 1.0}, "b": {"q": 1.0}, "c": {}}) == {"a": [], "b": [], "c": []}
