"""Prompts that are too long are left out, and stop no run."""

import types

import pytest
from helpers import countdown_tokenizer, tiny_config

from astro_jax import config as cfg
from astro_jax import pipeline
from astro_jax.errors import AstroError
from astro_jax.problems.lengths import drop_too_long, max_prompt_tokens
from astro_jax.types import Problem


@pytest.mark.parametrize(
    "max_length, positions, samples, limit",
    [(60, 128, 0, 40), (200, 128, 0, 108), (200, 128, 4, 68), (60, 128, 4, 40), (10, 128, 0, -10)],
)
def test_a_prompt_must_fit_a_row_and_the_context_with_a_completion(max_length, positions, samples, limit):
    c = cfg.parse({
        "grpo": {"max_length": max_length, "max_completion_length": 20}, "eval": {"max_tokens": 60},
        "problems": {"difficulty_samples": samples},
    })  # fmt: skip
    assert max_prompt_tokens(c, tiny_config(max_positions=positions)) == limit


def test_a_prompt_that_is_too_long_is_dropped_and_counted(capsys):
    tokenizer = countdown_tokenizer(60)
    problems = [Problem(str(n), "1 " * n, "") for n in (3, 9, 4, 12)]
    lengths = [len(tokenizer.prompt(p.prompt)) for p in problems]
    kept, counts = drop_too_long(problems, tokenizer, lengths[2])
    assert kept == [problems[0], problems[2]] and counts == {"prompts": 2, "too long": 2}
    assert f"grpo: 2 of 4 prompts have more than {lengths[2]} tokens and are left out" in capsys.readouterr().err
    assert drop_too_long(problems, tokenizer, max(lengths)) == (problems, {"prompts": 4, "too long": 0})


def test_one_held_out_prompt_that_is_too_long_does_not_stop_the_evaluation():
    problems = [Problem("short", "1 2 3", ""), Problem("long", "1 " * 60, "")]
    run = types.SimpleNamespace(c=cfg.parse({"eval": {"max_tokens": 20}}), problems={"eval": problems}.get)
    engine = types.SimpleNamespace(config=tiny_config(max_positions=64))
    policy = types.SimpleNamespace(engine=engine, tokenizer=countdown_tokenizer(60))
    assert pipeline._eval_prompts(run, policy) == (problems[:1], {"prompts": 1, "too long": 1})


def test_no_prompt_that_fits_is_one_line():
    with pytest.raises(AstroError, match=r"grpo: none of 1 prompts fits: .* leave -5 beside") as e:
        drop_too_long([Problem("a", "1 2 3", "")], countdown_tokenizer(60), -5)
    assert "\n" not in str(e.value)


def test_one_prompt_that_is_too_long_does_not_stop_rl():
    """A run was refused after search and SFT, since a row must hold the longest prompt with a completion."""
    problems = [Problem("short", "1 2 3", ""), Problem("long", "1 " * 60, "")]
    c = cfg.parse({"grpo": {"max_length": 40, "max_completion_length": 20}})
    run = types.SimpleNamespace(c=c, problems={"rl": problems}.get)
    kept, counts = pipeline._rl_prompts(run, "astro-rl", tiny_config(), countdown_tokenizer(60))
    assert kept == problems[:1] and counts == {"prompts": 1, "too long": 1}
