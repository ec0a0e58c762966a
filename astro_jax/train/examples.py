"""Examples of the user for SFT: a JSONL, JSON or Parquet file of messages, or of prompts and responses."""

from __future__ import annotations

from typing import Any

from etils import epath

from astro_jax.errors import AstroError
from astro_jax.llama.tokenizer import Tokenizer
from astro_jax.problems import record_files
from astro_jax.storage import Json

_Prompt = str | list[dict[str, str]]  # a text, or the messages before the response
_RESPONSES = ("response", "completion")


def read(path: epath.PathLike, tokenizer: Tokenizer) -> list[tuple[list[int], list[int]]]:
    """Read and tokenize the examples of a file.

    A record is {"messages": [{"role", "content"}, ...]} with an assistant's message at the end, or {"prompt",
    "response"}; "completion" is another name for the response. Messages go through the chat template of the model. A
    prompt is encoded as a problem of a run (`chat.template` says how).

    Returns:
      the token ids of each (prompt, response), the response without an end token.

    Raises:
      AstroError: when the file cannot be read or is empty, for a record of another form, and for an empty response. The
        message names the record.
    """
    return [_tokenize(*example, tokenizer) for example in _parse(path)]


def check(path: epath.PathLike, tokenizer: Tokenizer) -> None:
    """Check the form of all examples of a file, and tokenize the first. The errors are those of `read`."""
    examples = _parse(path)
    _tokenize(*examples[0], tokenizer)


_FORMS = '{"prompt": "...", "response": "..."} or {"messages": [...]}'


def _parse(path: epath.PathLike) -> list[tuple[_Prompt, str]]:
    """The prompt and the response of each example."""
    examples = [_texts(record, place) for place, record in record_files.read(epath.Path(path))]
    if not examples:
        raise AstroError(f"{path}: has no examples; write one a line, as in {_FORMS}")
    return examples


def _texts(record: Json, place: str) -> tuple[_Prompt, str]:
    prompt: _Prompt
    if "messages" in record:
        messages = _messages(record["messages"], place)
        prompt, response = messages[:-1], messages[-1]["content"]
    else:
        texts = [record.get("prompt"), next((record[key] for key in _RESPONSES if key in record), None)]
        if not all(isinstance(text, str) for text in texts):
            raise AstroError(f"{place}: has the fields {', '.join(record) or 'none'}; write {_FORMS}")
        prompt, response = map(str, texts)
    if not response.strip():
        raise AstroError(f"{place}: the response is empty; remove the record")
    return prompt, response


def _tokenize(prompt: _Prompt, response: str, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    token_ids = tokenizer.prompt(prompt) if isinstance(prompt, str) else tokenizer.chat_prompt(prompt)
    return token_ids, tokenizer.encode_after(response)


def _messages(messages: Any, place: str) -> list[dict[str, str]]:
    """Check that the messages are texts with roles, and that the last is the assistant's."""
    valid = isinstance(messages, list) and len(messages) > 1 and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages
    )  # fmt: skip
    if not valid or messages[-1]["role"] != "assistant":
        raise AstroError(
            f"{place}: `messages` must be texts with a role each, the last of the assistant, as in "
            '[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
        )
    return [{"role": m["role"], "content": m["content"]} for m in messages]
