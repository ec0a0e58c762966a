"""The data card: its numbers, its Markdown, and its hash of the trees."""

import json
import random
import re
from collections import Counter

import huggingface_hub
import pytest
from etils import epath
from helpers import countdown_tokenizer
from traces_fixtures import ORIGIN, TREES, VALID, read_rows, write_card

from astro_jax import config as cfg
from astro_jax import storage
from astro_jax.storage import Shards
from astro_jax.traces import card, dataset

TOKENIZER = countdown_tokenizer(99)


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    return write_card(tmp_path_factory.mktemp("made"), problems={"read": 99, "after decontamination": 60})


def test_the_numbers_of_a_card_equal_a_recount_of_the_files(traces):
    data = json.loads((traces / "card.json").read_text())
    for name in ("astro", "direct"):
        examples, described = read_rows(traces / f"{name}.jsonl"), data["sets"][name]
        tokens = [len(TOKENIZER.encode(e["prompt"] + e["response"])) + 1 for e in examples]
        assert (described["examples"], described["tokens"]) == (len(examples), sum(tokens))
        assert described["longest"] == max(tokens)
        assert described["by_k"] == {str(k): n for k, n in Counter(e["k"] for e in examples).items()}
        assert sum(n for *_, n in described["lengths"]) == len(examples)
        for low, high, n in described["lengths"]:
            assert n == sum(low <= t <= high for t in tokens)
    terminals = Counter(
        "correct" if n.correct else "wrong" if n.answer else "without an answer"
        for t in TREES for n in t.nodes if n.terminal
    )  # fmt: skip
    assert data["counts"]["terminals"] == terminals and data["counts"]["valid trees"] == len(VALID)
    assert data["problems"] == {"read": 99, "after decontamination": 60}
    assert data["origin"].items() >= ORIGIN.items() and data["versions"] == storage.versions()


def test_the_markdown_and_the_json_agree(traces):
    data, text = json.loads((traces / "card.json").read_text()), (traces / "README.md").read_text()
    for line in (
        "| problems: after decontamination | 60 |", f"| valid trees | {len(VALID)} |",
        f"| terminals: correct | {data['counts']['terminals']['correct']} |", "| model | some/model |", "| seed | 7 |",
        f"| trees_sha256 | {data['origin']['trees_sha256']} |", f"astro_jax {storage.versions()['astro_jax']}",
    ):  # fmt: skip
        assert line in text, line
    rows = read_rows(traces / "astro.jsonl")
    assert data["samples"] == random.Random("7/card").sample(
        rows, 10
    )  # the draw does not change with the way of reading
    assert len(data["samples"]) == 10 and len({json.dumps(s) for s in data["samples"]}) == 10
    for sample in data["samples"]:
        assert all(f"    {line}\n" in text for line in sample["response"].splitlines())
    bars = [len(bar) for bar in re.findall(r"\| (█+) \|", text)]
    assert max(bars) == 40 and len(bars) > 5


def test_the_hash_of_the_trees_depends_on_their_content_not_on_their_order(traces, tmp_path):
    def digest(folder):
        return json.loads((folder / "card.json").read_text())["origin"]["trees_sha256"]

    assert digest(write_card(tmp_path / "turned", order=-1)) == digest(traces)
    assert digest(write_card(tmp_path / "fewer", order=2)) != digest(traces)


def test_no_text_of_a_model_is_markdown():
    example = {"problem_id": "a|b\n# c", "k": 0, "prompt": "# Title\n```\n", "response": "---\n| x |\n"}
    data = {
        "origin": ORIGIN, "versions": {}, "problems": None, "counts": {}, "samples": [example],
        "sets": {n: {"examples": 0, "by_k": {}, "tokens": 0, "longest": 0, "lengths": []} for n in card.SETS},
    }  # fmt: skip
    text = card.text(data, "jsonl").partition("drawn at random.")[2].partition("## Origin")[0]
    lines = [line for line in text.splitlines() if line.strip()]
    assert lines == ['Problem "a|b\\n# c", k = 0:', "    # Title", "    ```", "    ---", "    | x |"]


def test_a_folder_without_examples_has_a_card_too(tmp_path):
    store = Shards(epath.Path(tmp_path) / "search", "trees")
    store.write(0, (t.record() for t in TREES if t not in VALID))
    counts = dataset.run(epath.Path(tmp_path) / "traces", store, cfg.Traces(), 0)
    card.write(epath.Path(tmp_path) / "traces", counts, store, TOKENIZER, ORIGIN)
    data = json.loads((tmp_path / "traces" / "card.json").read_text())
    assert data["sets"]["astro"]["lengths"] == [] and data["samples"] == [] and data["problems"] is None


def test_the_hub_reads_the_header_of_a_card(traces):
    files = {
        c["config_name"]: c["data_files"]
        for c in huggingface_hub.DatasetCard.load(str(traces / "README.md")).data.configs
    }
    assert files == {"astro": "astro.jsonl", "direct": "direct.jsonl"}
