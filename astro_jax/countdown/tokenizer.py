"""A word tokenizer for Countdown, for the small base model that ships with the package."""

from __future__ import annotations

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from astro_jax import countdown, phrases
from astro_jax.llama.tokenizer import Tokenizer

EOS, PAD, UNKNOWN = "<eos>", "<pad>", "<unk>"


def countdown_tokenizer(max_value: int) -> Tokenizer:
    """Make a tokenizer with one token a number, one token an operator and one token a fixed phrase.

    Each token has its own leading space or newline, so that decoding gives the text back unchanged: " 3", " +", " 4".

    Args:
      max_value: the largest number with a token.
    """
    from transformers import PreTrainedTokenizerFast  # slow to import

    words = ["Let us", " make", " from", ", left", " =", ".\n", countdown.HIT, countdown.MISS]
    words += [f" {op}" for op in "+-*/"] + list(phrases.PHRASES)
    numbers = [f" {n}" for n in range(max_value + 1)]
    vocab = {word: i for i, word in enumerate([PAD, EOS, UNKNOWN, *words, *numbers])}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
    pattern = "|".join([_escape(w) for w in sorted(words, key=len, reverse=True)] + [r" \d+"])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    hf = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD, unk_token=UNKNOWN, clean_up_tokenization_spaces=False
    )
    return Tokenizer(hf)


def _escape(word: str) -> str:
    """Escape a literal for the tokenizer's regular expressions."""
    return "".join(rf"\{c}" if c in r".?*+-/|()[]{}^$" else r"\n" if c == "\n" else c for c in word)
