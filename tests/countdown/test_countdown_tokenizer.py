"""The toy tokenizer: text survives a round trip, numbers and phrases are single tokens."""

import itertools

import pytest
from etils import epath
from helpers import countdown_tokenizer

from astro_jax import countdown, phrases
from astro_jax.countdown import HIT, MISS, Game
from astro_jax.errors import AstroError
from astro_jax.llama import tokenizer

TOKENIZER = countdown_tokenizer(60)
UNKNOWN = TOKENIZER.hf.unk_token_id


def texts():
    game = Game(count=3, max_number=12, max_value=60, ops="+-*/")
    for prompt, response in itertools.islice(countdown.corpus(game, 0, solved=0.5, drills=0.1, recall=0.1), 300):
        yield prompt + response
    for phrase in (phrases.GO_BACK, phrases.RESTART):
        yield f"{countdown.prompt((1, 2), 3)}{phrases.DOUBT}{phrases.UNSURE}{phrase}{countdown.restate((1, 2), 3)}"
    yield phrases.DOUBT + phrases.CORRECT


def test_texts_survive_a_round_trip():
    for text in texts():
        tokens = TOKENIZER.encode(text)
        assert TOKENIZER.decode(tokens) == text and UNKNOWN not in tokens


def test_tokens_of_lines_joined_are_tokens_of_the_text():
    # Search joins the tokens of steps. Traces join the tokens of prompts and responses.
    for text in texts():
        lines = text.splitlines(keepends=True)
        assert [t for line in lines for t in TOKENIZER.encode(line)] == TOKENIZER.encode(text)
        tokens = TOKENIZER.encode(text)
        assert "".join(TOKENIZER.decode([t]) for t in tokens) == text


@pytest.mark.parametrize("text", [*phrases.PHRASES, HIT, MISS, " 0", " 7", " 60", " +", " -", " *", " /", " =", ".\n"])
def test_numbers_operators_and_phrases_are_one_token(text):
    (token,) = TOKENIZER.encode(text)
    assert token != UNKNOWN and TOKENIZER.decode([token]) == text


def test_tokens_of_a_prompt():
    tokens = [TOKENIZER.decode([t]) for t in TOKENIZER.encode("Let us make 12 from 3 4.\n")]
    assert tokens == ["Let us", " make", " 12", " from", " 3", " 4", ".\n"]


@pytest.mark.parametrize("text", [" 61", " x", "42", " -3"])
def test_other_words_and_numbers_are_the_unknown_token(text):
    assert UNKNOWN in TOKENIZER.encode(text)


def test_special_tokens():
    assert len({TOKENIZER.eos_token_id, TOKENIZER.hf.pad_token_id, UNKNOWN}) == 3
    assert TOKENIZER.hf.pad_token_id == 0  # what packing fills rows with
    assert len(TOKENIZER) == len(set(TOKENIZER.hf.get_vocab().values())) == max(TOKENIZER.hf.get_vocab().values()) + 1


def test_it_is_saved_and_loaded(tmp_path):
    TOKENIZER.save(epath.Path(tmp_path))
    again = tokenizer.load(str(tmp_path))
    for text in itertools.islice(texts(), 50):
        assert again.encode(text) == TOKENIZER.encode(text) and again.decode(again.encode(text)) == text
    assert again.eos_token_id == TOKENIZER.eos_token_id


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(AstroError, match="no tokenizer can be read from this folder"):
        tokenizer.load(str(tmp_path))
