"""Self-evaluation (paper, section 2.3 and appendix A.1): the model judges its own correct solutions.

A correct answer that was reached by luck teaches bad reasoning. Psi' are the correct terminals of a tree that enough
of N sampled judgements approve. Traces end only at these.
"""

from __future__ import annotations

from collections.abc import Sequence

from astro_jax import config as cfg
from astro_jax import judge
from astro_jax.policy import Prompt
from astro_jax.search.tree import Tree
from astro_jax.storage import Json
from astro_jax.traces.writer import TraceWriter


def evaluate(trees: Sequence[Tree], c: cfg.Traces, writer: TraceWriter) -> list[Json]:
    """Judge all correct terminals of all trees, in one call of the sampler.

    Returns:
      for each tree {"problem_id", "terminals": [{"node", "approved", "rejected", "unread", "passed", "judgements"}]}.
      `judgements` are the texts (None for one that was cut off); approved, rejected and unread count them.
    """
    terminals = [(tree, node) for tree in trees for node in tree.terminals(correct=True)]
    prompts = [
        Prompt(
            writer.templates["evaluate"].render(
                problem=tree.problem.prompt.strip(), solution=tree.path_text(node.id).strip()
            ),
            c.self_evaluation,
            ("traces", "evaluate", tree.problem.id, node.id),
        )
        for tree, node in terminals
    ]
    verdicts = writer.verifier.c.verdicts
    completions = writer.complete(prompts, [c.self_evaluation_tokens] * len(prompts), 1.0, verdicts)
    records: dict[str, list[Json]] = {tree.problem.id: [] for tree in trees}
    for (tree, node), texts in zip(terminals, completions, strict=True):
        records[tree.problem.id].append({"node": node.id, **_record(texts, c, verdicts), "judgements": texts})
    return [{"problem_id": problem_id, "terminals": judged} for problem_id, judged in records.items()]


def _record(texts: list[str | None], c: cfg.Traces, verdicts: judge.Verdicts) -> Json:
    """Count the judgements of one terminal."""
    judgements = judge.count(texts, c.self_evaluation, verdicts)
    return {
        "approved": judgements.approved, "rejected": judgements.rejected, "unread": judgements.unread,
        "passed": judgements.passes(c.self_evaluation_pass),
    }  # fmt: skip
