"""Procedure cloning by a model (paper, section 2.4): the model writes the segments of the templates again.

A trace is written one segment after the other, and the prompt of a segment shows the trace so far. Many traces are
written at once, one segment of each in a call of the sampler. A text that fails a check (`rewrite_checks`) is sampled
again, and after `traces.clone_retries` retries the template's segment stays.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence

from astro_jax import config as cfg
from astro_jax import phrases
from astro_jax.policy import Prompt
from astro_jax.search.tree import Tree
from astro_jax.traces import rewrite_checks
from astro_jax.traces.procedure_cloning import Segment
from astro_jax.traces.writer import TraceWriter
from astro_jax.types import Response
from astro_jax.verify.same_answer import value_key

TEMPLATES = {"step": "rewrite", "backtrack": "go_back", "reflect": "reflect"}  # segment kind -> prompt template


def model_kinds(c: cfg.Traces) -> list[str]:
    """The kinds of segments that the model writes."""
    return ["step", "backtrack"] * (c.clone == "model") + ["reflect"] * (c.phrases == "model")


@dataclasses.dataclass
class PendingTrace:
    """A trace whose segments are being written.

    Attributes:
      request_id: names the random draws of the trace.
      sequence: the nodes that the trace visits, from `linearize`.
      pending: the template's segments that are not written yet.
      done: the segments that are written.
      attempts: rejected texts for the next segment.
      counts: segments that the model was asked for, those accepted, and rejections by reason.
    """

    tree: Tree
    request_id: tuple[str | int, ...]
    sequence: list[int]
    pending: list[Segment]
    done: list[Segment] = dataclasses.field(default_factory=list)
    attempts: int = 0
    counts: Counter[str] = dataclasses.field(default_factory=Counter)

    @property
    def text(self) -> str:
        """The trace so far."""
        return "".join(segment.text for segment in self.done)


def rewrite(
    traces: Sequence[PendingTrace],
    c: cfg.Traces,
    writer: TraceWriter | None,
    report: Callable[[float], None] = lambda share: None,
) -> None:
    """Write all traces to their ends.

    Args:
      writer: the model. Not needed when the model writes no kind of segment.
      report: called after each call of the sampler with the share of segments that are done.
    """
    total = sum(len(trace.pending) + len(trace.done) for trace in traces)
    while active := [trace for trace in traces if _skip_fixed_segments(trace, c)]:
        assert writer is not None, "the model writes segments of these kinds"
        prompts = [_prompt(trace, writer) for trace in active]
        limits = [_max_tokens(trace.pending[0], c, writer) for trace in active]
        completions = writer.complete(prompts, limits, c.clone_temperature, ["\n\n"])
        texts = [
            _clean(trace.pending[0], group[0]) if group else None
            for trace, group in zip(active, completions, strict=True)
        ]
        reasons = [
            _rejection(trace, text, bool(group), writer)
            for trace, text, group in zip(active, texts, completions, strict=True)
        ]
        candidates = [(i, active[i], text) for i, text in enumerate(texts) if reasons[i] is None and text is not None]
        for i in _changed_answers(candidates, writer):
            reasons[i] = "final answer"
        for trace, text, reason in zip(active, texts, reasons, strict=True):
            _accept_or_retry(trace, text, reason, c)
        report(sum(len(trace.done) for trace in traces) / total)


def _skip_fixed_segments(trace: PendingTrace, c: cfg.Traces) -> bool:
    """Move past the segments that stay as the template wrote them.

    A blank step has nothing to rewrite. A restart from the beginning is the paper's own sentence.

    Returns:
      whether a segment is left for the model to write.
    """
    while trace.pending:
        segment = trace.pending[0]
        restart = segment.kind == "backtrack" and not segment.text.startswith(phrases.GO_BACK)
        if segment.kind in model_kinds(c) and segment.text.strip() and not restart:
            return True
        trace.done.append(trace.pending.pop(0))
    return False


def _prompt(trace: PendingTrace, writer: TraceWriter) -> Prompt:
    """The prompt for the next segment of a trace."""
    segment, tree = trace.pending[0], trace.tree
    values: dict[str, str | bool] = {"problem": tree.problem.prompt.strip(), "solution": trace.text.strip()}
    if segment.kind == "reflect":
        values |= {"correct": segment.text.endswith(phrases.CORRECT)}
    else:
        values |= {"step": rewrite_checks.subject(tree, segment)}
    request_id = (*trace.request_id, len(trace.done), trace.attempts)
    return Prompt(writer.templates[TEMPLATES[segment.kind]].render(**values), 1, request_id)


def _max_tokens(segment: Segment, c: cfg.Traces, writer: TraceWriter) -> int:
    """The most tokens of a rewritten segment: `clone_tokens`, or twice the template's segment if that is more.

    So a long step is not cut off at every attempt, and left as it is.
    """
    return max(c.clone_tokens, 2 * len(writer.policy.tokenizer.encode_after(segment.text)))


def _clean(segment: Segment, text: str | None) -> str | None:
    """A completion in the form of a segment: lines without outer spaces, and a backtrack with its fixed beginning."""
    if text is None:
        return None
    lines = [line.strip() for line in text.strip().splitlines()]
    body = "\n".join(line for line in lines if line)
    if segment.kind == "backtrack" and body:
        return f"{phrases.GO_BACK} {body.removeprefix(phrases.GO_BACK.strip()).strip()}\n"
    return f"{' ' * (segment.kind == 'reflect')}{body}\n"


def _rejection(trace: PendingTrace, text: str | None, asked: bool, writer: TraceWriter) -> str | None:
    """Why the next segment cannot be this text: a reason of `rewrite_checks.rejection`, "cut off" for a completion
    without an end, or "too long to ask" for a prompt that the model's context cannot hold."""
    if text is None:
        return "cut off" if asked else "too long to ask"
    segment = trace.pending[0]
    template = writer.templates[TEMPLATES[segment.kind]]
    return rewrite_checks.rejection(trace.tree, segment, text, trace.text, template)


def _changed_answers(candidates: Sequence[tuple[int, PendingTrace, str]], writer: TraceWriter) -> list[int]:
    """The indices of rewritten last steps that change the final answer of their branch, by the verifier."""
    ends = [
        (i, node, Response(trace.tree.problem, trace.tree.path_text(node.parent) + text, True))
        for i, trace, text in candidates
        if trace.pending[0].kind == "step" and (node := trace.tree.nodes[trace.pending[0].node]).terminal
    ]
    verdicts = writer.verifier.judge([response for *_, response in ends])
    return [
        i
        for (i, node, _), verdict in zip(ends, verdicts, strict=True)
        if value_key(verdict.answer or "") != value_key(node.answer or "")
    ]


def _accept_or_retry(trace: PendingTrace, text: str | None, reason: str | None, c: cfg.Traces) -> None:
    """Accept a text as the next segment, keep the segment pending for a retry, or keep the template's segment."""
    if reason is not None:
        trace.counts[reason] += 1
        trace.attempts += 1
        if trace.attempts <= c.clone_retries and reason != "too long to ask":
            return
    segment = trace.pending.pop(0)
    trace.attempts = 0
    trace.counts["segments"] += 1
    if reason is None and text is not None:
        trace.counts["accepted"] += 1
        segment = dataclasses.replace(segment, text=text)
    trace.done.append(segment)
