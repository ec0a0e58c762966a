"""Which problems to train on are those of an evaluation set: the same, or nearly so.

The same: equal words and signs, whatever the spaces, capitals and punctuation. Nearly: the sets of n-grams of words
and signs overlap by at least a given Jaccard index, which is computed for all pairs that MinHash proposes (datasketch).
It proposes from half that index on, so that few are missed. A text of fewer than n words has one n-gram. Contained:
nearly all n-grams of the shorter text are in the longer one; short texts are not looked at.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from datasketch import MinHash, MinHashLSH

from astro_jax.problems import Problem

WORDS = 5  # of an n-gram: word problems are short
PERMUTATIONS = 128
CONTAINED, LEAST = 0.9, 8  # share of the shorter text's n-grams, and how many it must have (ours)


def drop(problems: Sequence[Problem], against: Sequence[str], near: float) -> tuple[list[Problem], Counter[str]]:
    """The problems that are not among some texts, and how many were dropped: exact, near and contained.

    Args:
      against: texts of evaluation problems.
      near: the Jaccard index from which two texts are nearly the same; 1: only equal ones are dropped.
    """
    exact, dropped = {tuple(_words(text)) for text in against}, Counter({"exact": 0, "near": 0, "contained": 0})
    grams = [ngrams(text) for text in dict.fromkeys(against)]
    index = MinHashLSH(threshold=near / 2, num_perm=PERMUTATIONS) if near < 1 else None
    if index is not None:
        with index.insertion_session() as session:
            for i, h in enumerate(_hashes(grams)):
                session.insert(i, h)
    holders: dict[str, list[int]] = {}
    for i, gram in ((i, gram) for i, each in enumerate(grams) for gram in each):
        holders.setdefault(gram, []).append(i)
    kept = []
    mine = [ngrams(p.prompt) for p in problems]
    for p, own, h in zip(problems, mine, _hashes(mine) if index is not None else [None] * len(mine), strict=True):
        if tuple(_words(p.prompt)) in exact:
            dropped["exact"] += 1
        elif index is not None and any(jaccard(own, grams[i]) >= near for i in index.query(h)):
            dropped["near"] += 1
        elif index is not None and _contained(own, grams, holders):
            dropped["contained"] += 1
        else:
            kept.append(p)
    return kept, dropped


def _contained(own: frozenset[str], grams: Sequence[frozenset[str]], holders: Mapping[str, Sequence[int]]) -> bool:
    """Whether a text is in one of others, or one of them in it; `holders` tells which of them have an n-gram."""
    shared = Counter(i for gram in own for i in holders.get(gram, ()))
    shorter = ((n, min(len(own), len(grams[i]))) for i, n in shared.items())
    return any(size >= LEAST and n >= CONTAINED * size for n, size in shorter)


def ngrams(text: str) -> frozenset[str]:
    """The n-grams of a text's words and signs."""
    words = _words(text)
    n = min(WORDS, max(len(words), 1))
    return frozenset(" ".join(words[i : i + n]) for i in range(max(len(words) - n + 1, 1)))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """The share of what two sets have in common."""
    return len(a & b) / len(a | b)


def _hashes(sets: Sequence[frozenset[str]]) -> list[MinHash]:
    return MinHash.bulk([[gram.encode() for gram in grams] for grams in sets], num_perm=PERMUTATIONS, seed=1)


def _words(text: str) -> list[str]:
    """Words and signs; of signs, punctuation is none."""
    return re.findall(r"\w+|[^\w\s.,;:!?'\"]", text.lower())
