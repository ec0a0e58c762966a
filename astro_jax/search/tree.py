"""One search tree: PUCT selection, expansion, backup. No model in here.

A node is a reasoning state: the problem and the steps so far. A node is terminal when its last step ended with the
end token, or when nothing can follow it: it stands at the depth limit, the model's context has no room for more, or no
step that was proposed after it came to an end.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence

from astro_jax.storage import Json
from astro_jax.types import Problem


@dataclasses.dataclass
class Node:
    """A state, and the action (step) that led to it from its parent.

    Attributes:
      tokens: the action's tokens.
      text: the action's text, without the end token.
      prior: P_LM(a | S) among its siblings.
      reward: R(S) (Eq. 2), the mean verdict of its rollouts; of a terminal node its own verdict.
      visits: N(S) (Eq. 3): evaluations in its subtree, its own included.
      value: Q (Eq. 4) of the action that leads here.
      virtual: selections under way, which count as visits of value 0 until they are backed up.
      number: of those that the search has proposed, in order; it names the draws at the node.
      kept: rollouts that were kept and lead through it, until the search proposes it itself (Tree.solution).
    """

    id: int
    parent: int
    tokens: tuple[int, ...] = ()
    text: str = ""
    prior: float = 1.0
    reward: float = 0.0
    visits: int = 0
    value: float = 0.0
    terminal: bool = False
    correct: bool | None = None
    answer: str | None = None
    children: list[int] = dataclasses.field(default_factory=list)
    virtual: int = 0
    number: int = 0
    kept: int = 0


Step = tuple[tuple[int, ...], str]  # its tokens and its text


class Tree:
    """The tree of one problem. Node 0 is the root.

    Attributes:
      iterations: rounds of selection, expansion, evaluation and backup so far.
      sampled: tokens drawn for it, of proposals and rollouts alike.
      unfinished: nodes after which no proposed step came to an end within `max_step_tokens`.
      ended: why it grows no further: "iterations", "enough", "tokens", or "samples" (best-of-N); "" while it does.
    """

    def __init__(self, problem: Problem, prompt: Sequence[int] = ()):
        self.problem = problem
        self.prompt = tuple(prompt)
        self.nodes = [Node(0, -1)]
        self.iterations = self.sampled = self.unfinished = 0
        self.ended = ""
        self._proposed = 0

    def path(self, node: int) -> list[Node]:
        """The nodes from the root's child down to this one."""
        found = []
        while node:
            found.append(self.nodes[node])
            node = self.nodes[node].parent
        return found[::-1]

    def tokens(self, node: int) -> tuple[int, ...]:
        """The prompt and all steps up to a node."""
        return self.prompt + tuple(t for n in self.path(node) for t in n.tokens)

    def text(self, node: int) -> str:
        """All steps up to a node."""
        return "".join(n.text for n in self.path(node))

    def select(self, c_puct: float) -> int:
        """Descend by PUCT to a node without proposed children: argmax_a Q + c_puct P sqrt(N(S)) / (1 + N(S, a)).

        A selection counts as a visit of value 0 on its path until it is backed up (virtual loss).
        """
        at = self.nodes[0]
        while proposed := [self.nodes[c] for c in at.children if not self.nodes[c].kept]:
            total = math.sqrt(at.visits + at.virtual)
            at.virtual += 1
            at = max(proposed, key=lambda n: _puct(n, total, c_puct))
        at.virtual += 1
        return at.id

    def release(self, node: int) -> None:
        """Take back the virtual visits of one selection."""
        for n in (self.nodes[0], *self.path(node)):
            n.virtual -= 1

    def add(self, parent: int, tokens: Sequence[int], text: str, prior: float) -> Node:
        """A child, not evaluated yet: a new one, or the one with these tokens that a kept rollout has left there."""
        node = self._child(parent, tuple(tokens))
        if node is None or not node.kept:
            node = self._new(parent, tuple(tokens), text)
        self._proposed += 1
        node.prior, node.number, node.kept = prior, self._proposed, 0
        return node

    def solution(self, node: int, steps: Sequence[Step], correct: bool, answer: str | None, visit: bool) -> list[Node]:
        """Put a judged solution below a node: one node a step, equal beginnings merged, the last one terminal.

        R(S) is Eq. 2 over the solutions that lead through S, and Q = R: by Eq. 4 too, since the mean over S's children
        is the mean over those same solutions.

        Args:
          visit: each solution is an evaluation, N(S) += 1 from the root on (best-of-N). Otherwise it is a rollout that
            is kept and counts in the R of `node` already: N = 0 and prior 0, so neither PUCT nor a Q above sees it.

        Returns:
          the nodes of the steps.
        """
        found: list[Node] = []
        for tokens, text in steps:
            at = found[-1].id if found else node
            found.append(self._child(at, tokens) or self._new(at, tokens, text))
        for n in (self.nodes[0], *found) if visit else found:
            if visit:
                n.visits += 1
            else:
                n.prior, n.kept = 0.0, n.kept + 1
            n.reward += (correct - n.reward) / (n.visits or n.kept)
            n.value = n.reward
        found[-1].terminal, found[-1].correct, found[-1].answer = True, correct, answer
        return found

    def _child(self, parent: int, tokens: tuple[int, ...]) -> Node | None:
        """The child that these tokens lead to."""
        children = (self.nodes[c] for c in self.nodes[parent].children)
        return next((child for child in children if child.tokens == tokens), None)

    def _new(self, parent: int, tokens: tuple[int, ...], text: str) -> Node:
        node = Node(len(self.nodes), parent, tokens, text)
        self.nodes.append(node)
        self.nodes[parent].children.append(node.id)
        return node

    def backup(self, node: int) -> None:
        """Count one evaluation of a node, whose reward is set, and refresh N and Q up to the root (Eq. 3 and 4).

        Q(S, a) = (sum_i Q(S', a_i) N(S', a_i) + R(S')) / (sum_i N(S', a_i) + 1), where a leads to S'.
        """
        for n in (*self.path(node)[::-1], self.nodes[0]):
            n.visits += 1
            children = [self.nodes[c] for c in n.children]
            visits = sum(c.visits for c in children)
            n.value = (sum(c.value * c.visits for c in children) + n.reward) / (visits + 1)

    def terminals(self, correct: bool) -> list[Node]:
        """The correct or incorrect terminal nodes, in depth-first order."""
        found, stack = [], [0]
        while stack:
            node = self.nodes[stack.pop()]
            if node.terminal and node.correct == correct:
                found.append(node)
            stack.extend(reversed(node.children))
        return found

    def enough(self, correct: int, wrong: int) -> bool:
        """Whether it has so many correct terminals, and incorrect ones with so many different answers."""
        answers = {n.answer for n in self.terminals(False) if n.answer}
        return len(self.terminals(True)) >= correct and len(answers) >= wrong

    def record(self, whole: bool = False) -> Json:
        """The tree as one JSON record.

        No field is null or differs in type from tree to tree, which `datasets` would refuse: what has no answer has the
        answer "", what is not terminal is not correct, and the problem's `meta` is JSON in a text.

        Args:
          whole: with tokens and every digit, so that the tree can grow on.
        """
        fields: tuple[str, ...] = (
            "id", "parent", "text", "terminal", "correct", "answer", "visits", "value", "prior", "reward", "kept",
        )  # fmt: skip
        fields += ("tokens", "number") if whole else ()
        nodes = [{f: getattr(n, f) for f in fields} for n in self.nodes]
        for node in nodes:
            node |= {"correct": bool(node["correct"]), "answer": node["answer"] or ""}
            node |= {} if whole else {f: round(node[f], 6) for f in ("value", "prior", "reward")}
        problem = dataclasses.asdict(self.problem)
        return {
            "problem": problem | {"meta": json.dumps(problem["meta"])},
            "ended": self.ended,
            "iterations": self.iterations,
            "sampled_tokens": self.sampled,
            "unfinished": self.unfinished,
            **({"prompt": self.prompt} if whole else {}),
            "nodes": nodes,
        }

    @classmethod
    def from_record(cls, record: Json) -> Tree:
        """The tree of a record: with tokens if it is whole."""
        problem = record["problem"]
        tree = cls(Problem(**problem | {"meta": json.loads(problem["meta"])}), record.get("prompt", ()))
        tree.ended, tree.iterations = record["ended"], record["iterations"]
        tree.sampled, tree.unfinished = record["sampled_tokens"], record["unfinished"]
        tree.nodes = [
            Node(**fields | {
                "tokens": tuple(fields.get("tokens", ())),
                "correct": fields["correct"] if fields["terminal"] else None,
                "answer": fields["answer"] or None,
            }) for fields in record["nodes"]
        ]  # fmt: skip
        tree._proposed = max(node.number for node in tree.nodes)
        for node in tree.nodes[1:]:
            tree.nodes[node.parent].children.append(node.id)
        return tree


def _puct(node: Node, sqrt_total: float, c_puct: float) -> float:
    visits = node.visits + node.virtual
    value = node.value * node.visits / visits if visits else 0.0
    return value + c_puct * node.prior * sqrt_total / (1 + visits)
