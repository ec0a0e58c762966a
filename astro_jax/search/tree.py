"""One search tree: PUCT selection, expansion, backup. No model in here.

A node is a reasoning state: the problem and the steps so far. A node is terminal when its last step ended with the
end token, or when it stands at the depth limit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from astro_jax.problems import Problem
from astro_jax.storage import Json


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


class Tree:
    """The tree of one problem. Node 0 is the root."""

    def __init__(self, problem: Problem, prompt: Sequence[int] = ()):
        self.problem = problem
        self.prompt = tuple(prompt)
        self.nodes = [Node(0, -1)]

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
        """Descend by PUCT to a node without children: argmax_a Q + c_puct P sqrt(N(S)) / (1 + N(S, a)).

        A selection counts as a visit of value 0 on its path until it is backed up (virtual loss).
        """
        at = self.nodes[0]
        while at.children:
            total = math.sqrt(at.visits + at.virtual)
            at.virtual += 1
            at = max((self.nodes[c] for c in at.children), key=lambda n: _puct(n, total, c_puct))
        at.virtual += 1
        return at.id

    def release(self, node: int) -> None:
        """Take back the virtual visits of one selection."""
        for n in (self.nodes[0], *self.path(node)):
            n.virtual -= 1

    def add(self, parent: int, tokens: Sequence[int], text: str, prior: float) -> Node:
        """A new child, not evaluated yet."""
        node = Node(len(self.nodes), parent, tuple(tokens), text, prior)
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

    def record(self) -> Json:
        """The tree as one JSON record."""
        fields = ("id", "parent", "text", "terminal", "correct", "answer", "visits", "value", "prior", "reward")
        nodes = [{f: getattr(n, f) for f in fields} for n in self.nodes]
        for node in nodes:
            node.update({f: round(node[f], 6) for f in ("value", "prior", "reward")})
        return {"problem": dataclasses.asdict(self.problem), "nodes": nodes}

    @classmethod
    def from_record(cls, record: Json) -> Tree:
        """The tree of a record (without tokens)."""
        tree = cls(Problem(**record["problem"]))
        tree.nodes = [Node(**fields) for fields in record["nodes"]]
        for node in tree.nodes[1:]:
            tree.nodes[node.parent].children.append(node.id)
        return tree


def _puct(node: Node, sqrt_total: float, c_puct: float) -> float:
    visits = node.visits + node.virtual
    value = node.value * node.visits / visits if visits else 0.0
    return value + c_puct * node.prior * sqrt_total / (1 + visits)
