"""Writes search_trees.json: the trees of the golden problems, by a plain search of one problem at a time.

The search uses nothing of astro_jax.search. It computes N and Q from the evaluations below a node, by Eq. 2 to 4 of the
paper, each time that they are needed.

    PYTHONPATH=.:tests python tests/golden/make_search_trees.py
"""

import json
import math
import pathlib

import numpy as np
from player import EOS, TOKENIZER, Player, problems

from astro_jax.sampler import Request
from astro_jax.verify import verify

GOLDEN = pathlib.Path(__file__).with_name("search_trees.json")
SEARCH = {
    "num_proposals": 4, "num_rollouts": 3, "num_simulations": 8, "max_depth": 2, "c_puct": 1.5, "max_tree_tokens": 300,
}  # fmt: skip
EARLY_STOP = {"correct": 1, "wrong": 2}
PROBLEMS = [*problems(6), *problems(4, count=4)]


def new(steps=(), prior=1.0):
    """A node.

    Args:
      steps: the tokens of each step from the root to the node.
      prior: P of the last step.
    """
    return {"steps": steps, "prior": prior, "children": [], "evaluations": 0, "reward": 0.0, "verdict": None}


def visits(node):
    return node["evaluations"] + sum(map(visits, node["children"]))


def value(node):
    below = sum(value(child) * visits(child) for child in node["children"])
    return (below + node["reward"]) / (sum(map(visits, node["children"])) + 1)


def puct(node, child):
    n = visits(child)
    q = value(child) if n else 0.0
    return q + SEARCH["c_puct"] * child["prior"] * math.sqrt(visits(node)) / (1 + n)


def text(tokens):
    return TOKENIZER.decode([t for t in tokens if t != EOS])


def search(problem):
    player, prompt = Player(), tuple(TOKENIZER.encode(problem.prompt))
    root = new()
    nodes, sampled_tokens = [root], 0

    def draw(node, n, purpose):
        nonlocal sampled_tokens
        ids = [
            next(i for i, e in enumerate(nodes) if e["steps"] == node["steps"][:depth])
            for depth in range(1, len(node["steps"]) + 1)
        ]
        tokens = prompt + tuple(t for step in node["steps"] for t in step)
        request = Request(tokens, n, ("search", problem.id, purpose, *ids))
        completions = [player.one(request, j, purpose == "rollout") for j in range(n)]
        sampled_tokens += sum(len(c.token_ids) for c in completions)
        return completions

    def judge(node, more=(), stopped=True):
        return verify(problem, text([*(t for step in node["steps"] for t in step), *more]), stopped)

    def reason_to_end(simulations):
        answers = {n["verdict"].answer for n in nodes if n["verdict"] and not n["verdict"].correct}
        correct = sum(n["verdict"] is not None and n["verdict"].correct for n in nodes)
        if correct >= EARLY_STOP["correct"] and len(answers - {None}) >= EARLY_STOP["wrong"]:
            return "enough"
        if sampled_tokens >= SEARCH["max_tree_tokens"]:
            return "tokens"
        return "iterations" * (simulations == SEARCH["num_simulations"])

    simulations, end_reason = 0, ""
    while not end_reason:
        leaf = root
        while leaf["children"]:
            leaf = max(leaf["children"], key=lambda child, leaf=leaf: puct(leaf, child))
        if leaf["verdict"]:
            leaf["evaluations"] += 1
        else:
            steps = {}
            for s in draw(leaf, SEARCH["num_proposals"], "propose"):
                if s.stopped:
                    steps[tuple(s.token_ids.tolist())] = float(np.sum(s.logprobs))
            if not steps:
                leaf["verdict"], leaf["reward"] = verify(problem, "", False), 0.0
                leaf["evaluations"] += 1
            total = sum(math.exp(logp) for logp in steps.values())
            leaf["children"] = [new((*leaf["steps"], step), math.exp(logp) / total) for step, logp in steps.items()]
            nodes += leaf["children"]
            for child in leaf["children"]:
                ended = child["steps"][-1][-1] == EOS
                if ended or len(child["steps"]) == SEARCH["max_depth"]:
                    child["verdict"] = judge(child, stopped=ended)
                    child["reward"] = float(child["verdict"].correct)
                else:
                    rollouts = draw(child, SEARCH["num_rollouts"], "rollout")
                    verdicts = [judge(child, s.token_ids.tolist(), s.stopped) for s in rollouts]
                    child["reward"] = sum(v.correct for v in verdicts) / len(verdicts)
                child["evaluations"] = 1
        simulations += 1
        end_reason = reason_to_end(simulations)
    records = [
        {
            "text": text(n["steps"][-1]) if n["steps"] else "",
            "parent": next((i for i, e in enumerate(nodes) if n["steps"] and e["steps"] == n["steps"][:-1]), -1),
            "prior": round(n["prior"], 6), "reward": round(n["reward"], 6),
            "visits": visits(n), "value": round(value(n), 6),
            "correct": bool(n["verdict"] and n["verdict"].correct), "terminal": n["verdict"] is not None,
        }
        for n in nodes
    ]  # fmt: skip
    return {
        "problem": problem.id, "end_reason": end_reason, "simulations": simulations, "sampled_tokens": sampled_tokens,
        "nodes": records,
    }  # fmt: skip


if __name__ == "__main__":
    trees = [search(problem) for problem in PROBLEMS]
    GOLDEN.write_text("[\n" + ",\n".join(json.dumps(tree) for tree in trees) + "\n]\n")
