"""Tokenizers of every kind: texts survive encoding and decoding, chat templates, and end tokens."""

import json
import shutil

import numpy as np
import pytest
from etils import epath
from helpers import bucket, countdown_tokenizer, one_device, tiny_config, tiny_params
from tokenizer_folders import (
    CHAT,
    SCRIPTS,
    TEXT,
    byte_level_folder,
    llama3_folder,
    sentencepiece_folder,
    smollm2_file,
    tiktoken_folder,
)

from astro_jax import config as cfg
from astro_jax.errors import AstroError
from astro_jax.llama import checkpoint, hf
from astro_jax.llama.tokenizer import load as load_tokenizer
from astro_jax.policy import Policy
from astro_jax.sampler import Engine, Request, SamplingParams

KINDS = {f.__name__: f for f in (byte_level_folder, sentencepiece_folder, tiktoken_folder, llama3_folder, smollm2_file)}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request, tmp_path_factory):
    return load_tokenizer(str(KINDS[request.param](tmp_path_factory.mktemp("tokenizer"))))


@pytest.fixture(scope="module")
def sentencepiece_source(tmp_path_factory):
    """A folder with a SentencePiece model, trained once; tests must not change it."""
    return sentencepiece_folder(tmp_path_factory.mktemp("sentencepiece"))


# ---- Any text


@pytest.mark.parametrize("text", [TEXT, *SCRIPTS, "", " ", "\n", "  x", "\n\n x"], ids=lambda t: ascii(t[:6]))
def test_any_text_survives_byte_for_byte(tokenizer, text):
    assert tokenizer.hf.decode(tokenizer.encode(text), skip_special_tokens=True) == text
    assert tokenizer.decode(tokenizer.encode_after(text)) == text


def test_text_encoded_line_by_line_survives_byte_for_byte(tokenizer):
    lines = TEXT.splitlines(keepends=True)
    assert "".join(tokenizer.decode(tokenizer.encode_after(line)) for line in lines) == TEXT


def test_tokens_of_many_texts_are_counted_as_those_of_each(tokenizer):
    texts = [*TEXT.splitlines(keepends=True), " 3", "", "\n"]
    assert tokenizer.count_after(texts) == [len(tokenizer.encode_after(text)) for text in texts]
    assert tokenizer.count_after([]) == []


def test_each_token_of_a_text_starts_where_its_characters_do(tokenizer):
    text = "One line.\nTwo lines, 12.\n"
    starts, token_ids = tokenizer.starts_after(text), tokenizer.encode_after(text)
    assert len(starts) == len(token_ids) and starts == sorted(starts)
    first = [i for i, start in enumerate(starts) if start < text.index("Two")]
    assert tokenizer.decode([token_ids[i] for i in first]).strip() == "One line."


def test_saved_tokenizer_encodes_alike(tokenizer, tmp_path):
    tokenizer.save(epath.Path(tmp_path))
    saved = load_tokenizer(str(tmp_path))
    assert saved.encode(TEXT) == tokenizer.encode(TEXT) and saved.encode_after(" x") == tokenizer.encode_after(" x")
    assert saved.stop_token_ids == tokenizer.stop_token_ids and len(saved) == len(tokenizer)


def test_tokenizer_is_saved_into_a_bucket(monkeypatch):
    remote = bucket(monkeypatch) / "model"
    remote.mkdir(parents=True)
    tokenizer, text = countdown_tokenizer(9), "Let us make 3 from 1 2.\n"
    tokenizer.save(remote)
    assert load_tokenizer(str(remote)).encode(text) == tokenizer.encode(text)


# ---- Chat templates


@pytest.mark.parametrize("system", [None, "Think first. "])
def test_chat_prompt_has_the_ids_of_apply_chat_template(tmp_path, system):
    tokenizer = load_tokenizer(str(byte_level_folder(tmp_path, CHAT)), cfg.Chat(template=True, system=system))
    messages = [{"role": "user", "content": "17 + 26?"}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    ids = tokenizer.prompt("17 + 26?")
    assert ids == tokenizer.hf.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids.count(tokenizer.hf.bos_token_id) == 1 and ids[0] == tokenizer.hf.bos_token_id
    assert ("system" in tokenizer.hf.decode(ids)) == (system is not None)


def test_chat_without_a_chat_template_is_an_error_of_one_line(tmp_path):
    tokenizer = load_tokenizer(str(byte_level_folder(tmp_path)), cfg.Chat(template=True))
    with pytest.raises(AstroError, match=r"chat template cannot be used .*set chat\.template=false") as e:
        tokenizer.prompt("17 + 26?")
    assert "\n" not in str(e.value)


def test_an_empty_object_as_tokenizer_json_is_an_error_of_one_line(tmp_path):
    byte_level_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(AstroError, match="no tokenizer can be read from this folder") as e:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(e.value)


# ---- End tokens


@pytest.mark.parametrize(
    "file, eos_token_id, stop_token_ids",
    [
        ("generation_config.json", 2, (2,)),
        ("generation_config.json", 9, (2, 9)),
        ("generation_config.json", [9, 8], (2, 9, 8)),
        ("generation_config.json", [8, 2], (2, 8)),
        ("config.json", 9, (2, 9)),
        ("config.json", [9, 8], (2, 9, 8)),
    ],
)
def test_end_tokens_come_from_the_configs_and_survive_every_format(
    file, eos_token_id, stop_token_ids, sentencepiece_source, tmp_path
):
    source = shutil.copytree(sentencepiece_source, tmp_path / "source")
    (source / file).write_text(json.dumps({"eos_token_id": eos_token_id}))
    tokenizer = load_tokenizer(str(source))
    assert tokenizer.stop_token_ids == stop_token_ids and tokenizer.eos_token_id == 2
    config = tiny_config(vocab_size=700, n_layers=1)
    params = tiny_params(config)
    checkpoint.save(epath.Path(tmp_path / "checkpoint"), config, params, tokenizer)
    hf.write(epath.Path(tmp_path / "exported"), config, params, load_tokenizer(str(tmp_path / "checkpoint")))
    assert load_tokenizer(str(tmp_path / "exported")).stop_token_ids == stop_token_ids
    written = json.loads((tmp_path / "exported" / "generation_config.json").read_text())["eos_token_id"]
    assert written == (list(stop_token_ids) if len(stop_token_ids) > 1 else stop_token_ids[0])


def test_completion_stops_at_every_end_token(sentencepiece_source, tmp_path):
    source = shutil.copytree(sentencepiece_source, tmp_path / "source")
    (source / "generation_config.json").write_text('{"eos_token_id": [9, 8]}')
    tokenizer = load_tokenizer(str(source))
    # Attention and the MLP are zero, so that the LM head maps the embedding of each token to the next token.
    config = tiny_config(vocab_size=700, n_layers=1)
    engine, zeros = Engine(config, one_device(), 0, max_num_seqs=1), tiny_params(config, scale=0.0)
    for end in (2, 9, 8):
        embed, lm_head = np.zeros((700, 16), np.float32), np.zeros((16, 700), np.float32)
        for i, (token, next_token) in enumerate([(20, 21), (21, 22), (22, end), (end, 23)]):
            embed[token, i], lm_head[i, next_token] = 1, 9
        policy = Policy(engine, zeros.replace(embed=embed, lm_head=lm_head), tokenizer)
        ((completion,),) = policy.generate([Request((20,), 1, ("x",))], SamplingParams(max_tokens=30, temperature=0.0))
        assert completion.token_ids.tolist() == [21, 22, end] and completion.stopped
