"""Remove training problems that overlap with evaluation problems.

A training problem is removed in three cases:

- exact: it has the same words and signs as an evaluation problem. Spaces, capitals and punctuation do not matter.
- near: the sets of n-grams of the two texts have at least a given Jaccard index. MinHash (datasketch) proposes the
  pairs to compare. It proposes pairs from half the given index on, so that it misses few pairs.
- contained: at least the given share of the shorter text's n-grams is in the longer text. An index of all n-grams finds
  these pairs. Texts of few n-grams are exempt, because a longer text may hold their n-grams by accident.

An n-gram is a sequence of words and signs. A text of fewer than n words has one n-gram.
"""

from __future__ import annotations

import functools
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from datasketch import MinHash, MinHashLSH

from astro_jax.types import Problem

NGRAM_WORDS = 5  # word problems are short
PERMUTATIONS = 128
MIN_NGRAMS = 10  # of the shorter text of a contained pair (ours): 14 words


def remove_overlapping(
    problems: Sequence[Problem], texts: Sequence[str], threshold: float
) -> tuple[list[Problem], Counter[str]]:
    """Remove the problems that overlap with the texts of evaluation problems.

    Args:
      texts: the texts of the evaluation problems.
      threshold: the Jaccard index of near pairs, and the share of n-grams of contained pairs. At 1 only exact problems
        are removed.

    Returns:
      The problems that stay, and the number of removed problems as {"exact", "near", "contained"}.
    """
    exact, removed = {tuple(_words(text)) for text in texts}, Counter({"exact": 0, "near": 0, "contained": 0})
    text_ngrams = [ngrams(text) for text in dict.fromkeys(texts)]
    problem_ngrams = [ngrams(p.prompt) for p in problems]
    minhash_index = MinHashLSH(num_perm=PERMUTATIONS, params=_bands(threshold / 2)) if threshold < 1 else None
    ngram_index: Mapping[str, Sequence[int]] = {}
    hashes: Sequence[MinHash | None] = [None] * len(problems)
    if minhash_index is not None:
        with minhash_index.insertion_session() as session:
            for i, text_hash in enumerate(_hashes(text_ngrams)):
                session.insert(i, text_hash)
        ngram_index, hashes = _ngram_index(text_ngrams), _hashes(problem_ngrams)
    kept = []
    for p, own, own_hash in zip(problems, problem_ngrams, hashes, strict=True):
        if tuple(_words(p.prompt)) in exact:
            removed["exact"] += 1
        elif minhash_index is not None and any(
            jaccard(own, text_ngrams[i]) >= threshold for i in minhash_index.query(own_hash)
        ):
            removed["near"] += 1
        elif _is_contained(own, text_ngrams, ngram_index, threshold):
            removed["contained"] += 1
        else:
            kept.append(p)
    return kept, removed


@functools.cache
def _bands(threshold: float) -> tuple[int, int]:
    """The bands and the rows of a band. datasketch finds them by integrals, which take longer than a small set."""
    index = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS)
    return index.b, index.r


def ngrams(text: str) -> frozenset[str]:
    """Return the n-grams of a text's words and signs."""
    words = _words(text)
    n = min(NGRAM_WORDS, max(len(words), 1))
    return frozenset(" ".join(words[i : i + n]) for i in range(max(len(words) - n + 1, 1)))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Compute the Jaccard index of two sets: the size of the intersection over the size of the union."""
    return len(a & b) / len(a | b)


def _ngram_index(sets: Sequence[frozenset[str]]) -> Mapping[str, Sequence[int]]:
    """Map each n-gram to the indices of the sets that hold it."""
    index = defaultdict(list)
    for i, grams in enumerate(sets):
        for gram in grams:
            index[gram].append(i)
    return index


def _is_contained(
    own: frozenset[str], sets: Sequence[frozenset[str]], index: Mapping[str, Sequence[int]], share: float
) -> bool:
    """Whether at least the share of the smaller set's n-grams is in the larger set, for `own` and any of the sets."""
    common = Counter(i for gram in own for i in index.get(gram, ()))
    return any((size := min(len(own), len(sets[i]))) >= MIN_NGRAMS and n >= share * size for i, n in common.items())


def _hashes(sets: Sequence[frozenset[str]]) -> list[MinHash]:
    return MinHash.bulk([[gram.encode() for gram in grams] for grams in sets], num_perm=PERMUTATIONS, seed=1)


def _words(text: str) -> list[str]:
    """Split a text into words and signs, without punctuation."""
    return re.findall(r"\w+|[^\w\s.,;:!?'\"]", text.lower())
