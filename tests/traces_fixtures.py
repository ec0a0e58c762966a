"""Trees, a scripted model and stores that the tests of the traces share."""

import dataclasses
import json
import random
import types

import numpy as np
from etils import epath
from helpers import chat_tokenizer, countdown_tokenizer

from astro_jax import config as cfg
from astro_jax import countdown, prompts
from astro_jax.countdown import Game
from astro_jax.policy import Policy
from astro_jax.sampler import Completion
from astro_jax.search.tree import Tree
from astro_jax.storage import Shards
from astro_jax.traces import card, dataset
from astro_jax.traces.linearize import linearize
from astro_jax.traces.writer import TraceWriter
from astro_jax.types import Problem
from astro_jax.verify import Verifier

# ---- Countdown trees


def hand_tree():
    """Make 10 from 2 3 4.

    root
    |- 1  3 * 2 = 6, left 4 6     Q 0.75
    |  |- 3  6 - 4 = 2            wrong
    |  `- 4  6 + 4 = 10           correct
    |- 2  4 + 3 = 7, left 2 7     Q 0.25
    |  |- 5  7 + 2 = 9            wrong
    |  |- 6  7 - 2 = 5            wrong
    |  |- 7  4 + 4 = 8            wrong, without a valid answer
    |  `- 8  7 + 2 = 9            wrong, the answer of 5 again
    `- 9  4 * 3 = 12, left 2 12   not expanded
    """
    tree = Tree(countdown.make_problem((2, 3, 4), 10))
    miss, hit = ", which misses the target!\n", ", which is the target!\n"
    rows = [
        (0, " 3 * 2 = 6, left 4 6.\n", None, 0.75),
        (0, " 4 + 3 = 7, left 2 7.\n", None, 0.25),
        (1, " 6 - 4 = 2" + miss, "2", 0.0),
        (1, " 6 + 4 = 10" + hit, "10", 1.0),
        (2, " 7 + 2 = 9" + miss, "9", 0.0),
        (2, " 7 - 2 = 5" + miss, "5", 0.0),
        (2, " 4 + 4 = 8" + miss, None, 0.0),
        (2, " 7 + 2 = 9" + miss, "9", 0.0),
        (0, " 4 * 3 = 12, left 2 12.\n", None, 0.0),
    ]
    for parent, text, answer, value in rows:
        node = tree.add_child(parent, (), text, 1.0)
        node.value = value
        if "target" in text:
            node.end(answer == "10", answer)
    return tree


def random_tree(seed):
    """Valid steps, true verdicts, some terminals without an answer, and random Q, rounded as in a store."""
    rng = random.Random(seed)
    game = Game(count=rng.choice([2, 3, 4]), max_number=9, max_value=40)
    numbers = tuple(rng.randint(1, 9) for _ in range(game.count))
    target = rng.choice(sorted(countdown.reachable(numbers, game)))
    tree = Tree(dataclasses.replace(countdown.make_problem(numbers, target), id=f"problem-{seed}"))
    frontier = [(0, numbers)]
    while frontier:
        at, left = frontier.pop(0)
        moves = countdown.moves(left, game)
        for move in rng.sample(moves, min(len(moves), rng.choice([2, 3, 5]))):
            node = tree.add_child(at, (), countdown.step_text(left, move, target), 1.0)
            node.value = round(rng.random(), 6)
            if rng.random() < 0.1:
                node.text, node.terminal, node.correct = " 1 = 2.\n", True, False
            elif len(left) == 2:
                node.end(move.result == target, str(move.result))
            else:
                frontier.append((node.id, countdown.after(left, move)))
    return tree


TREES = [random_tree(seed) for seed in range(60)]
VALID = [t for t in TREES if any(n.correct for n in t.nodes)]


def path_ids(tree, node):
    """Node ids from the root's child to a node."""
    return path_ids(tree, tree.nodes[node].parent) + [node] if node else []


def num_wrong_answers(tree):
    return len({n.answer for n in tree.nodes if n.terminal and n.correct is False and n.answer is not None})


def linearized(k, trees=TREES, times=5):
    """(tree, sequence) of many draws that succeed."""
    for i, tree in enumerate(trees):
        for j in range(times):
            sequence = linearize(tree, k, random.Random(f"{i} {j}"))
            if sequence is not None:
                yield tree, sequence


def text_of(segments):
    return "".join(segment.text for segment in segments)


def write_dataset(folder, seed=0, **changes):
    """The traces of TREES from templates: (counts, ASTRO's examples, Direct's examples)."""
    store = Shards(epath.Path(folder) / "search", "trees")
    for i in range(0, len(TREES), 25):
        store.write(i // 25, (t.record() for t in TREES[i : i + 25]))
    counts = dataset.run(epath.Path(folder) / "traces", store, cfg.Traces(**changes), seed)
    astro, direct = ([json.loads(line) for line in (folder / "traces" / f).read_text().splitlines()]
                     for f in ("astro.jsonl", "direct.jsonl"))  # fmt: skip
    return counts, astro, direct


# ---- A problem in words, and a scripted model

TOKENIZER = dataclasses.replace(chat_tokenizer(), chat=cfg.Chat(template=True, system="Solve the problem."))
TEMPLATES = prompts.load({})
STEPS = ["First he buys 2 cats.\n", "The answer is 7.\n", "Then 2 + 3 = 5.\n", "The answer is 5.\n", "So 6.\n"]


def pets_tree(problem_id="pets"):
    """root -> 1 "2 cats" -> 2 "answer 7", wrong; 1 -> 3 -> 4 "answer 5", correct; root -> 5 -> 6, correct."""
    tree = Tree(Problem(problem_id, "Tom has 2 cats and 3 dogs. How many pets?", "5", {}, "number"))
    for parent, text in zip((0, 1, 1, 3, 0, 5), [*STEPS, "By luck the answer is 5.\n"], strict=True):
        tree.add_child(parent, (), text, 1.0)
    for node, answer in ((2, "7"), (4, "5"), (6, "5")):
        tree.nodes[node].end(answer == "5", answer)
    return tree


class ScriptedEngine:
    """An engine that asks a function: (request id, text of the prompt, index of the sample) -> the completion.

    A completion that begins with "…" is cut off.

    Attributes:
      calls: (sampling params, requests) of each call.
    """

    config = types.SimpleNamespace(max_positions=8192)

    def __init__(self, answer):
        self.answer, self.calls = answer, []

    def generate(
        self, params, requests, sampling, *, prefix_cache=None, stop_fn=None, progress=None, on_completion=None
    ):
        self.calls.append((sampling, requests))
        return [[self.one(r, j, stop_fn) for j in range(r.n)] for r in requests]

    def one(self, request, j, stop_fn):
        text = self.answer(request.request_id, TOKENIZER.decode(request.prompt_token_ids), j)
        tokens = TOKENIZER.encode_after(text.removeprefix("…"))
        length = stop_fn(tokens) if stop_fn else None
        tokens = tokens + [TOKENIZER.eos_token_id] if length is None else tokens[:length]
        logprobs = np.zeros(len(tokens), np.float32)
        reason = "length" if text.startswith("…") else "stop"
        return Completion(np.asarray(tokens, np.int32), logprobs, logprobs, reason)

    @property
    def request_ids(self):
        return [r.request_id for _, requests in self.calls for r in requests]

    @property
    def prompts(self):
        return [TOKENIZER.decode(r.prompt_token_ids) for _, requests in self.calls for r in requests]


def scripted_writer(answer):
    """(writer, engine)."""
    engine = ScriptedEngine(answer)
    return TraceWriter(Policy(engine, None, TOKENIZER), Verifier(), TEMPLATES), engine


def make_records(answer, trees=None, **changes):
    """(records, engine) of some trees, written by a scripted model."""
    writer, engine = scripted_writer(answer)
    return dataset.make_records(trees or [pets_tree()], cfg.Traces(**changes), 0, writer), engine


def rewrite_well(request_id, text, j):
    """A model that rewrites well: "So, " and the step; goes back by the words of the step; reflects."""
    step = text.split("Draft of the next step: ")[-1].split("\nRewritten step:")[0]
    if "Draft" in text:
        return f"So, {step}\n\nProblem: another"
    if "Step returned to: " in text:
        return " said this: " + text.split("Step returned to: ")[-1].split("\n")[0]
    if text.endswith("it looks right\nSaid:<assistant>"):
        return "Sure?  Yes, it looks right."
    return "Sure? No, it looks odd."


# ---- Export


ORIGIN = {"model": "some/model", "seed": 7, "config": "abc"}


def write_card(folder, order=1, problems=None):
    """A traces folder with its data card, from TREES."""
    store = Shards(epath.Path(folder) / "search", "trees")
    store.write(0, (t.record() for t in TREES[::order]))
    traces = epath.Path(folder) / "traces"
    counts = dataset.run(traces, store, cfg.Traces(), 7)
    card.write(traces, counts, store, countdown_tokenizer(99), ORIGIN, problems)
    return traces


def read_rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]
