"""The page of a run, built from a small made-up run."""

import base64
import gzip
import html.parser
import json
import re
import shutil

import pytest
from fake_run import dump_lines, fake_run

from astro_jax import report, stages

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>{{data}}<!--<script>"


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

    @property
    def run(self):
        """The data of the first run."""
        return self.data["runs"][0]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fake_run(tmp_path_factory.mktemp("runs") / "quickstart")


@pytest.fixture(scope="module")
def page(run):
    return Page(report.build([run]))


def test_page_states_the_figures(page):
    assert "ASTRO-RL solves 63.7% of the held-out problems" in page.text
    assert "(95% interval 60.8 to 66.6%, n = 1,024) and Direct-RL 52.4%" in page.text
    assert "ASTRO-RL is 11.3 points ahead (paired, 95% interval +8.1 to +14.5)." in page.text
    assert page.run["models"]["astro-rl"]["pass@1"]["mean"] == 0.637
    assert page.run["pearson"][""]["direct-rl"] == {"r": None, "n": 100}
    assert 0.5 < page.run["pearson"][""]["astro-rl"]["r"] < 1
    assert page.run["pearson"]["eval_"]["astro-rl"] == {"r": pytest.approx(-1), "n": 10}
    assert "Not in this folder yet" not in page.text


def test_page_names_all_models_by_their_titles(page):
    assert list(page.data["names"]) == [
        "base", "direct-sft", "direct-rl", "astro-sft", "astro-rl", "sft", "grpo",
    ]  # fmt: skip
    assert page.data["names"] == {name: stages.title(name) for name in stages.MODELS}


def test_provenance_holds_command_versions_and_stages_in_order(page):
    provenance = page.run["provenance"]
    assert provenance["command"] == "astro run configs/quickstart.yaml" and provenance["seed"] == 0
    assert {s["digest"] for s in provenance["stages"]} == {"9f2c4e7a1b3d5f60"}
    assert provenance["versions"]["jax"] == ["0.10.2"]
    names = [s["stage"] for s in provenance["stages"]]
    assert names == ["search", "traces", "direct-sft", "astro-sft", "direct-rl", "astro-rl", "eval/base"]
    assert provenance["stages"][0]["extra"]["nodes"] == 71_240


def test_page_is_self_contained(run):
    page = report.build([run])
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?\s*(?:https?:)?//", page)
    assert not re.search(r"@import|url\((?!data:)", page)
    assert set(re.findall(r"https?://[^\"'\s<]*", page)) == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in page
    assert "innerHTML" not in page
    assert len(page) < 2_000_000


def test_same_folder_gives_same_page(run):
    assert report.build([run]) == report.build([run])


def test_hostile_text_stays_data(tmp_path, page):
    bad = Page(report.build([fake_run(tmp_path / "<b>run", trees=12, held_out=12, hostile=HOSTILE)]))
    assert [tag for tag, _ in bad.tags] == [tag for tag, _ in page.tags]
    assert len(bad.scripts) == 2 and bad.scripts[1] == page.scripts[1]
    assert bad.run["held_out"]["problems"][0]["prompt"].endswith(HOSTILE)
    assert not any(key.startswith("on") for _, attrs in bad.tags for key in attrs)


def test_missing_stages_are_named(tmp_path):
    run = fake_run(tmp_path / "half", trees=6, held_out=6)
    (run / "results.json").unlink()
    shutil.rmtree(run / "astro-rl")
    shutil.rmtree(run / "search")
    page = Page(report.build([run]))
    assert "This run has not been evaluated yet" in page.text
    missing = "search (search/trees-*.jsonl.gz); astro-rl (astro-rl/metrics.jsonl); evaluation (results.json)."
    assert f"Not in this folder yet: {missing}" in page.text
    assert page.run["problems"] == []


def test_empty_folder_still_gives_a_page(tmp_path):
    page = Page(report.build([tmp_path]))
    assert "the configuration (config.json); search" in page.text


def test_values_that_json_cannot_hold_become_null(tmp_path):
    dump_lines(tmp_path / "traces" / "astro.jsonl", [{"problem_id": "a", "segments": []}])
    tree = {"problem": {"id": "a", "prompt": "p\udc80"}, "nodes": [{"id": 0, "parent": -1, "value": float("nan")}]}
    dump_lines(tmp_path / "search" / "trees-00000.jsonl", [tree])
    (packed,) = Page(report.build([tmp_path])).run["problems"]
    problem = json.loads(gzip.decompress(base64.b64decode(packed["packed"])))
    assert problem["nodes"]["value"] == [None] and problem["prompt"] == "p?"


def test_write_replaces_the_page_whole(run, tmp_path):
    report.write([run], tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == report.build([run])
    assert not (tmp_path / "page.html.part").exists()


def test_run_of_an_older_version_is_shown_without_its_provenance(tmp_path):
    run = fake_run(tmp_path / "old", trees=6, held_out=6)
    (run / "search/manifest.json").write_text(json.dumps({"stage": "search", "config_hash": "a", "wall_s": 1.0}))
    results = json.loads((run / "results.json").read_text())
    for model in results["models"].values():
        del model["behaviour"], model["errors"], model["suites"]
    del results["differences"], results["difficulty"]
    (run / "results.json").write_text(json.dumps(results))
    page = Page(report.build([run]))
    assert "Not in this folder yet: the provenance of search (made by an older version)." in page.text
    assert "and the intervals do not overlap" in page.text  # without the paired difference
