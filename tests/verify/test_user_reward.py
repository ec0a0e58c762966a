"""A user-written reward in its worker processes: columns, freedom, deadlines, and one line for each error."""

import contextlib
import os
import subprocess

import pytest

from astro_jax.errors import AstroError
from astro_jax.verify import pool
from astro_jax.verify.user_reward import UserReward

COLUMNS = ("prompts", "completions", "answer", "problem_id")


def group(*completions):
    n = len(completions)
    return {"prompts": ["1+1"] * n, "completions": list(completions), "answer": ["2"] * n, "problem_id": ["p"] * n}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The working folder of a test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextlib.contextmanager
def reward(source, seconds=20.0):
    """The function of a file my_reward.py with this source, in the working folder."""
    with open("my_reward.py", "w") as f:
        f.write(source)
    with contextlib.closing(UserReward("my_reward.py:reward", COLUMNS, seconds, num_workers=1)) as user_reward:
        yield user_reward


def test_a_group_is_one_call_with_the_columns_and_none_is_no_reward(capsys):
    source = """
def reward(prompts, completions, answer, **columns):
    assert prompts == ["1+1"] * len(completions) and set(columns) == {"problem_id"}
    return [None if c == "?" else len(completions) * (c == a) for c, a in zip(completions, answer)]
"""
    with reward(source) as user_reward:
        user_reward.check()
        assert user_reward.score([group("2", "3", "?"), group("2")]) == [[3.0, 0.0, None], [1.0]]
        assert user_reward.score([]) == []
    assert "grpo.reward=my_reward.py:reward runs your own code" in capsys.readouterr().err


def test_the_function_imports_and_uses_files_and_processes_freely(folder):
    """The fence of the workers that read answers of the model is not for code of the user."""
    (folder / "sibling.py").write_text("import decimal, socket\nimport numpy as np\nweights = np.ones(1)")
    (folder / "weights.txt").write_text("0.25")
    source = """
import multiprocessing, os, subprocess, tempfile
from sibling import weights

def reward(completions, **columns):
    assert os.getcwd() == completions[0]
    process = multiprocessing.get_context("fork").Process(target=os.getpid)
    process.start()
    process.join()
    with tempfile.NamedTemporaryFile("w") as f:
        f.write(open("weights.txt").read())
        f.flush()
        return weights * float(subprocess.run(["cat", f.name], capture_output=True, text=True).stdout)
"""
    with reward(source) as user_reward:
        assert user_reward.score([group(os.getcwd())]) == [[0.25]]


def test_an_error_ends_all_calls_with_one_line(folder):
    source = """
def reward(completions, **columns):
    open("calls.txt", "a").write(completions[0])
    return [1 / int(c) for c in completions]
"""
    message = r"^grpo.reward=my_reward.py:reward: ZeroDivisionError: division by zero \(my_reward.py, line 4\)$"
    with reward(source) as user_reward:
        with pytest.raises(AstroError, match=message):
            user_reward.score([group("1"), group("0"), *[group("2")] * 20])
        assert len((folder / "calls.txt").read_text()) < 22
        assert user_reward.score([group("4")]) == [[0.25]]


def test_a_function_that_cannot_be_called_is_refused_before_the_first_call():
    message = "^grpo.reward=my_reward.py:reward: AttributeError: module 'my_reward' has no attribute 'reward'$"
    with reward("") as user_reward, pytest.raises(AstroError, match=message):
        user_reward.check()


@pytest.mark.parametrize("source", ["import time; time.sleep(60)", "import os; os._exit(1)"])
def test_an_import_that_never_ends_is_refused(source, monkeypatch):
    monkeypatch.setattr(pool, "START_SECONDS", 1.0)
    message = "^grpo.reward=my_reward.py:reward: a worker did not start: does the import of the module end"
    with reward(source) as user_reward, pytest.raises(AstroError, match=message):
        user_reward.check()


COUNTED = """
import os, time

def reward(completions, **columns):
    with open("calls.txt", "a") as f:
        f.write("x")
    {}
    return [1.0] * len(completions)
"""


def test_a_call_that_hangs_once_runs_again(folder):
    with reward(COUNTED.format("time.sleep(60 * (len(open('calls.txt').read()) == 1))"), seconds=2.0) as user_reward:
        assert user_reward.score([group("a"), group("b")]) == [[1.0], [1.0]]
    assert (folder / "calls.txt").read_text() == "xxx"


@pytest.mark.slow
@pytest.mark.parametrize(
    "line, seconds, message",
    [
        ("os.system('sleep 617')", 2.0, "no result within 2 s in 3 calls; raise grpo.reward_timeout_seconds"),
        ("os._exit(1)", 60.0, "the worker died in 3 calls"),
    ],
)
def test_a_call_that_never_ends_is_refused_after_three_tries(line, seconds, message, folder):
    with reward(COUNTED.format(line), seconds) as user_reward, pytest.raises(AstroError, match=message):
        user_reward.score([group("a"), group("b")])
    assert (folder / "calls.txt").read_text() == "xxx"
    # The processes that the function has started end with its worker.
    assert "sleep 617" not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
