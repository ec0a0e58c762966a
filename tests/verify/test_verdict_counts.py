"""The counts of a stage: saved, continued by a restart, and summed over processes."""

import json

from etils import epath

from astro_jax.verify import verdict_counts
from astro_jax.verify.verdict_counts import VerdictCounts


def test_restart_continues_counts_and_summary_adds_processes(tmp_path):
    folder = epath.Path(tmp_path)
    assert verdict_counts.summary(folder) == {}
    first = VerdictCounts(folder / "verdicts-0-of-2.json")
    first.save()
    assert not first.path.exists()  # no verdict, no file
    first.add(["correct", "correct", "wrong"])
    first.add_disagreement("50", "50%", True)
    first.add_judged(False, True)
    first.add_judged(True, True)
    first.save()
    restarted = VerdictCounts(folder / "verdicts-0-of-2.json")
    restarted.add(["timeout"])
    restarted.save()
    second = VerdictCounts(folder / "verdicts-1-of-2.json")
    second.add(["wrong"])
    second.add_judged(False, True)
    second.save()
    assert verdict_counts.summary(folder) == {
        "verdicts": {"correct": 2, "wrong": 2, "timeout": 1}, "disagreements": 1,
        "judged": {"wrong approved": 2, "right approved": 1},
    }  # fmt: skip
    saved = json.loads((tmp_path / "verdicts-0-of-2.json").read_text())
    assert saved["disagreements"] == [{"gold": "50", "answer": "50%", "correct": True}]


def test_list_of_disagreements_is_limited_but_not_their_count(monkeypatch):
    monkeypatch.setattr(verdict_counts, "MAX_LISTED", 2)
    counts = VerdictCounts()
    for i in range(5):
        counts.add_disagreement("1", str(i), False)
    assert counts.disagreed == 5 and [d["answer"] for d in counts.disagreements] == ["0", "1"]
