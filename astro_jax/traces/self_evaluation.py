"""Self-evaluation (paper, section 2.3 and appendix A.1): which right answers the model itself finds well reasoned.

Psi' are the correct terminals of a tree that enough of N sampled judgements approve of: a right answer that was reached
by luck teaches bad reasoning.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from astro_jax import config as cfg
from astro_jax.search.tree import Tree
from astro_jax.storage import Json
from astro_jax.traces.author import Author, Question

VERDICTS = ("Verdict: correct", "Verdict: incorrect")


def evaluate(trees: Sequence[Tree], c: cfg.Traces, author: Author) -> list[Json]:
    """Judge every correct terminal of all trees at once.

    Returns:
      for each tree {"problem_id", "terminals": [{"node", "approved", "rejected", "unread", "passed", "judgements"}]}:
      the judgements as text (None for one that came to no end), and how many of them say what.
    """
    terminals = [(tree, node) for tree in trees for node in tree.terminals(correct=True)]
    questions = [
        Question(
            author.prompts["evaluate"].render(problem=tree.problem.prompt.strip(), solution=tree.text(n.id).strip()),
            c.self_evaluation,
            ("traces", "evaluate", tree.problem.id, n.id),
        )
        for tree, n in terminals
    ]
    answers = author.ask(questions, c.self_evaluation_tokens, 1.0, VERDICTS)
    found: dict[str, list[Json]] = {tree.problem.id: [] for tree in trees}
    for (tree, node), texts in zip(terminals, answers, strict=True):
        found[tree.problem.id].append({"node": node.id, **_judge(texts, c), "judgements": texts})
    return [{"problem_id": name, "terminals": each} for name, each in found.items()]


def verdict(judgement: str | None) -> bool | None:
    """Whether a judgement approves; None where its last line is not, to the letter, one of the two verdicts."""
    lines = (judgement or "").strip().splitlines()
    match = re.fullmatch(r"Verdict: (correct|incorrect)\.?", lines[-1].strip()) if lines else None
    return None if match is None else match[1] == "correct"


def _judge(texts: Sequence[str | None], c: cfg.Traces) -> Json:
    """What cannot be read does not approve, nor does a question that was too long to be asked."""
    said = [verdict(text) for text in texts]
    approved, rejected = said.count(True), said.count(False)
    passed = approved >= c.self_evaluation_pass * c.self_evaluation
    unread = c.self_evaluation - approved - rejected
    return {"approved": approved, "rejected": rejected, "unread": unread, "passed": passed}
