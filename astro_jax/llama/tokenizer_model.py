"""tokenizer.model without a tokenizer.json: Llama 2's is SentencePiece's, Llama 3's tiktoken's list of byte strings."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from etils import epath
from tokenizers import AddedToken, normalizers, processors

from astro_jax import storage
from astro_jax.errors import AstroError

FILE = "tokenizer.model"
# Llama 3.1's, in order; their ids follow those of the file's 128000 byte strings.
_NAMED = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>", "<|reserved_special_token_2|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eom_id|>", "<|eot_id|>", "<|python_tag|>",
)  # fmt: skip
LLAMA3_SPECIAL = _NAMED + tuple(f"<|reserved_special_token_{i}|>" for i in range(3, 256 - len(_NAMED) + 3))
_TOLD = ("eos_token", "chat_template")  # of tokenizer_config.json


def read(folder: epath.Path) -> Any:
    """transformers' tokenizer of a folder's tokenizer.model.

    Raises:
      AstroError: when the file is neither of both kinds.
    """
    path = folder / FILE
    content = path.read_bytes()
    ranks = _ranks(content)
    told = storage.read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    try:
        if not content:  # SentencePiece takes it for a model without pieces
            raise ValueError("it is empty")
        return _llama3(path, ranks, told) if ranks else _llama2(folder, told)
    except Exception as e:  # what a parser says about a damaged file may be of any kind
        raise AstroError(f"{path}: neither a SentencePiece nor a tiktoken file ({str(e).splitlines()[0]})") from e


def _ranks(content: bytes) -> dict[bytes, int]:
    """The ids of a tiktoken file: on each line a byte string in base64 and its id. Nothing where it is none."""
    try:
        pairs = [line.split() for line in content.splitlines() if line.strip()]
        return {base64.b64decode(text, validate=True): int(rank) for text, rank in pairs}
    except (ValueError, binascii.Error):
        return {}


def _llama2(folder: epath.Path, told: dict[str, Any]) -> Any:
    from transformers import LlamaTokenizer, PreTrainedTokenizerFast

    hf = LlamaTokenizer.from_pretrained(str(folder), add_bos_token=told.get("add_bos_token", True))
    backend = hf.backend_tokenizer
    # SentencePiece puts a space before every text; transformers' own cutting leaves it out before a text with one.
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = None
    # LlamaTokenizer would make its own again when it is loaded from what is saved.
    special = {name: getattr(hf, name) for name in ("bos_token", "eos_token", "unk_token")}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=hf.chat_template, clean_up_tokenization_spaces=False, **special
    )


def _llama3(path: epath.Path, ranks: dict[bytes, int], told: dict[str, Any]) -> Any:
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    class Converter(TikTokenConverter):
        """Without the package tiktoken, which would only read the file."""

        @staticmethod
        def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
            return ranks

    backend = Converter(str(path)).converted()
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in LLAMA3_SPECIAL])
    begin, end = LLAMA3_SPECIAL[:2]
    backend.post_processor = processors.TemplateProcessing(
        f"{begin} $A", f"{begin} $A $B", [(begin, backend.token_to_id(begin))]
    )
    special = {"bos_token": begin, "eos_token": end} | {k: told[k] for k in _TOLD if k in told}
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **special)
