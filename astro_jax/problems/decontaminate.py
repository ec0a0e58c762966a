"""Which problems to train on are those of an evaluation set: the same, or nearly so.

The same: equal words and signs, whatever the spaces, capitals and punctuation. Nearly: the sets of n-grams of words
and signs overlap by at least a given Jaccard index, which is computed for all pairs that MinHash proposes (datasketch).
It proposes from half that index on, so that few are missed. A text of fewer than n words has one n-gram. Contained: one
of two texts has at least that share of the n-grams of the other, the shorter; an index of n-grams finds all such pairs.
Texts of few n-grams are not looked for, as those may be in another by accident.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from datasketch import MinHash, MinHashLSH

from astro_jax.types import Problem

WORDS = 5  # of an n-gram: word problems are short
PERMUTATIONS = 128
MIN_GRAMS = 10  # of a text that is looked for in another (ours): 14 words


def drop(problems: Sequence[Problem], against: Sequence[str], near: float) -> tuple[list[Problem], Counter[str]]:
    """The problems that are not among some texts, and how many were dropped: exact, near and contained.

    Args:
      against: texts of evaluation problems.
      near: the Jaccard index from which two texts are nearly the same, and the share of the shorter text's n-grams
        from which it is contained in the other; 1: only equal ones are dropped.
    """
    exact, dropped = {tuple(_words(text)) for text in against}, Counter({"exact": 0, "near": 0, "contained": 0})
    grams = [ngrams(text) for text in dict.fromkeys(against)]
    index = MinHashLSH(threshold=near / 2, num_perm=PERMUTATIONS) if near < 1 else None
    if index is not None:
        with index.insertion_session() as session:
            for i, h in enumerate(_hashes(grams)):
                session.insert(i, h)
    having: Mapping[str, Sequence[int]] = _having(grams) if near < 1 else {}
    kept = []
    mine = [ngrams(p.prompt) for p in problems]
    for p, own, h in zip(problems, mine, _hashes(mine) if index is not None else [None] * len(mine), strict=True):
        if tuple(_words(p.prompt)) in exact:
            dropped["exact"] += 1
        elif index is not None and any(jaccard(own, grams[i]) >= near for i in index.query(h)):
            dropped["near"] += 1
        elif _contained(own, grams, having, near):
            dropped["contained"] += 1
        else:
            kept.append(p)
    return kept, dropped


def ngrams(text: str) -> frozenset[str]:
    """The n-grams of a text's words and signs."""
    words = _words(text)
    n = min(WORDS, max(len(words), 1))
    return frozenset(" ".join(words[i : i + n]) for i in range(max(len(words) - n + 1, 1)))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """The share of what two sets have in common."""
    return len(a & b) / len(a | b)


def _having(sets: Sequence[frozenset[str]]) -> Mapping[str, Sequence[int]]:
    """Which sets have an n-gram."""
    having = defaultdict(list)
    for i, grams in enumerate(sets):
        for gram in grams:
            having[gram].append(i)
    return having


def _contained(
    own: frozenset[str], sets: Sequence[frozenset[str]], having: Mapping[str, Sequence[int]], share: float
) -> bool:
    """Whether that share of the shorter text's n-grams is in the other, for a text and any of the others."""
    found = Counter(i for gram in own for i in having.get(gram, ()))
    return any((size := min(len(own), len(sets[i]))) >= MIN_GRAMS and n >= share * size for i, n in found.items())


def _hashes(sets: Sequence[frozenset[str]]) -> list[MinHash]:
    return MinHash.bulk([[gram.encode() for gram in grams] for grams in sets], num_perm=PERMUTATIONS, seed=1)


def _words(text: str) -> list[str]:
    """Words and signs; of signs, punctuation is none."""
    return re.findall(r"\w+|[^\w\s.,;:!?'\"]", text.lower())
