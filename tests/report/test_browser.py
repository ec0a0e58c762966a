"""The page in a real browser: what a reader does with the mouse and with the keyboard."""

import json
import random
import re
import shutil

import chromium
import pytest
from fake_run import dump_lines, fake_run

from astro_jax import report

HOSTILE = "</script><script>window.owned = 1</script><img src=x onerror='window.owned = 1'><b>bold</b>{{data}}<!--"
pytestmark = pytest.mark.skipif(not chromium.PATH, reason="needs Debian's package chromium")
NODES = "document.querySelectorAll('#tree-explorer .node').length"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = chromium.Chromium(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """(page of one run, page of two runs), whose models write HTML and scripts"""
    folder = tmp_path_factory.mktemp("pages")
    runs = [fake_run(folder / name / "run", trees=12, held_out=30, hostile=HOSTILE) for name in ("first", "second")]
    rollout = {"status": "wrong", "reward": -1.0, "advantage": 0.1, "tokens": 9, "stopped": True, "backtracks": 0}
    group = {"step": 3, "problem": "p", "prompt": "1 2 to 3" + HOSTILE, "beginning": ""}
    dump_lines(runs[0] / "astro-rl/rollouts.jsonl", [group | {"completions": [rollout | {"text": HOSTILE}]}])
    trees = runs[0] / "search/trees-00000.jsonl"
    trees.write_text(json.dumps(large_tree(0, solved=False)) + "\n" + trees.read_text())
    report.write(runs[:1], folder / "one.html")
    report.write(runs, folder / "two.html")
    return folder / "one.html", folder / "two.html"


def open_page(browser, path, width=1280, dark=False):
    """Open a page. The test must leave no error in the console, ask for no other file and run no script of a model."""
    browser.show_as(width, dark)
    browser.errors.clear()
    browser.requests.clear()
    browser.open(path)
    browser.wait(NODES)
    yield browser
    assert browser.run("window.owned") is None and "could not be drawn" not in browser.run("document.body.innerText")
    assert browser.errors == [] and browser.requests == [f"file://{path}"]


@pytest.fixture
def page(browser, pages):
    yield from open_page(browser, pages[0])


@pytest.fixture
def two(browser, pages):
    yield from open_page(browser, pages[1])


def lit(browser, selector):
    """The texts of the elements that are marked."""
    return browser.run(f"[...document.querySelectorAll('{selector}.lit')].map((e) => e.textContent)")


def test_all_sections_are_drawn_and_texts_of_models_stay_texts(page):
    shown = page.run("document.body.innerText")
    for text in ("63.7%", "majority of 3", "Pearson r = 0.", "Search tree", "10 min 34 s", "Calibration of the vote",
                 "What backtracks do", "What backtracks give", "Answers by their error", "reward −1"):  # fmt: skip
        assert text in shown, text
    assert page.run("document.querySelectorAll('script').length") == 2
    assert page.run("document.querySelectorAll('img, pre b').length") == 0
    assert HOSTILE in page.run("document.querySelector('#rollout-explorer pre').textContent")
    assert HOSTILE in page.run("document.querySelector('#answers .m-base pre').textContent")


def choose_the_large_tree(page):
    page.point("#tree-explorer [aria-label='Previous problem']", click=True)  # before the first comes the last
    page.wait("document.querySelector('#tree-explorer .prompt').textContent.startsWith('Make 24.')")
    page.wait("document.querySelectorAll('#tree-explorer .stub').length")
    return page.run(NODES)


def test_a_problem_is_chosen_and_a_node_is_unfolded(page):
    count = choose_the_large_tree(page)
    page.point("#tree-explorer .stub rect", click=True)
    page.wait(f"{NODES} > {count}")


def test_pointing_links_the_tree_with_the_trace_in_both_ways(page):
    page.point(".segment.step .segment-text")
    (node,) = lit(page, "#tree-explorer .node")
    segment = lit(page, ".segment")[0]
    assert re.search(r"\d+ . \d+ =", node)[0] in segment
    where = page.run("document.querySelector('#tree-explorer .node.lit').dataset.id")
    page.point("h1")
    assert lit(page, ".segment") == []
    page.point(f"#tree-explorer .node[data-id='{where}'] .back")
    assert lit(page, ".segment")[0] == segment


def test_pointing_links_the_graph_of_an_answer_with_its_text(page):
    page.point("#answers .m-astro-rl .spot[data-id='1'] circle")
    step = lit(page, "#answers .m-astro-rl .part")[0]
    assert " = " in step
    page.point("h1")
    page.point("#answers .m-astro-rl .part.step")
    assert lit(page, "#answers .m-astro-rl .spot") and lit(page, "#answers .m-astro-rl .part")[0] == step


def test_the_keyboard_moves_in_a_tree_and_unfolds_it(page):
    count, focused = choose_the_large_tree(page), "document.activeElement.dataset.id"
    page.run("document.querySelector('#tree-explorer .node').focus()")
    root = page.run(focused)
    for _ in range(8):
        page.press("ArrowRight")
    assert page.run(NODES) > count and page.run(focused) != root and lit(page, "#tree-explorer .node")
    for _ in range(8):
        page.press("ArrowLeft")
    assert page.run(focused) == root
    page.press("Tab")  # the whole tree is one stop
    assert not page.run("document.activeElement.matches('#tree-explorer .node')")


def test_two_runs_are_side_by_side_and_the_reader_chooses_one(two):
    shown = two.run("document.querySelector('#runs').innerText")
    for text in ("Paired differences from first/run", "Settings that differ", "ASTRO-RL", "second/run"):
        assert text in shown, text
    two.run("[...document.querySelectorAll('#run-picker button')].at(-1).click()")
    two.wait(NODES)
    assert "No completions of RL" in two.run("document.querySelector('#rollouts').innerText")  # the first run has some
    two.run("[...document.querySelectorAll('#answers [aria-label=Models] button')].at(-1).click()")
    cards = "[...document.querySelectorAll('#answers .card h3')].map((e) => e.textContent)"
    assert two.run(cards) == ["The problem", "first/run", "second/run"]


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_scrolls_down_only_and_the_dark_is_dark(browser, pages, dark):
    for _ in open_page(browser, pages[1], 390, dark):
        assert browser.run("document.documentElement.scrollWidth") <= 390
        assert (browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)") != dark


@pytest.mark.slow
@pytest.mark.nightly
def test_200_trees_of_2000_nodes_are_small_and_fast(browser, tmp_path):
    """The limits of the project: 15 MB, opened in 2 s, a node unfolded in 0.1 s, in CPU time."""
    run = fake_run(tmp_path / "large", trees=10, held_out=24)
    shutil.rmtree(run / "traces")
    (run / "search/trees-00001.jsonl").unlink()
    dump_lines(run / "search/trees-00000.jsonl", [large_tree(i) for i in range(200)])
    path = tmp_path / "large.html"
    report.write([run], path)
    assert path.stat().st_size < 15e6
    browser.show_as(1280)
    before = browser.cpu_seconds()
    browser.open(path)
    browser.wait(NODES)
    opened = browser.cpu_seconds()
    assert browser.run("document.querySelectorAll('#tree option').length") == 200
    count = browser.run(NODES)
    for _ in range(20):
        browser.run("""document.querySelector('#tree-explorer .stub').dispatchEvent(new MouseEvent('click'));
                    new Promise((done) => requestAnimationFrame(() => setTimeout(done)))""")
    assert browser.run(NODES) == count + 100  # five children each
    unfolded = (browser.cpu_seconds() - opened) / 20
    print(f"{path.stat().st_size / 1e6:.1f} MB, opened in {opened - before:.2f} s, unfolded in {unfolded:.3f} s")
    assert opened - before < 2 and unfolded < 0.1


def large_tree(seed, solved=True):
    """A tree of 2000 nodes, five children each."""
    rng = random.Random(seed)
    nodes = []
    for i in range(2000):
        a, b, *rest = (rng.randrange(2, 99) for _ in range(5))
        text = f" {a} + {b} = {a + b}, left {' '.join(map(str, rest))}.\n" if i else ""
        node = {"id": i, "parent": (i - 1) // 5 if i else -1, "text": text, "terminal": i > 399, "answer": None}
        node |= {"correct": solved and i == 1999 if i > 399 else None, "visits": 2000 - i, "value": rng.random()}
        nodes.append(node | {"prior": rng.random(), "reward": rng.random()})
    problem = {"id": f"p{seed}", "prompt": "Make 24.", "answer": "24", "meta": {"numbers": [seed, 3, 8], "target": 24}}
    return {"problem": problem, "nodes": nodes}
