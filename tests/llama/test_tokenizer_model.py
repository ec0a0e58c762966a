"""tokenizer.model files of Llama 2 and Llama 3, compared with SentencePiece, tiktoken and plain byte pair encoding."""

import base64
import itertools

import pytest
import regex
import sentencepiece
from tokenizer_folders import LLAMA3_PATTERN, SCRIPTS, TEXT, llama3_folder, sentencepiece_folder, tiktoken_folder

from astro_jax.errors import AstroError
from astro_jax.llama.tokenizer import load as load_tokenizer


@pytest.fixture(scope="module")
def llama3(tmp_path_factory):
    """(folder, tokenizer) of Llama 3, read once: its file is large."""
    folder = llama3_folder(tmp_path_factory.mktemp("llama3"))
    return folder, load_tokenizer(str(folder))


@pytest.fixture(scope="module", params=["small", "llama3"])
def tiktoken_case(request, tmp_path_factory):
    """(folder, tokenizer)."""
    if request.param == "llama3":
        return request.getfixturevalue("llama3")
    folder = tiktoken_folder(tmp_path_factory.mktemp("tokenizer"))
    return folder, load_tokenizer(str(folder))


def test_sentencepiece_model_gives_the_ids_of_sentencepiece(tmp_path):
    # transformers itself would add neither <s> nor the space before a text.
    tokenizer = load_tokenizer(str(sentencepiece_folder(tmp_path)))
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    for text in (TEXT, *SCRIPTS, "the License", " lead", "   more", " "):
        assert tokenizer.encode(text) == [reference.bos_id(), *reference.encode(text)]
    assert tokenizer.stop_token_ids == (reference.eos_id(),) and len(tokenizer) == reference.vocab_size()


def ranks_of(folder):
    lines = (folder / "tokenizer.model").read_text().splitlines()
    return {base64.b64decode(text): int(rank) for text, rank in map(str.split, lines)}


def merge(word, ranks):
    """Byte pair encoding as its authors define it: merge the pair of the lowest rank until no pair has a rank."""
    symbols = [bytes([b]) for b in word]
    ranked = lambda: [(ranks[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(symbols)) if a + b in ranks]  # noqa: E731
    while pairs := ranked():
        _, i = min(pairs)
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
    return [ranks[p] for p in symbols]


def test_tiktoken_file_gives_the_ids_of_plain_byte_pair_encoding(tiktoken_case):
    folder, tokenizer = tiktoken_case
    ranks = ranks_of(folder)
    for text in (TEXT, *SCRIPTS, " the trademark team"):
        words = regex.findall(LLAMA3_PATTERN, text)
        assert tokenizer.encode(text) == [len(ranks), *(t for w in words for t in merge(w.encode(), ranks))]


def test_tiktoken_file_gives_the_ids_of_tiktoken(tiktoken_case):
    tiktoken = pytest.importorskip("tiktoken")
    folder, tokenizer = tiktoken_case
    reference = tiktoken.Encoding("x", pat_str=LLAMA3_PATTERN, mergeable_ranks=ranks_of(folder), special_tokens={})
    for text in (TEXT, *SCRIPTS):
        assert tokenizer.encode(text)[1:] == reference.encode_ordinary(text)


def test_llama3_special_tokens_have_their_published_ids(llama3):
    _, tokenizer = llama3
    published = {
        "<|begin_of_text|>": 128000, "<|end_of_text|>": 128001, "<|finetune_right_pad_id|>": 128004,
        "<|start_header_id|>": 128006, "<|end_header_id|>": 128007, "<|eom_id|>": 128008, "<|eot_id|>": 128009,
        "<|python_tag|>": 128010, "<|reserved_special_token_247|>": 128255,
    }  # fmt: skip
    assert {t: tokenizer.hf.convert_tokens_to_ids(t) for t in published} == published
    assert len(tokenizer) == 128256 and tokenizer.eos_token_id == 128001
    assert tokenizer.encode("Hello world<|eot_id|>") == [128000, 9906, 1917, 128009]


@pytest.mark.parametrize("content", [b"", b"no model", b"aGk= x\n", bytes(range(256))])
def test_tokenizer_model_of_another_format_is_an_error_of_one_line(tmp_path, content):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(AstroError, match=r"tokenizer\.model: neither") as e:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(e.value)
