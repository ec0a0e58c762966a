"""The synthetic policy has the properties that it is asked for."""

import collections

import numpy as np
import pytest
import scipy.stats

from astro_jax.bench.synthetic import ANSWERS, RIGHT, SyntheticVerifier, World
from astro_jax.sampler import Request, SamplingParams


def sample(world, n, problem=0, lines=(), name="x", max_tokens=100):
    policy = world.policy()
    prompt = (*policy.tokenizer.prompt(str(problem)), *lines)
    return policy.generate([Request(prompt, n, (name, problem))], SamplingParams(max_tokens))[0]


def answers(world, completions):
    policy, problem = world.policy(), world.problems(1)[0]
    return [v.answer for v in SyntheticVerifier().judge([policy.response(problem, c) for c in completions])]


@pytest.mark.parametrize("solve", [0.1, 0.5, 0.9])
def test_the_chance_of_a_right_solution_is_as_asked_for(solve):
    world = World(10, 8, solve)
    right = [a == RIGHT for p in range(400) for a in answers(world, sample(world, 2, p))]
    assert np.mean(right) == pytest.approx(solve, abs=4 * (solve * (1 - solve) / 800) ** 0.5)


def test_a_solution_has_its_lines_and_ends_with_an_answer():
    world = World(7, 5, 0.5)
    for c in sample(world, 50):
        assert c.stopped and len(c.token_ids) == 7
        assert (c.token_ids[:-1] < 5).all() and 5 <= c.token_ids[-1] < world.unfinished_token
    assert len(set(answers(world, sample(world, 300)))) > 8 and ANSWERS == 17


def test_the_same_lines_have_the_same_answer_however_they_are_reached():
    world = World(3, 2, 0.5)
    by_path = collections.defaultdict(set)
    for start in ((), (0,), (1,), (1, 0)):
        for c in sample(world, 40, lines=start):
            *lines, last = (*start, *c.token_ids.tolist())
            line, answer = divmod(last - 2, ANSWERS)
            by_path[(*lines, line)].add(answer)
    assert 4 < len(by_path) <= 8 and all(len(found) == 1 for found in by_path.values())


def test_log_probabilities_are_those_of_the_frequencies():
    world = World(4, 6, 0.5)
    completions = sample(world, 4000)
    counts = collections.Counter(int(c.token_ids[0]) for c in completions)
    probabilities = {int(c.token_ids[0]): float(np.exp(c.logprobs[0])) for c in completions}
    assert sum(probabilities.values()) == pytest.approx(1)
    expected = [4000 * probabilities[t] for t in sorted(counts)]
    assert scipy.stats.chisquare([counts[t] for t in sorted(counts)], expected).pvalue > 1e-4


def test_proposals_are_different_lines_and_rollouts_are_independent():
    world = World(4, 8, 0.5)
    policy = world.policy()
    request = Request(tuple(policy.tokenizer.prompt("0")), 8, ("propose",))
    (steps,) = policy.generate([request], SamplingParams(9, stop_token_ids=tuple(range(world.unfinished_token))))
    assert sorted(int(c.token_ids[0]) for c in steps) == list(range(8)) and all(c.stopped for c in steps)
    assert len({int(c.token_ids[0]) for c in sample(world, 8)}) < 8


def test_draws_are_named_by_request_and_do_not_depend_on_the_others():
    world = World(5, 8, 0.5)
    policy = world.policy()
    requests = [Request(tuple(policy.tokenizer.prompt(str(i))), 3, ("a", i)) for i in range(4)]
    together = policy.generate(requests, SamplingParams(50))
    alone = [policy.generate([r], SamplingParams(50))[0] for r in requests]
    for group, single in zip(together, alone, strict=True):
        assert [c.token_ids.tolist() for c in group] == [c.token_ids.tolist() for c in single]
    other = World(5, 8, 0.5, seed=7).policy().generate(requests, SamplingParams(50))
    assert [c.token_ids.tolist() for c in other[0]] != [c.token_ids.tolist() for c in together[0]]


def test_an_unfinished_line_fills_the_completion():
    (c,) = sample(World(5, 8, 0.5, unfinished=1.0), 1, max_tokens=12)
    assert not c.stopped and len(c.token_ids) == len(c.logprobs) == 12
    cut = [not c.stopped for c in sample(World(5, 8, 0.5, unfinished=0.1), 500)]
    assert np.mean(cut) == pytest.approx(1 - 0.9**5, abs=0.08)
    (short,) = sample(World(5, 8, 0.5), 1, max_tokens=3)
    assert not short.stopped and len(short.token_ids) == 3
