"""Tokenizers: transformers' own for imported models, and a small one built for the toy task."""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
from collections.abc import Sequence
from typing import Any

import tokenizers
from etils import epath
from tokenizers import decoders, models, pre_tokenizers

from astro_jax import config as cfg
from astro_jax import countdown, phrases, storage
from astro_jax.errors import AstroError
from astro_jax.llama import checkpoint, gguf_file, tokenizer_model, weights

EOS, PAD, UNKNOWN = "<eos>", "<pad>", "<unk>"
GENERATION = "generation_config.json"
# A text that others follow: some tokenizers treat the beginning of a text in their own way.
_BEFORE = "\n"


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A model's tokenizer, with what ends its answers and how a problem is put to it.

    Attributes:
      hf: transformers' tokenizer.
      generation: the model's generation_config.json, carried along; its end tokens are those of an instruct model.
      chat: how a problem becomes a prompt.
    """

    hf: Any
    generation: dict[str, Any] = dataclasses.field(default_factory=dict)
    chat: cfg.Chat = dataclasses.field(default_factory=cfg.Chat)

    def __len__(self) -> int:
        return len(self.hf)

    @property
    def end(self) -> int:
        """The token that ends an answer; training appends it."""
        return self.hf.eos_token_id

    @functools.cached_property
    def ends(self) -> tuple[int, ...]:
        """All tokens that end an answer, `end` first: <|eot_id|> and <|end_of_text|> of a Llama 3 that chats."""
        found = self.generation.get("eos_token_id") or ()
        return tuple(dict.fromkeys((self.end, *([found] if isinstance(found, int) else found))))

    def encode(self, text: str) -> list[int]:
        """The tokens of a whole text, with what the tokenizer begins one with, once: a chat template may have."""
        begun = bool(self.hf.bos_token) and text.startswith(self.hf.bos_token)
        return self.hf.encode(text, add_special_tokens=not begun)

    def encode_after(self, text: str) -> list[int]:
        """The tokens of a text that follows another."""
        before, both = self._before, self.hf.encode(_BEFORE + text, add_special_tokens=False)
        if both[: len(before)] == before:
            return both[len(before) :]
        return self.hf.encode(text, add_special_tokens=False)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens that follow others, end tokens left out."""
        ends = self.ends
        return self._text([*self._before, *(t for t in tokens if t not in ends)])[len(self._text_before) :]

    # Samples are decoded by the thousand: what is the same for all is found once.
    @functools.cached_property
    def _before(self) -> list[int]:
        return self.hf.encode(_BEFORE, add_special_tokens=False)

    @functools.cached_property
    def _text_before(self) -> str:
        return self._text(self._before)

    def _text(self, tokens: Sequence[int]) -> str:
        return self.hf.decode(tokens, clean_up_tokenization_spaces=False)

    def prompt(self, problem: str) -> list[int]:
        """The tokens that put a problem to the model: as it stands, or through the chat template.

        Raises:
          AstroError: when there is no chat template, or it refuses the system prompt.
        """
        if not self.chat.template:
            return self.encode(problem)
        messages = [] if self.chat.system is None else [{"role": "system", "content": self.chat.system}]
        messages.append({"role": "user", "content": problem})
        try:
            # Some templates write today's date, and a run must not depend on the day: this is Llama 3.1's own.
            text = self.hf.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, date_string="26 Jul 2024"
            )
        except Exception as e:  # a template is a program of the model's maker, and may raise anything
            raise AstroError(
                f"the model's chat template cannot be used ({str(e).splitlines()[0]}); set chat.template=false or "
                "another chat.system"
            ) from e
        return self.encode(text)

    def ending_with(self, text: str) -> list[int]:
        """The tokens whose own text ends so."""
        return [i for i in range(len(self)) if self._text([i]).endswith(text)]

    def save(self, folder: epath.Path) -> None:
        """Write the tokenizer's files and generation_config.json, in a folder that is there."""
        with tempfile.TemporaryDirectory() as name:  # the library writes to disks only
            self.hf.save_pretrained(name)
            for path in epath.Path(name).iterdir():
                (folder / path.name).write_bytes(path.read_bytes())
        (folder / GENERATION).write_text(json.dumps(self.generation | self.ids(), indent=2) + "\n")

    def ids(self) -> dict[str, Any]:
        """The ids that begin and end texts, as Hugging Face's configs name them."""
        ends: Any = list(self.ends)
        return {"bos_token_id": self.hf.bos_token_id, "eos_token_id": ends if len(ends) > 1 else ends[0]}


def load(path: str, chat: cfg.Chat | None = None) -> Tokenizer:
    """The tokenizer of a Hugging Face folder, a GGUF file, one of our checkpoints, or a model that ships with the
    package. A tokenizer.json beside a GGUF file is taken instead of the one inside.

    Raises:
      AstroError: when there is none, it has no end token, or generation_config.json is damaged.
    """
    source = checkpoint.resolve(path)
    if source.suffix != checkpoint.GGUF:
        hf, generation = _of_folder(source), _generation(source)
    else:
        file = gguf_file.File(source)
        beside = (source.parent / "tokenizer.json").exists()
        hf = _of_folder(source.parent) if beside else file.tokenizer()
        generation = {"eos_token_id": ends} if (ends := file.end_tokens()) else {}
    if hf.eos_token_id is None:
        raise AstroError(f"{path}: the tokenizer has no end token; set eos_token in tokenizer_config.json")
    return Tokenizer(hf, generation, chat or cfg.Chat())


def _of_folder(folder: epath.Path) -> Any:
    with storage.local_copy(folder, skip_suffix=weights.SUFFIX) as near:
        if (near / tokenizer_model.FILE).exists() and not (near / "tokenizer.json").exists():
            return tokenizer_model.read(near)
        from transformers import AutoTokenizer  # slow to import: only where a tokenizer is needed

        try:
            return AutoTokenizer.from_pretrained(str(near), local_files_only=True)
        except (OSError, ValueError) as e:
            raise AstroError(f"{folder}: no tokenizer can be read there ({str(e).splitlines()[0]})") from e


def _generation(folder: epath.Path) -> dict[str, Any]:
    """A folder's generation_config.json; without one, the end tokens of config.json."""
    if (folder / GENERATION).exists():
        found = storage.read_json(folder / GENERATION)
    elif (folder / "config.json").exists():
        found = {k: v for k, v in storage.read_json(folder / "config.json").items() if k == "eos_token_id"}
    else:
        found = {}
    ends = found.get("eos_token_id")
    if not all(isinstance(t, int) for t in (ends if isinstance(ends, list) else [ends or 0])):
        raise AstroError(f"{folder / GENERATION}: eos_token_id={ends!r} is neither a token's id nor a list of them")
    return found


def countdown_tokenizer(max_value: int) -> Tokenizer:
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
    hf = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD, unk_token=UNKNOWN, clean_up_tokenization_spaces=False
    )
    return Tokenizer(hf)


def _escape(word: str) -> str:
    """A literal in the tokenizer's regular expressions."""
    return "".join(rf"\{c}" if c in r".?*+-/|()[]{}^$" else r"\n" if c == "\n" else c for c in word)
