"""The model that writes: its prompts, and completions that are missing."""

import pytest
from traces_fixtures import TOKENIZER, scripted_writer

from astro_jax.errors import AstroError
from astro_jax.policy import Prompt


def test_a_prompt_has_the_chat_template_without_the_system_prompt_of_the_problems():
    writer, engine = scripted_writer(lambda *_: "yes")
    assert writer.complete([Prompt("Well?", 2, ("a",))], [9], 0.5) == [["yes", "yes"]]
    ((sampling, (request,)),) = engine.calls
    assert engine.prompts == ["<user>Well?<assistant>"]
    assert (sampling.max_tokens, sampling.temperature, request.request_id) == (9, 0.5, ("a",))


def test_a_completion_that_is_cut_off_is_none_and_a_prompt_that_is_too_long_has_none():
    writer, _ = scripted_writer(lambda request_id, *_: "…on and on" if request_id == ("cut",) else "yes")
    prompts = [Prompt("a" * n, 1, (name,)) for n, name in ((9, "cut"), (8192, "long"), (9, "fine"))]
    assert writer.complete(prompts, [100] * 3, 1.0) == [[None], [], ["yes"]]
    with pytest.raises(AstroError, match=r"no room for 8192 new tokens; lower traces\.\*_tokens"):
        writer.complete(prompts, [8192] * 3, 1.0)


def test_a_completion_ends_at_a_stop_string():
    writer, _ = scripted_writer(lambda *_: "one two three")
    assert writer.complete([Prompt("Count.", 1, ("a",))], [100], 1.0, ["two"]) == [["one two"]]
    assert TOKENIZER.decode(TOKENIZER.encode_after("one two")) == "one two"
