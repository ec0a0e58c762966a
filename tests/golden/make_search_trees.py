"""Writes search_trees.json: what each tree of the golden batch must be, by a plain search of one problem at a time.

Nothing of astro_jax.search is in here: N and Q are computed anew from the evaluations below a node, by Eq. 2 to 4 of
the paper, whenever one is asked for.

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
SEARCH = {"proposals": 4, "rollouts": 3, "iterations": 8, "depth": 2, "c_puct": 1.5, "max_tree_tokens": 300}
ENOUGH = {"correct": 1, "wrong": 2}
PROBLEMS = [*problems(6), *problems(4, count=4)]


def new(steps=(), prior=1.0):
    """steps: of the way from the root, each as its tokens. evaluations: how often R was backed up from here."""
    return {"steps": steps, "prior": prior, "children": [], "evaluations": 0, "reward": 0.0, "verdict": None}


def visits(node):
    return node["evaluations"] + sum(map(visits, node["children"]))


def value(node):
    below = sum(value(child) * visits(child) for child in node["children"])
    return (below + node["reward"]) / (sum(map(visits, node["children"])) + 1)


def puct(node, child):
    seen = visits(child)
    q = value(child) if seen else 0.0
    return q + SEARCH["c_puct"] * child["prior"] * math.sqrt(visits(node)) / (1 + seen)


def text(tokens):
    return TOKENIZER.decode([t for t in tokens if t != EOS])


def search(problem):
    player, prompt = Player(), tuple(TOKENIZER.encode(problem.prompt))
    root = new()
    every, sampled = [root], 0

    def draw(node, n, purpose):
        nonlocal sampled
        ids = [
            next(i for i, e in enumerate(every) if e["steps"] == node["steps"][:depth])
            for depth in range(1, len(node["steps"]) + 1)
        ]
        tokens = prompt + tuple(t for step in node["steps"] for t in step)
        request = Request(tokens, n, ("search", problem.id, purpose, *ids))
        found = [player.one(request, j, purpose == "rollout") for j in range(n)]
        sampled += sum(len(s.tokens) for s in found)
        return found

    def judge(node, more=(), stopped=True):
        return verify(problem, text([*(t for step in node["steps"] for t in step), *more]), stopped)

    def end(done):
        answers = {n["verdict"].answer for n in every if n["verdict"] and not n["verdict"].correct}
        right = sum(n["verdict"] is not None and n["verdict"].correct for n in every)
        if right >= ENOUGH["correct"] and len(answers - {None}) >= ENOUGH["wrong"]:
            return "enough"
        return "tokens" if sampled >= SEARCH["max_tree_tokens"] else "iterations" * (done == SEARCH["iterations"])

    done, why = 0, ""
    while not why:
        leaf = root
        while leaf["children"]:
            leaf = max(leaf["children"], key=lambda child, leaf=leaf: puct(leaf, child))
        if leaf["verdict"]:
            leaf["evaluations"] += 1
        else:
            steps = {}
            for s in draw(leaf, SEARCH["proposals"], "propose"):
                if s.stopped:
                    steps[tuple(s.token_ids.tolist())] = float(np.sum(s.logprobs))
            if not steps:
                leaf["verdict"], leaf["reward"] = verify(problem, "", False), 0.0
                leaf["evaluations"] += 1
            total = sum(math.exp(logp) for logp in steps.values())
            leaf["children"] = [new((*leaf["steps"], step), math.exp(logp) / total) for step, logp in steps.items()]
            every += leaf["children"]
            for child in leaf["children"]:
                ended = child["steps"][-1][-1] == EOS
                if ended or len(child["steps"]) == SEARCH["depth"]:
                    child["verdict"] = judge(child, stopped=ended)
                    child["reward"] = float(child["verdict"].correct)
                else:
                    rollouts = draw(child, SEARCH["rollouts"], "rollout")
                    verdicts = [judge(child, s.token_ids.tolist(), s.stopped) for s in rollouts]
                    child["reward"] = sum(v.correct for v in verdicts) / len(verdicts)
                child["evaluations"] = 1
        done += 1
        why = end(done)
    nodes = [
        {
            "text": text(n["steps"][-1]) if n["steps"] else "",
            "parent": next((i for i, e in enumerate(every) if n["steps"] and e["steps"] == n["steps"][:-1]), -1),
            "prior": round(n["prior"], 6), "reward": round(n["reward"], 6),
            "visits": visits(n), "value": round(value(n), 6),
            "correct": bool(n["verdict"] and n["verdict"].correct), "terminal": n["verdict"] is not None,
        }
        for n in every
    ]  # fmt: skip
    return {"problem": problem.id, "ended": why, "iterations": done, "sampled_tokens": sampled, "nodes": nodes}


if __name__ == "__main__":
    trees = [search(problem) for problem in PROBLEMS]
    GOLDEN.write_text("[\n" + ",\n".join(json.dumps(tree) for tree in trees) + "\n]\n")
