"""Worker processes: deadlines, deaths, fences; and the verifier and the command that use them."""

import io
import json
import os
import signal
import sys
import threading
import time

import hostile
import pytest

from astro_jax import cli
from astro_jax import config as cfg
from astro_jax.errors import AstroError
from astro_jax.types import Problem, Response
from astro_jax.verify import Verifier, pool
from astro_jax.verify.pool import Pool, Timeout

SLOW = "\\boxed{\\int_0^{\\infty} e^{-x^2}\\sin(\\tan(\\cos x)) dx}"


@pytest.fixture(scope="module")
def workers():
    found = Pool(2, seconds=1.0, memory=2**30)
    yield found
    found.close()


def box(answer):
    return ("math", ("5", f"\\boxed{{{answer}}}", "strict"))


def test_outcomes_are_in_order_and_a_slow_one_costs_only_itself(workers):
    questions = [box(i) for i in range(40)]
    questions[7] = questions[20] = ("math", ("5", SLOW, "strict"))
    start = time.monotonic()
    found = workers.ask(questions)
    assert time.monotonic() - start < 30
    for i, outcome in enumerate(found):
        if i in (7, 20):
            assert isinstance(outcome.result, Timeout) and 1.0 <= outcome.seconds < 2.5
        else:
            assert outcome.result.correct == (i == 5) and outcome.result.answer == str(i)


def test_a_worker_that_dies_costs_only_what_it_was_at(workers):
    workers.ask([box(1)] * 4)  # all are up

    def kill(number, outcome):
        if number == 3:
            for w in workers._workers:
                os.kill(w.process.pid, signal.SIGKILL)

    found = workers.ask([box(5) for _ in range(60)], kill)
    died = [o for o in found if isinstance(o.result, RuntimeError)]
    assert len(died) <= 2  # one for each worker
    assert sum(not isinstance(o.result, Exception) and o.result.correct for o in found) == 60 - len(died)


def test_it_can_be_asked_from_a_thread(workers):
    """Others' verifiers set an alarm, which only the main thread may, and give 0 for all."""
    found = []
    thread = threading.Thread(target=lambda: found.extend(workers.ask([box(5), box(6)])))
    thread.start()
    thread.join()
    assert [o.result.correct for o in found] == [True, False]


def test_workers_are_replaced_after_so_many_answers(workers, monkeypatch):
    monkeypatch.setattr(pool, "RECYCLED", 5)
    before = {w.process.pid for w in workers._workers}
    workers.ask([box(5)] * 60)
    assert not before & {w.process.pid for w in workers._workers}


def test_hostile_answers_make_no_file_and_end_in_time(workers, tmp_path):
    made = tmp_path / "made"
    here = set(os.listdir("."))
    found = workers.ask([("math", ("x^2+1", a, "strict")) for a in hostile.answers(150, made)])
    assert max(o.seconds for o in found) < 2.5
    assert not any(getattr(o.result, "correct", False) for o in found)
    assert not made.exists() and set(os.listdir(".")) == here
    assert [o.result.correct for o in workers.ask([box(5)])] == [True]


def escape(kind, path):
    """What a parser that evaluates code could be made to do."""
    if kind == "write":
        open(path, "w").close()
    elif kind == "process":
        os.system(f"touch {path}")
    elif kind == "fork":
        os.fork()
    elif kind == "socket":
        import socket

        socket.socket()
    elif kind == "memory":
        return len(bytearray(4 * 2**30))
    return "escaped"


@pytest.mark.parametrize("kind", ["write", "process", "fork", "socket", "memory"])
def test_a_worker_is_fenced_in(kind, tmp_path):
    """In a process of its own that calls what a worker calls first."""
    import subprocess

    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from astro_jax.verify import worker\nfrom test_verify_pool import escape\n"
        "worker._fence(2**30)\nworker.FUNCTIONS['escape'] = escape\n"
        f"print(repr(worker._answer('escape', ({kind!r}, {str(tmp_path / 'made')!r}))))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ("out of memory" if kind == "memory" else "is not for a verifier") in found.stdout, found.stderr
    assert not (tmp_path / "made").exists()


# ---- The verifier


def response(answer, gold="5", stopped=True):
    return Response(Problem("x", "", gold, task="math"), f"so \\boxed{{{answer}}}", stopped)


@pytest.fixture
def verifier(workers):
    found = Verifier(cfg.Verify(timeout_seconds=1))
    found._pool = workers
    return found


def test_verdicts_by_status(verifier):
    slow = Response(Problem("x", "", "5", task="math"), SLOW, True)
    cut = response(5, stopped=False)
    found = verifier.judge([response(5), response(6), response("x^{"), slow, cut])
    assert [v.status for v in found] == ["correct", "wrong", "unparsed", "timeout", "unparsed"]
    assert [v.correct for v in found] == [True, False, False, False, False]
    assert found[1].answer == "6"
    assert verifier.tally.counts == {"correct": 1, "wrong": 1, "unparsed": 2, "timeout": 1}


def test_search_and_rl_are_strict_where_reports_are_lenient(verifier):
    third = Response(Problem("x", "", "\\frac{1}{3}", task="math"), "the answer is 0.33", True)
    assert [verifier.judge([third], use)[0].status for use in ("reward", "report")] == ["unparsed", "correct"]


def test_disagreements_with_the_second_grader_are_listed(verifier):
    verifier.judge([response("50%", gold="50"), response(5)])
    assert verifier.tally.disagreements == [{"gold": "50", "answer": "50%", "correct": True}]


def test_a_run_without_verdicts_stops_loudly(verifier):
    """All zero rewards, silently, is what others' users found after days."""
    verifier.judge([response(5)] + [response("", stopped=False)] * 150)
    with pytest.raises(AstroError, match=r"200 of 201 responses have no verdict \(1 correct, 200 unparsed\).*cut off"):
        verifier.judge([response("", stopped=False)] * 50)


def test_a_toy_may_give_no_valid_answer_for_a_while():
    problem = Problem("x", "", "5", {"numbers": [2, 3], "target": 5})
    assert not any(v.correct for v in Verifier().judge([Response(problem, "nonsense", True)] * 500))


def test_which_golds_can_be_read(verifier):
    assert verifier.readable(["5", "\\frac{1}{2}", "\\frac{", ""]) == [True, True, False, False]


# ---- The command


def run(monkeypatch, capsys, lines, *options):
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(x + "\n" for x in lines)))
    code = cli.main(["verify", *options])
    out = capsys.readouterr()
    return code, [json.loads(x) for x in out.out.splitlines()], out.err


def test_a_line_in_is_a_line_out_in_order(monkeypatch, capsys):
    lines = [json.dumps({"gold": 5, "response": f"Let's see. \\boxed{{{i}}}"}) for i in range(70)]
    code, found, _ = run(monkeypatch, capsys, lines)
    assert code == 0
    assert [f["extracted"] for f in found] == [str(i) for i in range(70)]
    assert [f["verdict"] for f in found] == ["correct" if i == 5 else "wrong" for i in range(70)]
    assert all(set(f) == {"verdict", "extracted", "seconds"} and f["seconds"] < 5 for f in found)


def test_options_of_the_command(monkeypatch, capsys):
    line = json.dumps({"gold": "1/3", "response": "The answer is 0.33"})
    assert run(monkeypatch, capsys, [line])[1][0]["verdict"] == "unparsed"
    assert run(monkeypatch, capsys, [line], "--rule", "lenient", "--num-workers", "1")[1][0]["verdict"] == "correct"
    slow = json.dumps({"gold": "1", "response": SLOW})
    assert run(monkeypatch, capsys, [slow], "--timeout-seconds", "0.5")[1][0] | {"seconds": 0} == {
        "verdict": "timeout", "extracted": None, "seconds": 0
    }  # fmt: skip


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"gold": "5"}', '{"gold": null, "response": "x"}', '{"gold": "5", "response": 5}', "[" * 99999]
)
def test_a_bad_line_is_named_after_the_verdicts_before_it(monkeypatch, capsys, line):
    good = json.dumps({"gold": 5, "response": "\\boxed{5}"})
    code, found, err = run(monkeypatch, capsys, [good, good, line, good])
    assert code == 2 and len(found) == 2
    assert "line 3" in err and err.count("\n") == 1


def test_a_file_that_is_not_there_is_one_line(capsys):
    assert cli.main(["verify", "nowhere.jsonl"]) == 2
    assert capsys.readouterr().err == "astro: nowhere.jsonl: cannot be read (No such file or directory)\n"


def test_the_main_process_does_not_import_the_parsers():
    """They take seconds to start, and are for workers only."""
    import subprocess

    code = "import sys, astro_jax.verify; print(sorted({'sympy', 'math_verify', 'antlr4'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_workers_do_not_import_jax():
    """They would take its memory, and half a minute to start."""
    import subprocess

    code = "import sys, astro_jax.verify.preload; print(sorted({'jax', 'transformers', 'flax'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
