"""`astro verify`: one verdict for each line of JSON."""

import io
import json
import sys

import pytest
from slow_answer import SLOW_ANSWER

from astro_jax import cli
from astro_jax.verify import stream


@pytest.fixture(autouse=True)
def shared_workers(workers, monkeypatch):
    """The command uses the shared workers. Its own arguments of the pool are kept in `arguments`."""
    arguments = []

    class SharedPool:
        def __init__(self, num_workers, seconds, memory):
            arguments.append((num_workers, seconds, memory))
            self.run = workers.run

        def close(self):
            pass

    monkeypatch.setattr(stream, "WorkerPool", SharedPool)
    return arguments


def run(monkeypatch, capsys, lines, *options):
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
    code = cli.main(["verify", *options])
    output = capsys.readouterr()
    return code, [json.loads(line) for line in output.out.splitlines()], output.err


def test_each_line_has_a_verdict_in_order(monkeypatch, capsys):
    lines = [json.dumps({"gold": 5, "response": f"Let's see. \\boxed{{{i}}}"}) for i in range(70)]
    code, verdicts, _ = run(monkeypatch, capsys, lines)
    assert code == 0
    assert [v["extracted"] for v in verdicts] == [str(i) for i in range(70)]
    assert [v["verdict"] for v in verdicts] == ["correct" if i == 5 else "wrong" for i in range(70)]
    assert all(set(v) == {"verdict", "extracted", "seconds"} and v["seconds"] < 5 for v in verdicts)


def test_options_set_rule_and_workers(monkeypatch, capsys, shared_workers):
    line = json.dumps({"gold": "1/3", "response": "The answer is 0.33"})
    assert run(monkeypatch, capsys, [line])[1][0]["verdict"] == "unparsed"
    options = ("--rule", "lenient", "--workers", "1", "--seconds", "0.5", "--memory", "2")
    assert run(monkeypatch, capsys, [line], *options)[1][0]["verdict"] == "correct"
    assert shared_workers[1] == (1, 0.5, 2 * 2**30)


def test_timeout_is_a_verdict(monkeypatch, capsys):
    line = json.dumps({"gold": "1", "response": SLOW_ANSWER})
    assert run(monkeypatch, capsys, [line])[1][0] | {"seconds": 0} == {
        "verdict": "timeout", "extracted": None, "seconds": 0
    }  # fmt: skip


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"gold": "5"}', '{"gold": null, "response": "x"}', '{"gold": "5", "response": 5}', "[" * 99999]
)
def test_bad_line_is_named_after_the_verdicts_before_it(monkeypatch, capsys, line):
    good = json.dumps({"gold": 5, "response": "\\boxed{5}"})
    code, verdicts, error = run(monkeypatch, capsys, [good, good, line, good])
    assert code == 2 and len(verdicts) == 2
    assert "line 3" in error and error.count("\n") == 1


def test_blank_lines_and_a_byte_order_mark_are_no_lines(tmp_path, capsys):
    line = json.dumps({"gold": 5, "response": "\\boxed{5}"})
    (tmp_path / "a.jsonl").write_text(f"{line}\n\n{line}\n\n", encoding="utf-8-sig")
    assert cli.main(["verify", str(tmp_path / "a.jsonl")]) == 0
    assert capsys.readouterr().out.count('"correct"') == 2


def test_missing_file_is_one_line(capsys):
    assert cli.main(["verify", "nowhere.jsonl"]) == 2
    assert capsys.readouterr().err == "astro: nowhere.jsonl: cannot be read (No such file or directory)\n"


def test_a_file_that_is_not_utf_8_is_one_line(tmp_path, capsys):
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"gold": 1, "response": "1"}), encoding="utf-16")
    assert cli.main(["verify", str(path)]) == 2
    assert f"{path}: not UTF-8 (invalid start byte); save the file as UTF-8" in capsys.readouterr().err
