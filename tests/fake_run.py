"""A made-up run, for the report. `python tests/fake_run.py FOLDER` writes the run and its page."""

import json
import math
import random
import sys

from etils import epath

from astro_jax import report

DOUBT = " But wait, are we solving the problem correctly so far? Hmm...\n"
UNSURE = " I'm not sure if we're solving the problem correctly so far.\n"
FINE = " Our solution seems to be correct so far.\n"
# name: pass@1, greedy, tokens, backtracks, valid, truncated
SCORES = {
    "base": (0.212, 0.264, 38.2, 0.00, 0.871, 0.011),
    "direct-sft": (0.318, 0.356, 35.9, 0.00, 0.962, 0.002),
    "astro-sft": (0.371, 0.402, 83.5, 0.94, 0.938, 0.019),
    "direct-rl": (0.524, 0.541, 34.8, 0.00, 0.991, 0.000),
    "astro-rl": (0.637, 0.648, 118.4, 1.87, 0.979, 0.014),
}


def dump(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def dump_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_problem(rng, i):
    """A Countdown problem and one solution of it, as [(text of a step, numbers left)]."""
    numbers = sorted(rng.sample(range(1, 26), 3))
    steps, left = [], numbers
    while len(left) > 1:
        steps.append(random_step(rng, left))
        left = steps[-1][1]
    prompt = f"Let us make {left[0]} from {' '.join(map(str, numbers))}.\n"
    meta = {"numbers": numbers, "target": left[0]}
    return {"id": f"countdown-{i}", "prompt": prompt, "answer": str(left[0]), "meta": meta}, steps


def random_step(rng, left):
    a, b = sorted(rng.sample(left, 2))
    op, value = rng.choice([("+", a + b), ("*", a * b), ("-", b - a)])
    rest = list(left)
    rest.remove(a)
    rest.remove(b)
    rest = sorted([*rest, value])
    first, second = (b, a) if op == "-" else (a, b)
    tail = f", left {' '.join(map(str, rest))}" if len(rest) > 1 else ""
    return f" {first} {op} {second} = {value}{tail}.\n", rest


def make_tree(rng, problem, steps, solved=True):
    """A tree of random steps; the known solution is in it when `solved`."""
    nodes = [{"id": 0, "parent": -1, "text": "", "terminal": False, "correct": None, "answer": None}]
    frontier = [(0, problem["meta"]["numbers"], tuple(steps) if solved else ())]
    while frontier:
        parent, left, path = frontier.pop(0)
        kids = {}
        if path:
            kids[path[0][0]] = (path[0][1], path[1:])
        for _ in range(rng.choice([2, 4, 7]) if parent == 0 or rng.random() < 0.7 else 0):
            text, rest = random_step(rng, left)
            kids.setdefault(text, (rest, ()))
        for text, (rest, onward) in sorted(kids.items()):
            done = len(rest) == 1
            right = rest[0] == problem["meta"]["target"] if done else None
            if done and right and not solved:
                continue
            verdict = ", which is the target" if right else ", which misses the target"
            text = text.replace(".\n", verdict + ".\n") if done else text
            nodes.append({"id": len(nodes), "parent": parent, "text": text, "terminal": done, "correct": right})
            nodes[-1]["answer"] = str(rest[0]) if done else None
            if not done:
                frontier.append((nodes[-1]["id"], rest, onward))
    for node in reversed(nodes):
        kids = [n for n in nodes if n["parent"] == node["id"]]
        node["visits"] = 1 + sum(n["visits"] for n in kids)
        node["reward"] = float(node["correct"]) if node["terminal"] else round(rng.betavariate(1, 4), 4)
        node["value"] = (node["reward"] + sum(n["value"] * n["visits"] for n in kids)) / node["visits"]
        node["prior"] = round(rng.uniform(0.05, 0.4), 3)
    return {"problem": problem, "nodes": nodes}


def make_trace(rng, tree, k):
    """Algorithm 1 on a made-up tree: k wrong branches, then a right one, with the reflections between them."""
    nodes, problem = tree["nodes"], tree["problem"]
    wrong = [n for n in nodes if n["terminal"] and not n["correct"]]
    ends = rng.sample(wrong, min(k, len(wrong))) + [next(n for n in nodes if n["correct"])]
    segments, current = [], [0]
    for i, end in enumerate(ends):
        path = [end["id"]]
        while path[0] != 0:
            path.insert(0, nodes[path[0]]["parent"])
        shared = max(d for d in range(len(path)) if path[: d + 1] == current[: d + 1])
        if i:
            back = " Let's restart our solution from the beginning, and make"
            back += f" {problem['meta']['target']} from {' '.join(map(str, problem['meta']['numbers']))}.\n"
            if path[shared]:
                back = f" Let's go back to where we had{nodes[path[shared]]['text']}"
            segments.append({"node": path[shared], "kind": "backtrack", "text": DOUBT + UNSURE + back})
        segments += [{"node": n, "kind": "step", "text": nodes[n]["text"]} for n in path[shared + 1 :]]
        current = path
    if k:
        segments.append({"node": current[-1], "kind": "reflect", "text": DOUBT + FINE})
    return {
        "problem_id": problem["id"],
        "kind": "search" if k else "direct",
        "k": k,
        "prompt": problem["prompt"],
        "response": "".join(s["text"] for s in segments),
        "nodes": [s["node"] for s in segments if s["kind"] != "reflect"],
        "segments": segments,
    }


def score(mean, n):
    half = 1.96 * math.sqrt(mean * (1 - mean) / n)
    return {"mean": mean, "low": max(0.0, mean - half), "high": min(1.0, mean + half), "n": n}


def fake_behaviour(first, backtracks):
    """Behaviour and errors of a model, with the fields of evaluate.behaviour and evaluate.error_classes."""
    changes = {"repair": 120, "spoil": 9, "stays wrong": 300, "stays right": 20} if backtracks else {}
    events = {"reflections": 2 * backtracks, "backtracks": backtracks, "restarts": 0.3 * backtracks}
    shares = {"repeat": 0.1 * bool(backtracks), "first_attempt_right": 0.8 * first}
    rates = {"repair_rate": 0.28 if backtracks else None, "spoil_rate": 0.31 if backtracks else None}
    by_attempts = {"1": score(first, 600), "2": score(0.4, 300), "5+": score(0.2, 60)}
    behaviour = events | shares | rates | {"attempts": 1 + backtracks, "changes": changes, "by_attempts": by_attempts}
    return {"behaviour": behaviour, "errors": {"arithmetic": 0.2 * (1 - first), "planning": 0.8 * (1 - first)}}


def fake_suite(first, backtracks, n=80):
    """A suite of a model, with the fields of evaluate.suites.headline."""
    votes = [{"confidence": c} | score(c * 0.9, n // 4) for c in (0.2, 0.45, 0.7, 0.95)]
    levels = {str(level): score(first * (1.2 - 0.2 * level), n // 4) for level in (1, 2, 3, 4)}
    rates = {
        "pass@1": score(first, n),
        "pass@8": score(0.2 + 0.7 * first, n),
        "maj@8": score(0.1 + 0.8 * first, n),
    }
    facts = {"n": 8, "rule": "lenient", "tokens": 90.5, "truncated": 0.02, "unparsed": 0.03, "prompts": n}
    return rates | facts | {"by_level": levels, "calibration": votes} | fake_behaviour(first, backtracks)


def fake_results(run, n=1024):
    models = {}
    for name, (first, greedy, tokens, backtracks, valid, truncated) in SCORES.items():
        models[name] = {"pass@1": score(first, n), "greedy": score(greedy, n), "mean_tokens": tokens}
        models[name] |= {"mean_backtracks": backtracks, "valid_rate": valid, "truncated_rate": truncated}
        models[name] |= fake_behaviour(first, backtracks) | {"suites": {"math500": fake_suite(first, backtracks)}}
    models["direct-sft"]["maj"] = {"k": 2, **score(0.335, n), "mean_tokens": 71.8}
    models["direct-rl"]["maj"] = {"k": 3, **score(0.561, n), "mean_tokens": 104.4}
    paired = {"astro-rl - direct-rl": {"difference": 0.113, "low": 0.081, "high": 0.145, "n": n}}
    groups = [
        {"difficulty": d} | score(x, n // 4)
        for d, x in (("none right", 0.1), ("half or more right", 0.6), ("all right", 0.9))
    ]
    results = {"seed": 0, "wall_s": 41.2, "models": models, "differences": {"held-out": paired, "math500": paired}}
    dump(run / "results.json", results | {"difficulty": {"held-out": dict.fromkeys(SCORES, groups)}})


def fake_metrics(run, rng, sft_steps=180, rl_steps=100):
    for family, floor in (("direct", 0.62), ("astro", 0.48)):
        rows, times = [], []
        for i in range(sft_steps):
            loss = floor + 1.3 * math.exp(-i / 25) + rng.gauss(0, 0.03)
            learning_rate = 1e-3 * math.cos(i / sft_steps * math.pi / 2)
            rows.append({"step": i, "loss": loss, "learning_rate": learning_rate})
            times.append({"step": i, "seconds": 0.2, "tokens_per_s": rng.gauss(21000, 900)})
        dump_lines(run / f"{family}-sft" / "metrics.jsonl", rows)
        dump_lines(run / f"{family}-sft" / "timings.jsonl", times)
        rows = []
        for i in range(rl_steps):
            t, astro = i / rl_steps, family == "astro"
            solved = 0.35 + (0.32 if astro else 0.2) * (1 - math.exp(-3 * t)) + rng.gauss(0, 0.025)
            backs = 0.94 + 1.0 * (1 - math.exp(-2.5 * t)) + rng.gauss(0, 0.1) if astro else 0.0
            row = {"step": i, "solve_rate": solved, "reward_mean": 2 * solved - 1, "mean_backtracks": backs}
            row |= {"mean_tokens": 35 + 42 * backs + rng.gauss(0, 2), "truncated_rate": 0.02 * rng.random()}
            row |= {"loss": rng.gauss(0, 0.01), "clip_fraction": 0.004 * rng.random(), "entropy": 0.5 - 0.3 * t}
            row |= {"logp_gap": 1e-4 * rng.random(), "grad_norm": rng.gauss(0.6, 0.1), "learning_rate": 1e-4}
            if astro and i % 10 == 9:
                row |= {"eval_solve_rate": 0.4 + t / 4, "eval_mean_backtracks": 3 - t}
            rows.append(row)
        dump_lines(run / f"{family}-rl" / "metrics.jsonl", rows)


def fake_answers(run, rng, problems, hostile=""):
    for name, (chance, greedy, *_rest) in SCORES.items():
        rows = []
        for problem, steps in problems:
            answers = {}
            for mode, p in (("sampled", chance), ("greedy", greedy)):
                correct = rng.random() < p
                k = rng.choice([0, 1, 2]) if name.startswith("astro") else 0
                text = make_trace(rng, make_tree(rng, problem, steps), k)["response"]
                if not correct:
                    text = text.replace("is the target", "misses the target")
                facts = {"tokens": len(text) // 3, "backtracks": k, "valid": True, "truncated": False}
                search = {"reflections": k, "backtracks": k, "restarts": 0, "phrase_backtracks": k, "repeats": 0}
                search["rights"] = [False] * k + [correct]
                facts |= {"behaviour": search, "error": None if correct else "planning"}
                answers[mode] = {"text": text + hostile, "correct": correct, **facts}
            rows.append({"problem_id": problem["id"], "prompt": problem["prompt"] + hostile, **answers})
        dump_lines(run / "eval" / name / "answers-00000.jsonl", rows[:7])
        dump_lines(run / "eval" / name / "answers-00001.jsonl", rows[7:])


def fake_run(run, trees=40, held_out=60, seed=0, hostile=""):
    """Writes a whole run folder with plausible content; `hostile` is added to every text that a model wrote."""
    rng = random.Random(seed)
    run.mkdir(parents=True, exist_ok=True)
    config = {
        "seed": 0,
        "out": "runs/quickstart",
        "model": "countdown-base",
        "grpo": {"max_steps": 100, "num_generations": 8},
    }
    dump(
        run / "config.json",
        {"command": "astro run configs/quickstart.yaml", "config": config},
    )
    fake_results(run)
    fake_metrics(run, rng)
    search_trees, astro, direct = [], [], []
    for i in range(trees):
        problem, steps = make_problem(rng, i)
        tree = make_tree(rng, problem, steps, solved=i % 5 != 3)
        search_trees.append(tree)
        if i % 5 != 3:
            astro += [make_trace(rng, tree, k) for k in (1, 2, 2)]
            direct.append(make_trace(rng, tree, 0))
    for row in [node for tree in search_trees for node in tree["nodes"][1:]] + [
        p for t in astro for p in t["segments"]
    ]:
        row["text"] += hostile
    dump_lines(run / "search" / "trees-00000.jsonl", search_trees[: trees // 2])
    dump_lines(run / "search" / "trees-00001.jsonl", search_trees[trees // 2 :])
    dump_lines(run / "traces" / "astro.jsonl", astro)
    dump_lines(run / "traces" / "direct.jsonl", direct)
    counts = {"trees": 1024, "solved_trees": 741, "yield": 0.7236}
    counts["astro"] = {"examples": 2964, "mean_backtracks": 1.21, "mean_tokens": 88.4, "k=0": 741, "k=1": 860}
    counts["direct"] = {"examples": 2964, "mean_backtracks": 0.0, "mean_tokens": 36.2}
    dump(run / "traces" / "counts.json", counts)
    fake_answers(run, rng, [make_problem(rng, 10_000 + i) for i in range(held_out)], hostile)
    walls = {
        "search": 96.4,
        "traces": 2.1,
        "direct-sft": 48.0,
        "astro-sft": 71.5,
        "direct-rl": 130.2,
        "astro-rl": 244.9,
        "eval/base": 41.2,
    }
    for stage, wall in walls.items():
        versions = {"astro_jax": "0.1.0", "jax": "0.10.2", "numpy": "2.4.6", "python": "3.11.9"}
        manifest = {
            "stage": stage,
            "wall_s": wall,
            "versions": versions,
            "parents": [],
            "digest": "9f2c4e7a1b3d5f60",
        }
        manifest |= {"trees": 1024, "nodes": 71_240} if stage == "search" else {}
        dump(run / stage / "manifest.json", manifest)
    return run


if __name__ == "__main__":
    folder = epath.Path(sys.argv[1])
    report.write([fake_run(folder)], folder / "report.html")
