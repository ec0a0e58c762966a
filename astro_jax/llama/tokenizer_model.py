"""Read tokenizer.model for folders without a tokenizer.json.

Llama 2's file is a SentencePiece model. Llama 3's file is tiktoken's list of byte strings.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

from etils import epath
from tokenizers import AddedToken, normalizers, processors

from astro_jax import storage
from astro_jax.errors import AstroError

FILE = "tokenizer.model"
# Llama 3.1's special tokens in the order of their ids. The first id is 128000, the number of byte strings in the file.
_NAMED = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>", "<|reserved_special_token_2|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eom_id|>", "<|eot_id|>", "<|python_tag|>",
)  # fmt: skip
LLAMA3_SPECIAL = _NAMED + tuple(f"<|reserved_special_token_{i}|>" for i in range(3, 256 - len(_NAMED) + 3))
# The keys of tokenizer_config.json that apply to a Llama 3 tokenizer.
_LLAMA3_KEYS = ("eos_token", "chat_template")


def read(folder: epath.Path) -> Any:
    """Make transformers' tokenizer from tokenizer.model and tokenizer_config.json (if it exists).

    Raises:
      AstroError: when the file is neither a SentencePiece model nor a tiktoken file.
    """
    path = folder / FILE
    content = path.read_bytes()
    ranks = _ranks(content)
    config_file = folder / "tokenizer_config.json"
    options = storage.read_json(config_file) if config_file.exists() else {}
    try:
        if not content:  # SentencePiece reads an empty file as a model with an empty vocabulary
            raise ValueError("empty file")
        return _llama3(path, ranks, options) if ranks else _llama2(folder, options)
    except Exception as e:  # parsers raise exceptions of many classes for a damaged file
        raise AstroError(f"{path}: neither a SentencePiece model nor a tiktoken file ({str(e).splitlines()[0]})") from e


def _ranks(content: bytes) -> dict[bytes, int]:
    """Parse a tiktoken file, one byte string in base64 and its id a line; {} for a file of another format."""
    try:
        pairs = [line.split() for line in content.splitlines() if line.strip()]
        return {base64.b64decode(text, validate=True): int(rank) for text, rank in pairs}
    except (ValueError, binascii.Error):
        return {}


def _llama2(folder: epath.Path, options: dict[str, Any]) -> Any:
    from transformers import LlamaTokenizer, PreTrainedTokenizerFast

    hf = LlamaTokenizer.from_pretrained(str(folder), add_bos_token=options.get("add_bos_token", True))
    backend = hf.backend_tokenizer
    # SentencePiece puts a space before every text. transformers leaves the space out before a text that has one.
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = None
    # PreTrainedTokenizerFast keeps this backend when saved and loaded; LlamaTokenizer would build another backend.
    special = {name: getattr(hf, name) for name in ("bos_token", "eos_token", "unk_token")}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=hf.chat_template, clean_up_tokenization_spaces=False, **special
    )


def _llama3(path: epath.Path, ranks: dict[bytes, int], options: dict[str, Any]) -> Any:
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    class Converter(TikTokenConverter):
        """A TikTokenConverter that takes the parsed file, and does not need the package tiktoken."""

        @staticmethod
        def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
            return ranks

    backend = Converter(str(path)).converted()
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in LLAMA3_SPECIAL])
    begin, end = LLAMA3_SPECIAL[:2]
    backend.post_processor = processors.TemplateProcessing(
        f"{begin} $A", f"{begin} $A $B", [(begin, backend.token_to_id(begin))]
    )
    special = {"bos_token": begin, "eos_token": end} | {key: options[key] for key in _LLAMA3_KEYS if key in options}
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **special)
