"""Tokenizers: transformers' tokenizer of a model, with its end tokens and its chat template."""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
from collections.abc import Sequence
from typing import Any

from etils import epath

from astro_jax import config as cfg
from astro_jax import storage
from astro_jax.errors import AstroError
from astro_jax.llama import paths, tokenizer_model, weights
from astro_jax.llama.gguf_file import GgufFile

GENERATION_CONFIG = "generation_config.json"
# Some tokenizers encode the beginning of a text differently. Continuations are encoded after this prefix.
_PREFIX = "\n"


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """The tokenizer of a model, with its end tokens and its chat template.

    Attributes:
      hf: transformers' tokenizer (PreTrainedTokenizerBase).
      generation_config: the model's generation_config.json. It names all end tokens of an instruct model.
      chat: whether a problem goes through the chat template, and the system prompt.
    """

    hf: Any
    generation_config: dict[str, Any] = dataclasses.field(default_factory=dict)
    chat: cfg.Chat = dataclasses.field(default_factory=cfg.Chat)

    def __len__(self) -> int:
        return len(self.hf)

    @property
    def eos_token_id(self) -> int:
        """The end token. Training appends this token to each response."""
        return self.hf.eos_token_id

    @functools.cached_property
    def stop_token_ids(self) -> tuple[int, ...]:
        """All end tokens, `eos_token_id` first: for Llama 3 Instruct <|eot_id|>, <|end_of_text|> and <|eom_id|>."""
        ids = self.generation_config.get("eos_token_id") or ()
        return tuple(dict.fromkeys((self.eos_token_id, *([ids] if isinstance(ids, int) else ids))))

    def encode(self, text: str) -> list[int]:
        """Encode a whole text, with special tokens such as <s>. A text that starts with <s> gets no second <s>."""
        starts_with_bos = bool(self.hf.bos_token) and text.startswith(self.hf.bos_token)
        return self.hf.encode(text, add_special_tokens=not starts_with_bos)

    def encode_after(self, text: str) -> list[int]:
        """Encode a text that continues another text, without special tokens."""
        prefix, token_ids = self._prefix_ids, self.hf.encode(_PREFIX + text, add_special_tokens=False)
        if token_ids[: len(prefix)] == prefix:
            return token_ids[len(prefix) :]
        return self.hf.encode(text, add_special_tokens=False)

    def count_after(self, texts: Sequence[str]) -> list[int]:
        """The number of tokens of `encode_after` of each text. Many texts at once are encoded on all cores."""
        prefix = self._prefix_ids
        encoded = self.hf([_PREFIX + text for text in texts], add_special_tokens=False)["input_ids"] if texts else []
        return [
            len(ids) - len(prefix) if ids[: len(prefix)] == prefix else len(self.encode_after(text))
            for ids, text in zip(encoded, texts, strict=True)
        ]

    def starts_after(self, text: str) -> list[int]:
        """The place in `text` at which each token of `encode_after(text)` starts, in characters."""
        for prefix in (_PREFIX, ""):
            encoded = self.hf(prefix + text, add_special_tokens=False, return_offsets_mapping=True)
            n = len(self._prefix_ids) if prefix else 0
            if not prefix or encoded["input_ids"][:n] == self._prefix_ids:
                break
        return [start - len(prefix) for start, _ in encoded["offset_mapping"][n:]]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Decode the tokens of a continuation, without end tokens."""
        end_ids = self.stop_token_ids
        text = self._decode([*self._prefix_ids, *(t for t in token_ids if t not in end_ids)])
        return text[len(self._decoded_prefix) :]

    @functools.cached_property
    def _prefix_ids(self) -> list[int]:
        return self.hf.encode(_PREFIX, add_special_tokens=False)

    @functools.cached_property
    def _decoded_prefix(self) -> str:
        return self._decode(self._prefix_ids)

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self.hf.decode(token_ids, clean_up_tokenization_spaces=False)

    def prompt(self, problem: str) -> list[int]:
        """Encode the prompt of a problem: the problem's text, or with `chat.template` a chat.

        The chat has the system prompt (if `chat.system` is set) and the problem as the user's message.

        Raises:
          AstroError: when the model has no chat template, or its template raises an error.
        """
        if not self.chat.template:
            return self.encode(problem)
        messages = [] if self.chat.system is None else [{"role": "system", "content": self.chat.system}]
        return self.chat_prompt([*messages, {"role": "user", "content": problem}])

    def chat_prompt(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Encode a chat up to the begin of the assistant's next message, by the model's chat template.

        Args:
          messages: {"role", "content"} each.

        Raises:
          AstroError: when the model has no chat template, or its template raises an error.
        """
        try:
            # Some templates write the date, and a run must not depend on the day. This date is Llama 3.1's default.
            text = self.hf.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True, date_string="26 Jul 2024"
            )
        except Exception as e:  # a template is a program, which may raise any exception
            if not self.hf.chat_template:
                raise AstroError(
                    "the model's chat template cannot be used (the model has none); set chat.template=false"
                ) from e
            raise AstroError(
                f"the model's chat template cannot be used ({str(e).splitlines()[0]}); set chat.template=false or "
                "another chat.system"
            ) from e
        return self.encode(text)

    def ending_with(self, text: str) -> list[int]:
        """The ids of all tokens whose text ends with `text`."""
        return [i for i in range(len(self)) if self._decode([i]).endswith(text)]

    def save(self, folder: epath.Path) -> None:
        """Write the tokenizer's files and generation_config.json into an existing folder, which may be in a bucket."""
        with tempfile.TemporaryDirectory() as name:  # transformers writes to local folders only
            self.hf.save_pretrained(name)
            for path in epath.Path(name).iterdir():
                (folder / path.name).write_bytes(path.read_bytes())
        generation_config = self.generation_config | self.special_token_ids()
        (folder / GENERATION_CONFIG).write_text(json.dumps(generation_config, indent=2) + "\n")

    def special_token_ids(self) -> dict[str, int | list[int] | None]:
        """`bos_token_id` and `eos_token_id` as config.json and generation_config.json hold them."""
        ids = list(self.stop_token_ids)
        return {"bos_token_id": self.hf.bos_token_id, "eos_token_id": ids if len(ids) > 1 else ids[0]}


def load(path: str, chat: cfg.Chat | None = None) -> Tokenizer:
    """Load the tokenizer of a Hugging Face folder, a GGUF file, a checkpoint or a shipped model.

    A tokenizer.json in the folder of a GGUF file takes precedence over the tokenizer in the file.

    Raises:
      AstroError: when the model has no tokenizer, the tokenizer has no end token, or generation_config.json is damaged.
    """
    source = paths.resolve(path)
    if not paths.is_gguf(source):
        hf, generation_config = _load_hf(source), _read_generation_config(source)
    else:
        file = GgufFile(source)
        has_tokenizer_json = (source.parent / "tokenizer.json").exists()
        hf = _load_hf(source.parent) if has_tokenizer_json else file.tokenizer()
        generation_config = {"eos_token_id": ids} if (ids := file.eos_token_ids()) else {}
    if hf.eos_token_id is None:
        raise AstroError(f"{path}: the tokenizer has no end token; set eos_token in tokenizer_config.json")
    return Tokenizer(hf, generation_config, chat or cfg.Chat())


def _load_hf(folder: epath.Path) -> Any:
    """transformers' tokenizer of a folder, which may be in a bucket."""
    with storage.local_copy(folder, skip_suffix=weights.SUFFIX) as local:
        if (local / tokenizer_model.FILE).exists() and not (local / "tokenizer.json").exists():
            return tokenizer_model.read(local)
        from transformers import AutoTokenizer  # slow to import

        try:
            return AutoTokenizer.from_pretrained(str(local), local_files_only=True)
        except Exception as e:  # parsers raise exceptions of many classes for a damaged file
            reason = str(e) if isinstance(e, OSError | ValueError) else f"{type(e).__name__}: {e}"
            raise AstroError(f"{folder}: no tokenizer can be read from this folder ({reason.splitlines()[0]})") from e


def _read_generation_config(folder: epath.Path) -> dict[str, Any]:
    """A folder's generation_config.json; in a folder without this file, the end tokens of config.json."""
    if (folder / GENERATION_CONFIG).exists():
        content = storage.read_json(folder / GENERATION_CONFIG)
    elif (folder / "config.json").exists():
        content = {k: v for k, v in storage.read_json(folder / "config.json").items() if k == "eos_token_id"}
    else:
        content = {}
    ids = content.get("eos_token_id")
    if not all(isinstance(t, int) for t in (ids if isinstance(ids, list) else [ids or 0])):
        raise AstroError(
            f"{folder / GENERATION_CONFIG}: eos_token_id={ids!r} is not a token id or a list of token ids; correct it"
        )
    return content
