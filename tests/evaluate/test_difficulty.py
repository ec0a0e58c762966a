"""The difficulty of RL prompts, measured with a scripted engine, against a plain count of the scripted answers."""

import json

import pytest
import scripted
from etils import epath
from scripted import EVAL, PROBLEMS

from astro_jax import config as cfg
from astro_jax import stage_inputs, stages
from astro_jax.errors import AstroError
from astro_jax.evaluate import difficulty
from astro_jax.problems.draws import Candidates
from astro_jax.storage import Shards
from astro_jax.types import Problem
from astro_jax.verify import Verifier

SAMPLES = 4
LONG = [Problem(f"long-{i}", "Let us make 9 from 1 2 3 4 5 6.\n", "9") for i in range(2)]
MAX_TOKENS = max(len(scripted.TOKENIZER.prompt(p.prompt)) for p in PROBLEMS)
ALL = Candidates(PROBLEMS, (len(PROBLEMS),), {})


def settings(low=0.25, high=0.75, **keys):
    return cfg.Problems(difficulty_samples=SAMPLES, rl_pass_rate=(low, high), **keys)


def measure(folder, candidates=ALL, p=None, engine=None):
    store = Shards(epath.Path(folder), "base")
    policy = scripted.policy(engine)
    return difficulty.measure(store, candidates, p or settings(), EVAL, policy, Verifier(), MAX_TOKENS)


def select(folder, candidates=ALL, p=None, min_prompts=1):
    return difficulty.select(Shards(epath.Path(folder), "base"), candidates, p or settings(), min_prompts)


def right(problem):
    """How many of the scripted answers to a problem are correct."""
    kinds = [scripted.kind(("eval", "difficulty", problem.id), j, 1.0) for j in range(SAMPLES)]
    return sum(kind in ("right", "backtrack") for kind in kinds)


def passes(problem):
    return 1 <= right(problem) <= 3


def shards(folder):
    return [[json.loads(line) for line in path.read_text().splitlines()] for path in sorted(folder.iterdir())]


def ids(problems):
    return [p.id for p in problems]


def test_prompts_are_filtered_by_their_measured_pass_rate(tmp_path):
    counts = measure(tmp_path)
    records = [r for shard in shards(tmp_path) for r in shard]
    assert records == [{"problem_id": p.id, "n": SAMPLES, "right": right(p)} for p in PROBLEMS]
    moderate = [p for p in PROBLEMS if passes(p)]
    easy, hard = (sum(right(p) == n for p in PROBLEMS) for n in (SAMPLES, 0))
    assert 0 < len(moderate) < len(PROBLEMS)
    expected = {
        "prompts": len(moderate), "measured": len(PROBLEMS), "too easy": easy, "too hard": hard, "too long": 0,
        "not needed": 0,
    }  # fmt: skip
    assert counts == expected | {"never solved": hard, "always solved": easy}
    assert select(tmp_path, min_prompts=len(moderate)) == (moderate, expected)
    with pytest.raises(
        AstroError, match=rf"{len(moderate)} of 10 prompts .* takes grpo.prompts_per_step={len(moderate) + 1}; "
    ):
        select(tmp_path, min_prompts=len(moderate) + 1)


def test_measurement_ends_with_the_shard_in_which_enough_prompts_have_passed(tmp_path):
    """Shards hold four prompts."""
    passing = [p for p in PROBLEMS if passes(p)]
    for wanted in range(1, len(passing) + 1):
        folder = tmp_path / str(wanted)
        candidates = Candidates(PROBLEMS, (wanted,), {})
        counts = measure(folder, candidates)
        measured = -(-(PROBLEMS.index(passing[wanted - 1]) + 1) // 4) * 4
        assert counts["measured"] == min(measured, len(PROBLEMS)) and counts["prompts"] == wanted
        assert counts["not needed"] == sum(map(passes, PROBLEMS[:measured])) - wanted
        assert select(folder, candidates)[0] == passing[:wanted]


def test_measurement_ends_at_its_limit(tmp_path, capsys):
    counts = measure(tmp_path, p=settings(max_difficulty_prompts=6))
    assert [len(shard) for shard in shards(tmp_path)] == [4, 2] and counts["measured"] == 6
    passed = sum(map(passes, PROBLEMS[:6]))
    assert f"difficulty for base: {passed} of 10 prompts have passed, after 6" in capsys.readouterr().err


def test_stopped_measurement_continues_with_the_shards_that_are_missing(tmp_path):
    counts = measure(tmp_path)
    before = {path.name: path.read_bytes() for path in sorted(tmp_path.iterdir())}
    for missing in (["base-00001.jsonl"], ["base-00001.jsonl", "base-00002.jsonl"], list(before)):
        for name in missing:
            (tmp_path / name).unlink()
        engine = scripted.Scripted()
        assert measure(tmp_path, engine=engine) == counts
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
        asked = [json.loads(line)["problem_id"] for name in missing for line in before[name].splitlines()]
        assert engine.problem_ids == asked


def test_each_source_is_measured_until_it_has_its_number_of_prompts(tmp_path):
    group_of = {p.id: i % 2 for i, p in enumerate(PROBLEMS)}
    groups = [[p for p in PROBLEMS if group_of[p.id] == group] for group in (0, 1)]
    first = next(p for p in groups[0] if passes(p))
    candidates = Candidates(PROBLEMS, (1, 5), group_of)
    counts = measure(tmp_path, candidates)
    prompts = select(tmp_path, candidates)[0]
    # In the order of the candidates, whatever the size of a shard.
    assert prompts == [p for p in PROBLEMS if p == first or (p in groups[1] and passes(p))]
    missing, measured, queue = [1, 5], [], list(PROBLEMS)  # by hand: four of the open groups at a time
    while batch := [p for p in queue if missing[group_of[p.id]] > 0][:4]:
        for p in batch:
            queue.remove(p)
            measured.append(p.id)
            missing[group_of[p.id]] -= passes(p)
    assert [r["problem_id"] for shard in shards(tmp_path) for r in shard] == measured
    assert counts["measured"] == len(measured) < len(PROBLEMS)


def test_prompts_that_are_too_long_are_not_sampled_and_counted(tmp_path):
    candidates = Candidates([LONG[0], *PROBLEMS, LONG[1]], (len(PROBLEMS),), {})
    engine = scripted.Scripted()
    counts = measure(tmp_path, candidates, engine=engine)
    assert (counts["too long"], counts["measured"]) == (2, len(PROBLEMS))
    assert engine.problem_ids == ids(PROBLEMS)
    assert shards(tmp_path)[0][0] == {"problem_id": "long-0", "n": 0, "right": 0}
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert measure(tmp_path, candidates) == counts
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert select(tmp_path, candidates)[0] == [p for p in PROBLEMS if passes(p)]


def test_only_prompts_that_are_too_long_are_one_line(tmp_path):
    candidates = Candidates(LONG, (2,), {})
    assert measure(tmp_path, candidates)["too long"] == 2
    with pytest.raises(AstroError, match=r"0 of 0 prompts .* 2 are too long to measure"):
        select(tmp_path, candidates)


def test_difficulty_is_a_stage_before_rl_only_if_the_config_asks_for_it():
    assert "difficulty" not in stage_inputs.planned(cfg.Config())
    planned = stage_inputs.planned(cfg.parse({"problems": {"difficulty_samples": 4}}))
    assert planned.index("difficulty") == planned.index("direct-rl") - 1


def test_difficulty_is_measured_on_the_base_or_on_the_sft_models_of_the_run():
    def parents(stage, model, names=stages.DEFAULT_STAGES):
        samples = 4 if model else 0
        c = cfg.parse(
            {"stages": names, "problems": {"difficulty_samples": samples, "difficulty_model": model or "base"}}
        )
        return stage_inputs.parents(c, stage)

    without_direct = [name for name in stages.DEFAULT_STAGES if not name.startswith("direct")]
    assert parents("difficulty", "base") == ("base",)
    assert parents("difficulty", "sft") == ("direct-sft", "astro-sft")
    assert parents("difficulty", "sft", without_direct) == ("astro-sft",)
    assert stages.difficulty_models(["direct-rl"], "sft") == ("direct-sft",)
    assert parents("astro-rl", "sft") == ("astro-sft", "difficulty")
    assert parents("astro-rl", None) == ("astro-sft",)
