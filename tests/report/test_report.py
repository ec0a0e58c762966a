"""The report's page, from a small made-up run. `python tests/test_report.py FOLDER` writes the run and its page."""

import html.parser
import json
import math
import random
import re
import shutil
import subprocess
import sys

import pytest

from astro_jax import countdown, report
from astro_jax.errors import AstroError
from astro_jax.report import choose, summary
from astro_jax.search.tree import Tree

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>{{data}}<!--<script>"
DOUBT = " But wait, are we solving the problem correctly so far? Hmm...\n"
UNSURE = " I'm not sure if we're solving the problem correctly so far.\n"
FINE = " Our solution seems to be correct so far.\n"
# name: pass@1, greedy, tokens, backtracks, valid, cut off
SCORES = {
    "base": (0.212, 0.264, 38.2, 0.00, 0.871, 0.011),
    "direct-sft": (0.318, 0.356, 35.9, 0.00, 0.962, 0.002),
    "astro-sft": (0.371, 0.402, 83.5, 0.94, 0.938, 0.019),
    "direct-rl": (0.524, 0.541, 34.8, 0.00, 0.991, 0.000),
    "astro-rl": (0.637, 0.648, 118.4, 1.87, 0.979, 0.014),
}


# ---- A made-up run ----


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
    pieces, at = [], [0]
    for i, end in enumerate(ends):
        path = [end["id"]]
        while path[0] != 0:
            path.insert(0, nodes[path[0]]["parent"])
        shared = max(d for d in range(len(path)) if path[: d + 1] == at[: d + 1])
        if i:
            back = " Let's restart our solution from the beginning, and make"
            back += f" {problem['meta']['target']} from {' '.join(map(str, problem['meta']['numbers']))}.\n"
            if path[shared]:
                back = f" Let's go back to where we had{nodes[path[shared]]['text']}"
            pieces.append({"node": path[shared], "kind": "backtrack", "text": DOUBT + UNSURE + back})
        pieces += [{"node": n, "kind": "step", "text": nodes[n]["text"]} for n in path[shared + 1 :]]
        at = path
    if k:
        pieces.append({"node": at[-1], "kind": "reflect", "text": DOUBT + FINE})
    return {
        "problem_id": problem["id"],
        "kind": "search" if k else "direct",
        "k": k,
        "prompt": problem["prompt"],
        "response": "".join(p["text"] for p in pieces),
        "nodes": [p["node"] for p in pieces if p["kind"] != "reflect"],
        "pieces": pieces,
    }


def score(mean, n):
    half = 1.96 * math.sqrt(mean * (1 - mean) / n)
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def fake_results(run, n=1024):
    models = {}
    for name, (first, greedy, tokens, backs, valid, cut) in SCORES.items():
        models[name] = {"pass@1": score(first, n), "greedy": score(greedy, n), "mean_tokens": tokens}
        models[name] |= {"mean_backtracks": backs, "valid_rate": valid, "truncated_rate": cut}
    models["direct-sft"]["maj"] = {"k": 2, **score(0.335, n), "mean_tokens": 71.8}
    models["direct-rl"]["maj"] = {"k": 3, **score(0.561, n), "mean_tokens": 104.4}
    dump(run / "results.json", {"seed": 0, "wall_s": 41.2, "models": models})


def fake_metrics(run, rng, sft_steps=180, rl_steps=100):
    for family, floor in (("direct", 0.62), ("astro", 0.48)):
        rows = []
        for i in range(sft_steps):
            loss = floor + 1.3 * math.exp(-i / 25) + rng.gauss(0, 0.03)
            lr = 1e-3 * math.cos(i / sft_steps * math.pi / 2)
            rows.append({"step": i, "loss": loss, "lr": lr, "tokens_per_s": rng.gauss(21000, 900)})
        dump_lines(run / f"{family}-sft" / "metrics.jsonl", rows)
        rows = []
        for i in range(rl_steps):
            t, astro = i / rl_steps, family == "astro"
            solved = 0.35 + (0.32 if astro else 0.2) * (1 - math.exp(-3 * t)) + rng.gauss(0, 0.025)
            backs = 0.94 + 1.0 * (1 - math.exp(-2.5 * t)) + rng.gauss(0, 0.1) if astro else 0.0
            row = {"step": i, "solve_rate": solved, "reward_mean": 2 * solved - 1, "mean_backtracks": backs}
            row |= {"mean_tokens": 35 + 42 * backs + rng.gauss(0, 2), "truncated_rate": 0.02 * rng.random()}
            row |= {"loss": rng.gauss(0, 0.01), "clip_fraction": 0.004 * rng.random(), "entropy": 0.5 - 0.3 * t}
            row |= {"logp_gap": 1e-4 * rng.random(), "grad_norm": rng.gauss(0.6, 0.1), "lr": 1e-4}
            rows.append(row)
        dump_lines(run / f"{family}-rl" / "metrics.jsonl", rows)


def fake_answers(run, rng, problems, hostile=""):
    for name, (chance, greedy, *_rest) in SCORES.items():
        rows = []
        for problem, steps in problems:
            answers = {}
            for how, p in (("sampled", chance), ("greedy", greedy)):
                correct = rng.random() < p
                k = rng.choice([0, 1, 2]) if name.startswith("astro") else 0
                text = make_trace(rng, make_tree(rng, problem, steps), k)["response"]
                if not correct:
                    text = text.replace("is the target", "misses the target")
                facts = {"tokens": len(text) // 3, "backtracks": k, "valid": True, "truncated": False}
                answers[how] = {"text": text + hostile, "correct": correct, **facts}
            rows.append({"problem_id": problem["id"], "prompt": problem["prompt"] + hostile, **answers})
        dump_lines(run / "eval" / f"{name}-00000.jsonl", rows[:7])
        dump_lines(run / "eval" / f"{name}-00001.jsonl", rows[7:])


def fake_run(run, trees=40, held_out=60, seed=0, hostile=""):
    """Writes a whole run folder with plausible content; `hostile` is added to every text that a model wrote."""
    rng = random.Random(seed)
    run.mkdir(parents=True, exist_ok=True)
    config = {"seed": 0, "out": "runs/quickstart", "model": "countdown-base", "grpo": {"steps": 100, "group": 8}}
    dump(run / "config.json", {"hash": "9f2c4e7a1b3d5f60", "config": config})
    fake_results(run)
    fake_metrics(run, rng)
    grown, astro, direct = [], [], []
    for i in range(trees):
        problem, steps = make_problem(rng, i)
        tree = make_tree(rng, problem, steps, solved=i % 5 != 3)
        grown.append(tree)
        if i % 5 != 3:
            astro += [make_trace(rng, tree, k) for k in (1, 2, 2)]
            direct.append(make_trace(rng, tree, 0))
    for row in [node for tree in grown for node in tree["nodes"][1:]] + [p for t in astro for p in t["pieces"]]:
        row["text"] += hostile
    dump_lines(run / "search" / "trees-00000.jsonl", grown[: trees // 2])
    dump_lines(run / "search" / "trees-00001.jsonl", grown[trees // 2 :])
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
        "eval": 41.2,
    }
    for stage, wall in walls.items():
        versions = {"astro_jax": "0.1.0", "jax": "0.10.2", "numpy": "2.4.6", "python": "3.11.9"}
        manifest = {"stage": stage, "wall_s": wall, "versions": versions, "config_hash": "9f2c4e7a1b3d5f60"}
        manifest |= {"trees": 1024, "nodes": 71_240} if stage == "search" else {}
        manifest |= {"command": "astro run configs/quickstart.yaml"} if stage == "search" else {}
        dump(run / stage / "manifest.json", manifest)
    return run


class Page(html.parser.HTMLParser):
    """What a browser would see: the tags, and the text of each script."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.scripts, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "script":
            self.scripts[-1] += data
        self.text += data

    @property
    def data(self):
        return json.loads(self.scripts[0])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fake_run(tmp_path_factory.mktemp("runs") / "quickstart")


@pytest.fixture(scope="module")
def page(run):
    return Page(report.build(run))


# ---- Tests ----


def test_the_page_states_the_numbers(page):
    assert "ASTRO-RL solves 63.7% of the held-out problems" in page.text
    assert "(95% interval 60.8 to 66.6%, n = 1,024) and Direct-RL 52.4%" in page.text
    assert "ASTRO-RL is 11.3 points ahead, and the intervals do not overlap." in page.text
    assert page.data["models"]["astro-rl"]["pass@1"]["mean"] == 0.637
    assert page.data["pearson"]["direct-rl"] == {"r": None, "n": 100}
    assert 0.5 < page.data["pearson"]["astro-rl"]["r"] < 1
    assert "Not in this folder yet" not in page.text


def test_the_page_is_self_contained(run):
    page = report.build(run)
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?\s*(?:https?:)?//", page)
    assert not re.search(r"@import|url\((?!data:)", page)
    assert set(re.findall(r"https?://[^\"'\s<]*", page)) == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in page
    assert "innerHTML" not in page
    assert len(page) < 2_000_000


def test_the_same_folder_gives_the_same_page(run):
    assert report.build(run) == report.build(run)


def test_hostile_text_stays_data(tmp_path, page):
    bad = Page(report.build(fake_run(tmp_path / "<b>run", trees=12, held_out=12, hostile=HOSTILE)))
    assert [tag for tag, _ in bad.tags] == [tag for tag, _ in page.tags]
    assert len(bad.scripts) == 2 and bad.scripts[1] == page.scripts[1]
    assert bad.data["held_out"]["problems"][0]["prompt"].endswith(HOSTILE)
    assert not any(key.startswith("on") for _, attrs in bad.tags for key in attrs)


def test_missing_stages_are_named(tmp_path):
    run = fake_run(tmp_path / "half", trees=6, held_out=6)
    (run / "results.json").unlink()
    shutil.rmtree(run / "astro-rl")
    shutil.rmtree(run / "search")
    page = Page(report.build(run))
    assert "This run has not been evaluated yet" in page.text
    missing = "search (search/trees-*.jsonl); astro-rl (astro-rl/metrics.jsonl); evaluation (results.json)."
    assert f"Not in this folder yet: {missing}" in page.text
    assert page.data["problems"] == []


def test_trees_are_shown_before_traces_are_made(tmp_path):
    run = fake_run(tmp_path / "half", trees=10, held_out=6)
    shutil.rmtree(run / "traces")
    problems = Page(report.build(run)).data["problems"]
    assert len(problems) == 7 and not any(problem["traces"] for problem in problems)


def test_an_empty_folder_still_gives_a_page(tmp_path):
    page = Page(report.build(tmp_path))
    assert "the configuration (config.json); search" in page.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("models"), "results.json: models is missing"),
        (lambda r: r["models"]["base"].pop("greedy"), r"models\.base\.greedy is missing"),
        (lambda r: r["models"]["base"]["pass@1"].update(mean=63.7), "must be a fraction from 0 to 1, found 63.7"),
        (lambda r: r["models"]["base"].update(mean_tokens=None), "mean_tokens must be a number, found None"),
        (lambda r: r["models"]["direct-rl"]["maj"].pop("k"), r"direct-rl\.maj\.k must be a number"),
    ],
)
def test_bad_results_are_a_clear_error(tmp_path, change, message):
    fake_results(tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    change(results)
    dump(tmp_path / "results.json", results)
    with pytest.raises(AstroError, match=message):
        report.build(tmp_path)


def test_files_that_are_not_json(tmp_path):
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(AstroError, match=r"results\.json: not valid JSON"):
        report.build(tmp_path)
    (tmp_path / "results.json").unlink()
    (tmp_path / "astro-rl").mkdir()
    metrics = tmp_path / "astro-rl" / "metrics.jsonl"
    metrics.write_text('{"step": 0, "solve_rate": 0.5}\n{"step": 1, "so')  # killed while it wrote
    assert Page(report.build(tmp_path)).data["metrics"]["astro-rl"]["columns"]["solve_rate"] == [0.5]
    metrics.write_text('{"step": 0, "so\n{"step": 1, "solve_rate": 0.5}\n')
    with pytest.raises(AstroError, match=r"metrics\.jsonl, line 1: not valid JSON"):
        report.build(tmp_path)
    with pytest.raises(AstroError, match="no such run folder"):
        report.build(tmp_path / "nowhere")


def test_a_resumed_run_repeats_steps_and_the_last_counts(tmp_path):
    rows = [{"step": 0, "solve_rate": 0.1}, {"step": 1, "solve_rate": 0.2}, {"step": 1, "solve_rate": math.nan}]
    dump_lines(tmp_path / "astro-rl" / "metrics.jsonl", [*rows, {"step": 1, "solve_rate": 0.3}])
    assert Page(report.build(tmp_path)).data["metrics"]["astro-rl"]["columns"]["solve_rate"] == [0.1, 0.3]


def test_write_replaces_the_page_whole(run):
    path = report.write(run)
    assert path.name == "report.html" and path.read_text() == report.build(run)
    assert not (run / "report.html.tmp").exists()


def test_headline_says_when_intervals_overlap_and_who_is_behind():
    def results(astro, direct, n=100):
        return {"models": {"astro-rl": {"pass@1": score(astro, n)}, "direct-rl": {"pass@1": score(direct, n)}}}

    assert "is 2.0 points ahead, but the intervals overlap" in summary.headline(results(0.52, 0.50))
    assert "is 30.0 points behind, and the intervals do not" in summary.headline(results(0.3, 0.6, 1000))
    assert "level to within 0.1 point" in summary.headline(results(0.5, 0.5))
    assert "cannot be compared" in summary.headline({"models": {"base": {"pass@1": score(0.5, 9)}}})


def test_pearson():
    assert summary.pearson([1, 2, 3], [2, 4, 6]) == pytest.approx(1)
    assert summary.pearson([1, 2, 3], [1, 0, 1]) == pytest.approx(0)
    assert summary.pearson([1, 1, 1], [1, 2, 3]) is None
    assert summary.pearson([1, 2], [1, 2]) is None


def test_thinned_curves_keep_means():
    thin = summary.thin([{"step": i, "loss": float(i)} for i in range(10)], most=5)
    assert thin == {"every": 2, "columns": {"step": [0.5, 2.5, 4.5, 6.5, 8.5], "loss": [0.5, 2.5, 4.5, 6.5, 8.5]}}


def test_chosen_problems(page):
    problems = page.data["problems"]
    assert len(problems) == 7
    assert all(problem["traces"] for problem in problems[:6]) and not problems[6]["traces"]
    assert any(p["kind"] == "backtrack" and p["node"] for p in problems[0]["traces"][0]["pieces"])
    held = page.data["held_out"]
    assert sum(held["counts"].values()) == 60
    assert {p["outcome"] for p in held["problems"]} == {"astro", "both", "neither", "direct"}


def test_large_trees_and_long_texts_are_cut(tmp_path):
    nodes = [
        {"id": i, "parent": (i - 1) // 3 if i else -1, "text": "x" * 5000, "visits": 5000 - i} for i in range(5000)
    ]
    kept = choose._prune(nodes, {4999})
    ids = {node["id"] for node in kept}
    assert 4999 in ids and all(n["parent"] in ids for n in kept[1:]) and len(kept) < choose.MAX_NODES + 10
    assert sum(node["hidden"] for node in kept) <= 5000 - len(kept)
    assert choose.clip("a" * 50 + "b" * 50, 30) == "a" * 20 + "\n[… 70 characters …]\n" + "b" * 10


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_every_section_draws(run, tmp_path):
    path = report.write(run)
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += f" --disable-component-update --disable-sync --user-data-dir={tmp_path} --dump-dom"
    shown = subprocess.run(["chromium", *flags.split(), f"file://{path}"], capture_output=True, text=True, timeout=120)
    drawn = re.sub(r"<script.*?</script>", "", shown.stdout, flags=re.S)
    assert "could not be drawn" not in drawn
    for text in ("63.7%", "majority of 3", "Pearson r = 0.", "Search tree", "10 min 34 s"):
        assert text in drawn


if __name__ == "__main__":
    from etils import epath

    print(report.write(fake_run(epath.Path(sys.argv[1]))))


def test_a_record_of_the_search_is_shown_as_it_was_meant():
    tree = Tree(countdown.make_problem((2, 3, 4), 10))
    tree.add_child(0, (1,), " 4 - 3 = 1, left 2 1.\n", 1.0)
    nodes = choose._prune(tree.record()["nodes"], set())
    assert choose.label(tree.record()["problem"]) == "10 from 2 3 4"
    assert [n["answer"] for n in nodes] == [None, None] and nodes[1]["text"] == " 4 - 3 = 1, left 2 1.\n"
