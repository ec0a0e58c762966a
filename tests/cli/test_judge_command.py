"""`astro judge` and `astro errors`: a judge with random parameters, and bad input."""

import json

import jax
import pytest
from etils import epath
from helpers import chat_tokenizer, tiny_config, tiny_params

from astro_jax import cli, llama
from astro_jax.evaluate import responses

jax.devices()  # all eight are there before a run asks for one


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folders of a judge and of two answers of a run."""
    root, tokenizer = tmp_path_factory.mktemp("judge"), chat_tokenizer()
    config = tiny_config(vocab_size=len(tokenizer), n_layers=1, max_positions=256)
    llama.save(epath.Path(root / "tiny"), config, tiny_params(config), tokenizer)
    sampled = [{"text": f"{i}", "correct": i == 2, "truncated": False} for i in (2, 3)]
    rows = [{"problem_id": s["text"], "prompt": "1 + 1?", "sampled": s} for s in sampled]
    (root / "answers").mkdir()
    (root / "answers/answers-00000.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (root / "rubric.txt").write_text("Is {{ solution }} right for {{ problem }}?")
    return root


def test_a_judge_that_gives_no_verdict_is_not_fooled(folders, capsys):
    command = ["judge", str(folders / "tiny"), str(folders / "answers"), "--n", "2", "--max-tokens", "4", "--json",
               f"prompts.evaluate={folders / 'rubric.txt'}", f"out={folders / 'out'}", "sampler.max_num_seqs=4",
               ]  # fmt: skip
    assert cli.main(command) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["answers"], result["right"], result["unread"]) == (2, 1, 1.0)
    assert [r["fooled"]["mean"] for r in result["by_share"]] == [0, 0] and result["by_share"][1]["agreement"] == 0.5
    assert result["settings"]["rubric"].startswith("Is {{ solution }}")
    assert cli.main([x for x in command if x != "--json"]) == 0
    assert "2 answers, 1 right; 100.0% of the judgements have no verdict" in capsys.readouterr().out


def test_the_rules_decide_where_a_judge_names_no_error(folders, capsys):
    pytest.importorskip("pyarrow", reason="extra `hub` (pyarrow) is not installed")
    suite, labels = folders / "suite", folders / "labels.jsonl"
    suite.mkdir()
    responses.write_parquet(epath.Path(suite / "answers.parquet"), [
        {"problem_id": text, "sample": 0, "prompt": "1 + 1?", "gold": "2", "response": text, "truncated": False,
         "error": error, "error_is_open": error == "planning"} for text, error in (("2", None), ("3", "planning"))
    ])  # fmt: skip
    labels.write_text(json.dumps({"problem_id": "3", "sample": 0, "error": "planning"}))
    (folders / "classify.txt").write_text("{{ problem }} is {{ answer }}. Why {{ solution }}?")
    command = ["errors", str(folders / "tiny"), str(suite), "--n", "2", "--max-tokens", "4", "--labels", str(labels),
               f"prompts.classify={folders / 'classify.txt'}", f"out={folders / 'errors'}", "sampler.max_num_seqs=4",
               ]  # fmt: skip
    assert cli.main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["open"], result["unread"], result["changed"], result["errors"]["planning"]) == (1, 1.0, 0.0, 0.5)
    assert cli.main(command) == 0
    table = capsys.readouterr().out
    assert "2 answers, 1 wrong; the rules leave the class of 1 open" in table
    assert "| those that the rules leave open | 1 | 100.0" in table
    assert cli.main(["errors", str(folders / "tiny"), str(folders / "answers")]) == 2
    assert "answers: no answers to a suite; give runs/eval/MODEL/SUITE" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, message",
    [
        (("nowhere", "answers"), "nowhere: no such folder"),
        (("countdown-base", "answers"), "answers: no answers of an evaluation; give runs/eval/MODEL/SUITE"),
        (("countdown-base", "answers", "--limit", "0"), "judge: --n, --max-tokens and --limit are at least 1"),
    ],
)
def test_bad_input_is_one_clear_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["judge", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error
