"""The section `problems`: several sources, evaluation sets, and the number of problems of each use."""

import pytest

from astro_jax import config as cfg
from astro_jax.errors import AstroError

A, B = {"path": "a.jsonl"}, {"path": "b.jsonl"}


def parse(**problems):
    return cfg.parse({"problems": problems}).problems


def test_numbers_of_the_sources_sum_to_the_total_of_a_use():
    p = parse(sources=[A | {"search": 3, "rl": 0}, B | {"search": 4, "rl": 5}], eval=7)
    assert (p.search, p.rl, p.eval) == (7, 5, 7)
    assert (p.counts("search"), p.counts("rl"), p.counts("eval")) == ((3, 4), (0, 5), None)
    p = parse(sources=[A, B], evaluation=[A | {"eval": 2}, B | {"eval": 3}])
    assert (p.search, p.eval, p.counts("eval")) == (1024, 5, (2, 3))
    assert parse(search=9, sources=[A | {"search": 4}, B | {"search": 5}]).search == 9


def test_scale_multiplies_the_numbers_of_the_sources():
    raw = {"sources": [A | {"search": 30, "rl": 0}, B | {"search": 4, "rl": 50}], "max_difficulty_prompts": 60}
    p = cfg.parse({"scale": 0.1, "problems": raw}).problems
    assert (p.counts("search"), p.counts("rl"), p.search, p.rl) == ((3, 1), (0, 5), 4, 5)
    assert (p.eval, p.max_difficulty_prompts) == (102, 6)


@pytest.mark.parametrize(
    "problems, message",
    [
        ({"sources": [A, {}]}, "sources.1: set one of path, dataset, gym"),
        ({"sources": [A | {"dataset": "d"}]}, "set one of path, dataset, gym"),
        ({"sources": [A], "path": "b.jsonl"}, "sources: path, dataset, .* stand inside its mappings"),
        ({"sources": [A], "split": "test"}, "stand inside its mappings"),
        ({"sources": [A], "fields": {}}, "stand inside its mappings"),
        ({"sources": [A | {"search": 3}, B]}, "search: give it in all mappings of a list, or in none"),
        ({"sources": [A | {"search": 3}], "search": 4}, "search: 4, but the sources give 3; set search to 3"),
        ({"sources": [A | {"search": 0}]}, "greater than or equal to 1"),
        ({"sources": [A | {"count": 3}]}, "sources.0.count: no such key; problems.sources has path"),
        ({"sources": 3}, "problems.sources: must be a list"),
        ({"evaluation": [A | {"rl": 3}]}, "evaluation.0.rl: the problems of `rl` are not drawn from evaluation"),
        (
            {"sources": [A | {"eval": 3}], "evaluation": [B]},
            "sources.0.eval: the problems of `eval` are not drawn from",
        ),
        ({"path": "a.jsonl", "held_out": 0}, "held_out: 0 leaves no problem to evaluate on; name a set in evaluation"),
        ({"rl_prompts": "other"}, "rl_prompts: input should be 'shared' or 'disjoint'"),
        ({"max_difficulty_prompts": 0}, "max_difficulty_prompts: input should be greater"),
    ],
)
def test_settings_that_exclude_each_other_are_one_line(problems, message):
    with pytest.raises(AstroError, match=message) as e:
        parse(**problems)
    assert "\n" not in str(e.value)


def test_nothing_may_be_held_out_where_evaluation_has_sets():
    assert parse(path="a.jsonl", held_out=0, evaluation=[B]).held_out == 0


def test_naming_a_source_replaces_the_sources_and_evaluation_sets_of_the_base(tmp_path):
    base = tmp_path / "base.yaml"
    base.write_text(
        "problems: {sources: [{path: a}, {path: b}], evaluation: [{path: t}], held_out: 0, task: math, rl: 5}\n"
    )
    path = str(base)
    kept = cfg.load(path, ["problems.search=3"]).problems
    assert len(kept.sources) == 2 and (kept.held_out, kept.search) == (0, 3)
    own = cfg.load(path, ["problems.path=mine.jsonl"]).problems
    assert (own.path, own.sources, own.evaluation, own.held_out) == ("mine.jsonl", (), (), 0.2)
    assert (own.task, own.rl) == ("math", 5)
    for overrides in (
        ["problems.evaluation=[{path: u}]", "problems.path=p"],
        ["problems.path=p", "problems.evaluation=[{path: u}]"],
    ):
        assert [e.path for e in cfg.load(path, overrides).problems.evaluation] == ["u"]
    changes = tmp_path / "mine.yaml"
    changes.write_text("base: base.yaml\nproblems: {gym: {task: chain_sum}}\n")
    assert cfg.load(str(changes)).problems.sources == ()
    listed = cfg.load(str(changes), ["problems.sources=[{path: c}]"]).problems
    assert [e.path for e in listed.sources] == ["c"] and listed.gym == ()
