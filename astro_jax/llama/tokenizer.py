"""Tokenizers: transformers' own for imported models, and a small one built for the toy task."""

from __future__ import annotations

from typing import Any

import tokenizers
from etils import epath
from tokenizers import decoders, models, pre_tokenizers

from astro_jax import phrases
from astro_jax.errors import AstroError
from astro_jax.llama import checkpoint, gguf_file
from astro_jax.problems import countdown

EOS, PAD, UNKNOWN = "<eos>", "<pad>", "<unk>"


def load(path: str) -> Any:
    """The tokenizer of a Hugging Face folder, a GGUF file, one of our checkpoints, or a model that ships with the
    package. A tokenizer.json beside a GGUF file is taken instead of the one inside.

    Raises:
      AstroError: when there is none, or it has no end token.
    """
    source = checkpoint.resolve(path)
    if source.suffix != checkpoint.GGUF:
        tokenizer = _of_folder(source)
    elif (source.parent / "tokenizer.json").exists():
        tokenizer = _of_folder(source.parent)
    else:
        tokenizer = gguf_file.File(source).tokenizer()
    if tokenizer.eos_token_id is None:
        raise AstroError(f"{path}: the tokenizer has no end token; set eos_token in tokenizer_config.json")
    return tokenizer


def _of_folder(folder: epath.Path) -> Any:
    from transformers import AutoTokenizer  # slow to import: only where a tokenizer is needed

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as e:
        raise AstroError(f"{folder}: no tokenizer can be read there ({str(e).splitlines()[0]})") from e


def countdown_tokenizer(max_value: int) -> Any:
    """A word tokenizer for Countdown: a number is one token, a fixed phrase is one token, and text survives a round
    trip unchanged, since each token carries its own leading space or newline."""
    from transformers import PreTrainedTokenizerFast

    words = ["Let us", " make", " from", ", left", " =", ".\n", countdown.HIT, countdown.MISS]
    words += [f" {op}" for op in "+-*/"] + list(phrases.PHRASES)
    numbers = [f" {n}" for n in range(max_value + 1)]
    vocab = {word: i for i, word in enumerate([PAD, EOS, UNKNOWN, *words, *numbers])}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
    pattern = "|".join([_escape(w) for w in sorted(words, key=len, reverse=True)] + [r" \d+"])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD, unk_token=UNKNOWN, clean_up_tokenization_spaces=False
    )


def _escape(word: str) -> str:
    """A literal in the tokenizer's regular expressions."""
    return "".join(rf"\{c}" if c in r".?*+-/|()[]{}^$" else r"\n" if c == "\n" else c for c in word)
