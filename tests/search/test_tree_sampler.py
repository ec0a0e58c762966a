"""Steps, their scores and their ends."""

import math

import pytest
from player import EOS, SMALL_SEARCH, TOKENIZER, Player, completion, policy, problems

from astro_jax import config as cfg
from astro_jax.countdown import HIT, MISS
from astro_jax.phrases import CORRECT, DOUBT, UNSURE
from astro_jax.search.run import search
from astro_jax.search.tree import Tree
from astro_jax.search.tree_sampler import TreeSampler, priors
from astro_jax.verify import Verifier

SHORT, LONG = " 3 * 2 = 6.\n", " 3 * 2 = 6, left 4 6.\n"


def sampler(**changes):
    return TreeSampler(cfg.Search(**changes), policy(), Verifier())


@pytest.mark.parametrize("step_end, others", [(".\n", set()), ("\n", {HIT, MISS})])
def test_a_step_ends_with_a_token_of_that_ending_or_with_the_end_token(step_end, others):
    step_ends = sampler(step_end=step_end).step_ends
    texts = {TOKENIZER.decode([token]) for token in step_ends if token != EOS}
    assert EOS in step_ends and texts == {".\n", DOUBT, UNSURE, CORRECT} | others


def test_a_total_score_makes_long_steps_unlikely_and_a_mean_score_does_not():
    def scores(prior):
        return [sampler(prior=prior).score(completion(text).logprobs - math.log(2)) for text in (SHORT, LONG)]

    short, long = scores("total")
    assert short > long + 1
    short, long = scores("mean")
    assert short == pytest.approx(long)


@pytest.mark.parametrize("prior", ["total", "mean"])
def test_priors_are_the_normalized_probabilities_of_siblings(prior):
    s = sampler(prior=prior)
    exponents = (1 / len(TOKENIZER.encode(SHORT)), 1 / len(TOKENIZER.encode(LONG))) if prior == "mean" else (1, 1)
    a, b = 0.6 ** exponents[0], 0.2 ** exponents[1]
    scores = {"a": s.score(completion(SHORT, 0.6).logprobs), "b": s.score(completion(LONG, 0.2).logprobs)}
    assert priors(scores) == {"a": pytest.approx(a / (a + b)), "b": pytest.approx(b / (a + b))}
    assert priors({}) == {}


def test_a_completion_is_split_into_steps_and_its_unfinished_rest():
    step = " 3 * 2 = 6, left 4 6.\n"
    texts = [s.text for s in sampler().split_into_steps(completion(step + " 6 + 4 = 10" + HIT, ended=True))]
    assert texts == [step, " 6 + 4 = 10" + HIT]
    texts = [s.text for s in sampler().split_into_steps(completion(step, stopped=False))]
    assert texts == [step, ""]


def test_an_end_token_behind_a_line_belongs_to_the_step_of_the_line():
    lines = [" 3 * 2 = 6, left 4 6.\n", " 6 + 4 = 10" + HIT]
    steps = sampler(step_end="\n").split_into_steps(completion("".join(lines), ended=True))
    assert [s.text for s in steps] == lines and steps[1].tokens[-1] == EOS
    steps = sampler(step_end="\n").split_into_steps(completion("".join(lines), stopped=False))
    assert [s.text for s in steps] == [*lines, ""]  # cut off, so not the same as the complete step


class Log(Player):
    """A player that keeps the lengths of all completions of each call."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def generate(self, params, requests, sampling, **options):
        groups = super().generate(params, requests, sampling, **options)
        self.calls.append(
            [(r.request_id[1], len(c.token_ids)) for r, g in zip(requests, groups, strict=True) for c in g]
        )
        return groups


class LoggedVerifier(Verifier):
    """A verifier that finds the first correct solution of each problem in what the player has sampled so far."""

    def __init__(self, player):
        super().__init__()
        self.player, self.solved_at = player, {}

    def judge(self, responses, use="reward"):
        verdicts, calls = super().judge(responses, use), self.player.calls
        is_rollouts = [x for x, _ in calls[-1]] == [r.problem.id for r in responses]  # one verdict a completion
        for i, (response, verdict) in enumerate(zip(responses, verdicts, strict=True)):
            name = response.problem.id
            sampled = [*(x for call in calls[:-1] for x in call), *(calls[-1][: i + 1] if is_rollouts else calls[-1])]
            if verdict.correct:
                self.solved_at.setdefault(name, sum(n for owner, n in sampled if owner == name))
        return verdicts


@pytest.mark.parametrize("changes", [{}, {"method": "best-of-n"}, {"method": "rounds", "rounds": (2, 4)}])
def test_a_tree_is_solved_at_the_tokens_of_its_first_correct_solution(changes):
    player = Log()
    verifier = LoggedVerifier(player)
    trees = search(problems(6), cfg.Search(**SMALL_SEARCH | changes), policy(player), verifier)
    assert {t.problem.id: t.solved_at for t in trees if t.solved_at} == verifier.solved_at
    assert 0 < len(verifier.solved_at) and any(t.solved_at < t.sampled_tokens for t in trees if t.solved_at)
    assert [Tree.from_record(t.record()).solved_at for t in trees] == [t.solved_at for t in trees]
