"""The examples of the user: messages, or prompts and responses, from JSONL and Parquet."""

import copy
import json

import pyarrow
import pyarrow.parquet
import pytest
from helpers import countdown_tokenizer

from astro_jax.errors import AstroError
from astro_jax.train import examples

TOKENIZER = copy.deepcopy(countdown_tokenizer(9))  # other tests share the original
TOKENIZER.hf.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
PROMPT, RESPONSE = "Let us make 3 from 1 2.\n", "1 + 2 = 3.\n"
IDS = (TOKENIZER.encode(PROMPT), TOKENIZER.encode_after(RESPONSE))
PAIR = {"prompt": PROMPT, "response": RESPONSE}
CHAT = {"messages": [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": RESPONSE}]}


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_a_chat_a_pair_and_a_completion_give_the_same_tokens(tmp_path):
    path = write(tmp_path / "a.jsonl", PAIR, {"prompt": PROMPT, "completion": RESPONSE}, CHAT)
    assert examples.read(path, TOKENIZER) == [IDS] * 3


@pytest.mark.parametrize("record", [PAIR, CHAT])
def test_parquet_holds_the_same_records(tmp_path, record):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([record, record]), str(tmp_path / "a.parquet"))
    assert examples.read(tmp_path / "a.parquet", TOKENIZER) == [IDS] * 2


def test_reading_parquet_gives_no_python_file_to_threads_that_may_outlive_the_interpreter(tmp_path, monkeypatch):
    path, sources, read = tmp_path / "a.parquet", [], pyarrow.parquet.read_table
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([PAIR]), str(path))
    monkeypatch.setattr(pyarrow.parquet, "read_table", lambda source: sources.append(source) or read(source))
    assert examples.read(path, TOKENIZER) == [IDS] and isinstance(sources[0], pyarrow.BufferReader)


@pytest.mark.parametrize(
    "record, message",
    [
        ({"question": "x", "response": "y"}, r"line 2: has the fields question, response; write"),
        ({"prompt": "x", "response": 3}, "has the fields prompt, response"),
        ({"prompt": PROMPT, "response": " "}, "line 2: the response is empty"),
        ({"messages": [CHAT["messages"][1]]}, "`messages` must be texts with a role each"),
        ({"messages": CHAT["messages"][::-1]}, "the last of the assistant"),
        ({"messages": [{"role": "user", "content": ["x"]}, CHAT["messages"][1]]}, "`messages` must be texts"),
    ],
)
def test_a_record_of_another_form_is_named(tmp_path, record, message):
    with pytest.raises(AstroError, match=message):
        examples.read(write(tmp_path / "a.jsonl", PAIR, record), TOKENIZER)


def test_an_empty_and_a_damaged_file_are_refused(tmp_path):
    with pytest.raises(AstroError, match="has no examples"):
        examples.read(write(tmp_path / "a.jsonl"), TOKENIZER)
    (tmp_path / "a.parquet").write_text("no table")
    with pytest.raises(AstroError, match="cannot be read as Parquet"):
        examples.read(tmp_path / "a.parquet", TOKENIZER)
