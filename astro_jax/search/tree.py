"""A search tree: its nodes, and their JSON records. The search itself stands in `mcts`.

A node is a reasoning state: the problem and the steps so far. An action is one step. A node is terminal when its last
step ended with the end token, or when no step can follow: the node stands at the depth limit, the model's context has
no room for more, or no proposed step was complete within `search.max_step_tokens`.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import operator
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from astro_jax.storage import Json
from astro_jax.types import Problem
from astro_jax.verify.same_answer import value_key

# The fields of a node in a record; further ones in a resumable record.
_FIELDS = (
    "id", "parent", "text", "terminal", "correct", "answer", "visits", "value", "prior", "reward", "kept_rollouts",
)  # fmt: skip
_RESUMABLE_FIELDS = ("tokens", "number", "closed")


class Step(NamedTuple):
    """An action: one reasoning step as tokens, and as text without the end token."""

    tokens: tuple[int, ...]
    text: str


@dataclasses.dataclass(slots=True)
class Node:
    """A state S, and the action (step) a that led to S from its parent.

    Attributes:
      id: the node's index in `Tree.nodes`.
      parent: the id of the parent, -1 for the root.
      tokens: the tokens of the action.
      text: the text of the action, without the end token.
      prior: P(a | parent), the policy's probability of the action among its siblings.
      reward: R(S) (Eq. 2), the share of correct rollouts. For a terminal node: 1 if it is correct, else 0.
      visits: N(S) (Eq. 3), the number of evaluations in the node's subtree, its own included.
      value: Q(parent, a) (Eq. 4).
      terminal: whether no step can follow.
      correct: the verdict on a terminal node. None for all other nodes.
      answer: the final answer of a terminal node. None if none could be read.
      children: the ids of the children.
      virtual_visits: selections that lead through the node and are not backed up yet (`mcts.select`).
      number: the node is the number-th that the search proposed. It names the random draws at the node. 0 for the root,
        and for nodes that exist only because a rollout was kept.
      kept_rollouts: the number of kept rollouts that were sampled from this node or from a node above, and that lead
        through this node (`kept_rollouts.add`).
      closed: no proposed step after the node was complete, so the search cannot expand it. The node is not terminal,
        because rollouts from it came to an end.
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
    virtual_visits: int = 0
    number: int = 0
    kept_rollouts: int = 0
    closed: bool = False

    def lower_bound(self, confidence: float) -> float:
        """The lower end of Wilson's one-sided interval of Q. It is 0 for a node without evidence.

        The evidence is the number of kept rollouts or of visits, whichever is larger. One correct rollout alone gives
        0.38 at a confidence of 0.9, eight give 0.83.
        """
        n, z = max(self.visits, self.kept_rollouts), statistics.NormalDist().inv_cdf(confidence)
        if not n:
            return 0.0
        margin = z * math.sqrt(self.value * (1 - self.value) / n + z * z / (4 * n * n))
        return (self.value + z * z / (2 * n) - margin) / (1 + z * z / n)

    def count(self, correct: bool) -> None:
        """Count one solution that leads through the node.

        R(S) is Eq. 2 over these solutions. Q = R follows from Eq. 4: the mean over the children of S is the mean over
        the same solutions.
        """
        self.visits += 1
        self.reward += (correct - self.reward) / self.visits
        self.value = self.reward

    def end(self, correct: bool, answer: str | None) -> None:
        """Make the node terminal, with the verdict on its solution."""
        self.terminal, self.correct, self.answer = True, correct, answer


class Tree:
    """The tree of one problem. Node 0 is the root.

    Args:
      prompt_tokens: the tokens of the prompt.

    Attributes:
      nodes: all nodes. A node's id is its index.
      simulations: the number of simulations so far (selection, expansion, evaluation and backup), or of rounds.
      sampled_tokens: tokens that were sampled for the tree, in proposals and in rollouts.
      solved_at: `sampled_tokens` at the end of the first correct solution, as if the solutions were sampled one after
        the other and each was judged at once. 0 while no solution is correct.
      rollouts: the number of rollouts so far.
      unfinished: the number of nodes after which no proposed step was complete within `search.max_step_tokens`. With
        `search.method: rounds`, the number of rollouts that did not end within `search.max_rollout_tokens`.
      end_reason: why the search of the tree ended: "iterations" (all simulations are done), "enough" (early stop),
        "hopeless" or "trivial" (early stop), "tokens" (the token budget is spent), "rounds" (all rounds are done) or
        "samples" (best-of-N). "" while the tree is active.
    """

    def __init__(self, problem: Problem, prompt_tokens: Sequence[int] = ()):
        self.problem = problem
        self.prompt_tokens = tuple(prompt_tokens)
        self.nodes = [Node(0, -1)]
        self.simulations = self.sampled_tokens = self.solved_at = self.rollouts = self.unfinished = 0
        self.end_reason = ""
        self._proposals = 0

    def path(self, node: int) -> list[Node]:
        """The nodes from the root's child down to `node`. Empty for the root."""
        nodes = []
        while node:
            nodes.append(self.nodes[node])
            node = self.nodes[node].parent
        return nodes[::-1]

    def prefix_tokens(self, node: int) -> tuple[int, ...]:
        """The tokens of the prompt and of all steps up to `node`."""
        return self.prompt_tokens + tuple(token for n in self.path(node) for token in n.tokens)

    def path_text(self, node: int) -> str:
        """The text of all steps up to `node`, without the prompt."""
        return "".join(n.text for n in self.path(node))

    def add_child(self, parent: int, tokens: Sequence[int], text: str, prior: float) -> Node:
        """Add a proposed step as a child that is not evaluated yet.

        If a kept rollout has already added a child with these tokens, that child becomes the proposed one.
        """
        node = self._child(parent, tuple(tokens))
        if node is None or node.number or not node.kept_rollouts:
            node = self._append(parent, tuple(tokens), text)
        self._proposals += 1
        node.prior, node.number = prior, self._proposals
        return node

    def add_chain(self, node: int, steps: Sequence[Step]) -> list[Node]:
        """Add a chain of steps below `node`, one node a step. Steps that the tree already holds are not added again.

        Returns:
          the nodes of the steps.
        """
        chain: list[Node] = []
        for tokens, text in steps:
            parent = chain[-1].id if chain else node
            chain.append(self._child(parent, tokens) or self._append(parent, tokens, text))
        return chain

    def terminals(self, correct: bool) -> list[Node]:
        """The correct or the incorrect terminal nodes, in depth-first order."""
        return [node for node in self.all_terminals() if node.correct == correct]

    def all_terminals(self) -> list[Node]:
        """All terminal nodes, in depth-first order."""
        nodes, terminals, stack = self.nodes, [], [0]
        while stack:
            node = nodes[stack.pop()]
            if node.terminal:
                terminals.append(node)
            stack.extend(reversed(node.children))
        return terminals

    def has_enough(self, correct: int, wrong: int) -> bool:
        """Whether the tree has `correct` correct terminals, and incorrect ones with `wrong` different answers."""
        wrong_answers = {value_key(n.answer) for n in self.terminals(False) if n.answer}
        return len(self.terminals(True)) >= correct and len(wrong_answers) >= wrong

    def record(self, resumable: bool = False) -> Json:
        """The tree as one JSON record.

        The nodes are columns, one list a field: half the bytes of one object a node, and read in half the time. Each
        field has one type in all records, and none is null: `datasets` refuses other files. A node without an answer
        has the answer "", a node that is not terminal is not correct, and the problem's `meta` is JSON as text.

        Args:
          resumable: keep tokens and all digits, so that the search of the tree can go on.
        """
        names = _FIELDS + _RESUMABLE_FIELDS if resumable else _FIELDS
        columns = {name: list(map(operator.attrgetter(name), self.nodes)) for name in names}
        columns["correct"] = list(map(bool, columns["correct"]))
        columns["answer"] = [answer or "" for answer in columns["answer"]]
        if not resumable:
            columns |= {name: [round(x, 6) for x in columns[name]] for name in ("value", "prior", "reward")}
        problem = dataclasses.asdict(self.problem)
        return {
            "problem": problem | {"meta": json.dumps(problem["meta"])},
            "end_reason": self.end_reason,
            "simulations": self.simulations,
            "sampled_tokens": self.sampled_tokens,
            "solved_at": self.solved_at,
            "unfinished": self.unfinished,
            **({"prompt": self.prompt_tokens, "rollouts": self.rollouts} if resumable else {}),
            "nodes": columns,
        }

    @classmethod
    def from_record(cls, record: Json) -> Tree:
        """Read the tree of a record. Only the tree of a resumable record has tokens."""
        problem = record["problem"]
        tree = cls(Problem(**problem | {"meta": json.loads(problem["meta"])}), record.get("prompt", ()))
        tree.end_reason, tree.simulations = record["end_reason"], record["simulations"]
        tree.sampled_tokens, tree.unfinished = record["sampled_tokens"], record["unfinished"]
        tree.rollouts, tree.solved_at = record.get("rollouts", 0), record.get("solved_at", 0)
        columns = node_columns(record)
        n = len(columns["id"])
        # Records that are not resumable lack some fields, and old ones others.
        fields = dataclasses.fields(Node)
        columns = {f.name: [f.default] * n for f in fields if f.name not in columns} | columns
        columns |= {
            "tokens": list(map(tuple, columns["tokens"])),
            "correct": [c if t else None for c, t in zip(columns["correct"], columns["terminal"], strict=True)],
            "answer": [answer or None for answer in columns["answer"]],
            "children": [[] for _ in range(n)],
        }
        tree.nodes = list(itertools.starmap(Node, zip(*(columns[f.name] for f in fields), strict=True)))
        tree._proposals = max(node.number for node in tree.nodes)
        for node in tree.nodes[1:]:
            tree.nodes[node.parent].children.append(node.id)
        return tree

    def _child(self, parent: int, tokens: tuple[int, ...]) -> Node | None:
        """The first child of `parent` with these tokens. None if no child has them."""
        children = (self.nodes[c] for c in self.nodes[parent].children)
        return next((child for child in children if child.tokens == tokens), None)

    def _append(self, parent: int, tokens: tuple[int, ...], text: str) -> Node:
        node = Node(len(self.nodes), parent, tokens, text)
        self.nodes.append(node)
        self.nodes[parent].children.append(node.id)
        return node


def node_columns(record: Json) -> dict[str, list[Any]]:
    """The nodes of a tree's record as columns: {field: one value a node}. Version 0.2.0 wrote one object a node."""
    nodes = record["nodes"]
    return nodes if isinstance(nodes, dict) else {name: [node[name] for node in nodes] for name in nodes[0]}


def node_rows(record: Json) -> list[Json]:
    """The nodes of a tree's record as one object a node: {field: value}."""
    columns = node_columns(record)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
