"""The cost of a whole run."""

import numpy as np
import pytest

from astro_jax import config as cfg
from astro_jax.plan.run_cost import mean_rollouts, run_cost


def test_run_cost_equals_a_count_by_hand():
    c = cfg.parse(
        {
            "problems": {"search": 10, "rl": 20, "eval": 9, "difficulty_samples": 5, "max_difficulty_prompts": 6},
            "search": {
                "num_simulations": 3, "num_parallel_leaves": 2, "num_proposals": 4, "num_rollouts": 5,
                "max_step_tokens": 7, "max_rollout_tokens": 11,
            },
            "traces": {"direct_examples": 1, "search_examples": 3, "max_backtracks": 2, "self_evaluation": 8,
                       "self_evaluation_tokens": 19, "clone": "model", "direct": "best-of-n", "direct_samples": 3,
                       "direct_tokens": 23},
            "sft": {"num_train_epochs": 2}, "eval": {"max_tokens": 29},
            "grpo": {"max_steps": 6, "prompts_per_step": 8, "num_generations": 4, "max_completion_length": 13,
                     "eval_share": 0.25, "eval_steps": 4},
        }
    )  # fmt: skip
    decoded = ("search", "traces", "difficulty", "grpo", "eval")
    programs = [*((stage, "decode") for stage in decoded), ("sft", "step"), ("grpo", "gradient"), ("grpo", "update")]
    rows = [{"stage": stage, "program": program, "tokens_per_s": 100} for stage, program in programs]
    del rows[-1]["tokens_per_s"]
    rows[0]["unshared_tokens_per_s"] = 20
    costs = run_cost(c, prompt_tokens=17, chips=4, rows=rows, roofline_share=0.5, mean_length=1.0)
    assert costs.pop("reached") == 0.5 and costs.pop("mean_length") == 1.0
    total_hours, total_chip_hours = costs.pop("total_hours"), costs.pop("total_chip_hours")
    assert (costs.pop("longest_total_hours"), costs.pop("longest_total_chip_hours")) == (total_hours, total_chip_hours)
    search = costs["search decode"]
    unshared = costs.pop("search decode, no prefix shared")
    assert unshared["hours"] == pytest.approx(5 * search["hours"], abs=0.02)
    assert unshared["tokens"] == search["tokens"]
    tokens = {
        "search decode": 10 * 3 * 2 * 4 * (7 + 5 * 11),
        "traces decode": round(10 * (8.5 * 11 + 4 * 8 * 19 + 3 * 23)),
        "direct-sft step": 2 * 10 * (4 * 17 + 4 * 11),
        "astro-sft step": 2 * 10 * (4 * 17 + (1 + 3 * 2.5) * 11),
        "difficulty of base decode": 6 * 5 * 29,
        "eval decode": 5 * 9 * 2 * 29,
    }
    for name in ("direct-rl", "astro-rl"):
        measured = 2 * 2 * 5  # after steps 4 and 6, two answers to each of 5 prompts
        tokens |= {f"{name} decode": (6 * 8 * 4 + measured) * 13, f"{name} gradient": 6 * 8 * 4 * (17 + 13)}
    assert {name: cost["tokens"] for name, cost in costs.items()} == tokens
    assert costs["astro-rl gradient"]["of"] == ["grpo", "gradient"]
    hours = tokens["search decode"] / 50 / 3600
    assert search["hours"] == round(hours, 2)
    assert search["chip_hours"] == round(4 * hours, 1)
    assert total_hours == pytest.approx(sum(tokens.values()) / 50 / 3600, abs=0.1)
    assert total_chip_hours == pytest.approx(4 * total_hours, abs=0.3)

    shorter = run_cost(c, prompt_tokens=17, chips=4, rows=rows, roofline_share=0.5, mean_length=0.25)
    assert shorter["longest_total_hours"] == total_hours
    for name, length in tokens.items():
        prompts = {"direct-sft step": 2 * 10 * 4 * 17, "astro-sft step": 2 * 10 * 4 * 17}.get(name, 0)
        prompts += 6 * 8 * 4 * 17 * name.endswith("gradient")
        assert shorter[name]["tokens"] == pytest.approx(prompts + (length - prompts) / 4, abs=1), name
        assert shorter[name]["longest_hours"] == costs[name]["hours"]


@pytest.mark.parametrize(
    "search, tokens",
    [({"method": "rounds", "rounds": [2, 6]}, 10 * 8 * 11),
     ({"method": "best-of-n", "num_samples": 9, "num_simulations": 1}, 10 * 9 * 11)],
)  # fmt: skip
def test_the_search_without_proposals_costs_its_rollouts(search, tokens):
    c = cfg.parse({"problems": {"search": 10}, "search": {"max_rollout_tokens": 11} | search})
    rows = [{"stage": "search", "program": "decode", "tokens_per_s": 100000}]
    costs = run_cost(c, prompt_tokens=17, chips=4, rows=rows, roofline_share=0.5, mean_length=1.0)
    assert costs["search decode"]["tokens"] == tokens


@pytest.mark.parametrize(
    "rounds, early_stop",
    [
        ([1, 1], {"correct": 1, "wrong": 0}),
        ([2, 3, 8], {"correct": 1, "wrong": 2}),
        ([4, 4, 8, 8], {"correct": 1, "wrong": 2, "hopeless": 8, "trivial": 16}),
    ],
)
def test_the_mean_number_of_rollouts_is_that_of_simulated_trees(rounds, early_stop):
    s = cfg.parse({"search": {"method": "rounds", "rounds": rounds, "early_stop": early_stop}}).search
    rng, trees = np.random.default_rng(0), 200_000
    rate, sampled = rng.random(trees), np.zeros(trees, int)
    correct, going = np.zeros(trees, int), np.ones(trees, bool)
    for size in rounds:
        sampled[going] += size
        correct[going] += rng.binomial(size, rate[going])
        wrong = sampled - correct
        going &= ~((correct >= early_stop["correct"]) & (wrong >= early_stop["wrong"]))
        going &= ~((correct == 0) & (sampled >= early_stop.get("hopeless", 99)))
        going &= ~((wrong == 0) & (sampled >= early_stop.get("trivial", 99)))
    assert mean_rollouts(s) == pytest.approx(sampled.mean(), rel=0.01)
    if rounds == [1, 1]:  # half of the first rollouts are right
        assert mean_rollouts(s) == pytest.approx(1.5)
    assert mean_rollouts(s.model_copy(update={"early_stop": None})) == sum(rounds)


def test_a_judge_costs_its_judgements_of_each_rollout_and_response():
    judge = {"model": "judge", "num_samples": 5, "max_tokens": 31}
    c = cfg.parse({
        "problems": {"search": 10, "rl": 20, "eval": 9, "difficulty_samples": 5, "max_difficulty_prompts": 6},
        "search": {"method": "rounds", "rounds": [2, 6]}, "verify": {"judge": judge},
        "grpo": {"max_steps": 6, "prompts_per_step": 8, "num_generations": 4},
    })  # fmt: skip
    planned = ("search", "traces", "difficulty", "grpo", "eval")
    rows = [{"stage": stage, "program": "judge", "tokens_per_s": 100} for stage in planned]
    costs = run_cost(c, prompt_tokens=17, chips=4, rows=rows, roofline_share=0.5, mean_length=1.0)
    judged = {"search": 10 * 8, "difficulty": 6 * 5, "direct-rl": 6 * 8 * 4, "astro-rl": 6 * 8 * 4}
    tokens = {f"{stage} judge": 5 * 31 * responses for stage, responses in judged.items()}
    # Evaluation keeps the exact verifier, and templates write the traces.
    assert {name: costs[name]["tokens"] for name in costs if name.endswith(" judge")} == tokens
    assert costs["total_hours"] == pytest.approx(sum(tokens.values()) / 50 / 3600, abs=0.1)


@pytest.mark.parametrize("problems, documents", [({}, 70), ({"path": "p.jsonl"}, 10 + 20)])
def test_base_sft_costs_the_corpus_of_the_game_or_a_solution_of_each_problem(problems, documents):
    c = cfg.parse({
        "problems": {"search": 10, "rl": 20} | problems, "corpus": {"documents": 70}, "stages": ["base"],
        "base_sft": {"num_train_epochs": 2}, "search": {"max_rollout_tokens": 11},
    })  # fmt: skip
    rows = [{"stage": "base", "program": "step", "tokens_per_s": 100}]
    costs = run_cost(c, prompt_tokens=17, chips=4, rows=rows, roofline_share=0.5, mean_length=1.0)
    assert costs["base step"]["tokens"] == 2 * documents * (17 + 11)


def test_the_answers_to_suites_count():
    c = cfg.parse({
        "problems": {"eval": 9}, "stages": ["base", "direct-sft", "eval"],
        "eval": {"suites": ["aime2024", "countdown:size=7", "own.jsonl"], "num_samples": 16, "max_tokens": 10},
    })  # fmt: skip
    rows = [{"stage": "eval", "program": "decode", "tokens_per_s": 100}]

    def tokens(c):
        costs = run_cost(c, prompt_tokens=17, chips=4, rows=rows, roofline_share=0.5, mean_length=1.0)
        return costs["eval decode"]["tokens"]

    assert tokens(c) == 2 * (2 * 9 + 16 * (30 + 7)) * 10
    limited = c.model_copy(update={"eval": c.eval.model_copy(update={"limit": 20})})
    assert tokens(limited) == 2 * (2 * 9 + 16 * (20 + 7 + 20)) * 10
