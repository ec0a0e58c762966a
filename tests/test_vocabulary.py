"""Words with a private meaning stay out of the project (CONTRIBUTING.md, "Names")."""

import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRIVATE = re.compile(
    r"\b(waves?|lanes?|tiles?|tiled|tiling|shel(f|ves)|flights?|plant(s|ed|ing)?|pieces?)\b", re.IGNORECASE
)
# Names of libraries, and the old config keys that a config may still hold.
ALLOWED = re.compile(r"\bn?jnp\.tile\(|\bnp\.tile\(|\btiled=True|^\s*\"(wave|eval|traces)\": .*shard_size|\"wave\": \"")
# Locked packages, problems and reports of models: not text of this project.
SKIPPED = re.compile(
    r"\.lock$|\.(png|npz|gguf|json|jsonl|safetensors)$|^docs/smollm2-135m\.html$|^LICENSE$|^tests/test_vocabulary"
)


def tracked_files() -> list[str]:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [name for name in listing.stdout.splitlines() if (ROOT / name).is_file() and not SKIPPED.search(name)]


def private_words(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if PRIVATE.search(ALLOWED.sub("", line))]


def test_no_file_uses_a_private_word():
    found = {
        name: lines for name in tracked_files() if (lines := private_words((ROOT / name).read_text(errors="ignore")))
    }
    assert found == {}


def test_no_file_name_holds_a_private_word():
    assert [name for name in tracked_files() if PRIVATE.search(re.sub(r"[_/.-]", " ", name))] == []


def test_no_two_test_files_have_the_same_name():
    """pytest imports test files by their base names, and refuses the second one when all of them are collected."""
    names = Counter(Path(name).name for name in tracked_files() if Path(name).match("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("line", ["grow a wave of trees", "Tiles of rows", "two Flights", "shelf = []", "x.piece()"])
def test_the_check_sees_private_words(line):
    assert private_words(line)


@pytest.mark.parametrize("line", ["jnp.tile(x, 2)", "microwave ovens", "sentencepiece", "all_gather(x, tiled=True)"])
def test_the_check_allows_library_names_and_longer_words(line):
    assert not private_words(line)
