"""A user-written reward: what it is called with, what it may return, and one clear line for each way to fail."""

import contextlib
import os
import subprocess
import time

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
def reward(source, entry_point="my_reward.py:reward", seconds=20.0):
    """The function of a file my_reward.py with this source, in the working folder."""
    with open("my_reward.py", "w") as f:
        f.write(source)
    with contextlib.closing(UserReward(entry_point, COLUMNS, seconds, num_workers=1)) as user_reward:
        yield user_reward


def returning(value):
    return f"def reward(completions, **columns): return {value}"


# ---- What the function is called with, and what it may do


def test_a_group_is_one_call_with_the_columns_and_none_is_no_reward():
    source = """
def reward(prompts, completions, answer, **columns):
    assert prompts == ["1+1"] * len(completions) and set(columns) == {"problem_id"}
    return [None if c == "?" else len(completions) * (c == a) for c, a in zip(completions, answer)]
"""
    with reward(source) as user_reward:
        assert user_reward.score([group("2", "3", "?"), group("2")]) == [[3.0, 0.0, None], [1.0]]
        assert user_reward.score([]) == []


@pytest.mark.parametrize("entry_point", ["my_reward:reward", "my_reward.py:reward", "{folder}/my_reward.py:reward",
                                         "my_reward:Rewards.reward"])  # fmt: skip
def test_a_function_is_found_by_module_and_by_file(entry_point, folder):
    source = returning("[1.5]") + "\nclass Rewards: reward = staticmethod(reward)"
    with reward(source, entry_point.format(folder=folder)) as user_reward:
        user_reward.check()
        assert user_reward.score([group("a")]) == [[1.5]]


def test_a_module_on_the_python_path_is_found(folder, monkeypatch):
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "other_reward.py").write_text(returning("[2]"))
    monkeypatch.syspath_prepend(str(folder / "elsewhere"))
    with reward("", "other_reward:reward") as user_reward:
        assert user_reward.score([group("a")]) == [[2.0]]


def test_the_function_imports_and_uses_files_and_processes_freely(folder):
    """The fence of the workers that read answers of the model is not for code of the user."""
    (folder / "sibling.py").write_text("import decimal, socket\nimport numpy as np\nweights = np.ones(1)")
    (folder / "weights.txt").write_text("0.25")
    source = """
import subprocess, tempfile
from sibling import weights

async def reward(completions, **columns):
    with tempfile.NamedTemporaryFile("w") as f:
        f.write(open("weights.txt").read())
        f.flush()
        return weights * float(subprocess.run(["cat", f.name], capture_output=True, text=True).stdout)
"""
    with reward(source) as user_reward:
        user_reward.check()
        assert user_reward.score([group("a")]) == [[0.25]]


def test_the_log_says_that_code_of_the_user_runs(capsys):
    with reward(returning("[1]")) as user_reward:
        user_reward.check()
    assert "grpo.reward=my_reward.py:reward runs your own code" in capsys.readouterr().err


# ---- What is refused before the first call


@pytest.mark.parametrize(
    "entry_point, source, message",
    [
        ("nowhere:reward", "", "ModuleNotFoundError: No module named 'nowhere'$"),
        ("nowhere.py:reward", "", "FileNotFoundError: .*nowhere.py'$"),
        ("my_reward.py:reward", "", "AttributeError: module 'my_reward' has no attribute 'reward'$"),
        ("my_reward.py:reward", "reward = 3", "3 is no function"),
        ("my_reward.py:reward", "x = 1\n1 / 0", r"ZeroDivisionError: division by zero \(my_reward.py, line 2\)$"),
        ("my_reward.py:reward", "def reward(", r"SyntaxError: .*\(my_reward.py, line 1\)$"),
        ("my_reward.py:reward", "raise SystemExit(3)", r"SystemExit: 3 \(my_reward.py, line 1\)$"),
        ("my_reward.py:reward", "def reward(completions): ...", "unexpected keyword argument .prompts.; its"),
        ("my_reward.py:reward", "def reward(solution, **columns): ...", "missing a required argument: 'solution'; "),
        ("my_reward.py:reward", "import os; os._exit(1)", "a worker did not start"),
    ],
)  # fmt: skip
def test_a_function_that_cannot_be_called_is_refused(entry_point, source, message):
    with reward(source, entry_point) as user_reward:
        with pytest.raises(AstroError, match=message) as e:
            user_reward.check()
    assert str(e.value).startswith(f"grpo.reward={entry_point}: ") and "\n" not in str(e.value)


def test_an_import_that_hangs_is_refused(monkeypatch):
    monkeypatch.setattr(pool, "START_SECONDS", 1.0)
    with (
        reward("import time; time.sleep(60)") as user_reward,
        pytest.raises(AstroError, match="does the import of the module end"),
    ):
        user_reward.check()


# ---- What the function may not do


@pytest.mark.parametrize(
    "value, message",
    [
        ("[1.0]", "returned 1 rewards for 2 completions"),
        ("None", "returned None, not a list of 2 rewards"),
        ("[1.0, 'high']", "returned 'high' for completion 1, not a number or None"),
        ("[float('nan'), 1.0]", "returned NaN, infinity or more than 1e.30 for completion 0; None is no reward"),
        ("[1.0, 10 ** 400]", "returned NaN, infinity or more than 1e.30 for completion 1"),
        ("[[1.0], [2.0]]", r"returned \[1.0\] for completion 0, not a number or None"),
    ],
)
def test_a_result_that_is_no_reward_is_refused(value, message):
    with reward(returning(value)) as user_reward:
        with pytest.raises(AstroError, match=f"^grpo.reward=my_reward.py:reward: {message}"):
            user_reward.score([group("a", "b")])


def test_a_function_that_raises_is_named_with_its_line():
    source = "import json\n\ndef reward(completions, **columns):\n    return [json.loads(c) for c in completions]\n"
    with reward(source) as user_reward:
        with pytest.raises(AstroError, match=r"JSONDecodeError: Expecting value.* \(my_reward.py, line 4\)$") as e:
            user_reward.score([group("5"), group("\x1b[31m\n")])
        assert "\n" not in str(e.value)
        assert user_reward.score([group("5")]) == [[5.0]]


def test_a_message_with_text_of_the_model_is_one_printable_line():
    with reward("def reward(completions, **columns): raise ValueError(completions[0])") as user_reward:
        with pytest.raises(AstroError, match=r"ValueError: \[31m a b \(my_reward") as e:
            user_reward.score([group("\x1b[31m\na\u2028b")])
        assert str(e.value).isprintable()


COUNTED = """
import os, time

def reward(completions, **columns):
    with open("calls.txt", "a") as f:
        f.write("x")
    {}
    return [1.0] * len(completions)
"""


def test_a_call_that_hangs_once_runs_again(folder):
    with reward(COUNTED.format("time.sleep(60 * (len(open('calls.txt').read()) == 1))"), seconds=0.5) as user_reward:
        assert user_reward.score([group("a"), group("b")]) == [[1.0], [1.0]]
    assert (folder / "calls.txt").read_text() == "xxx"


@pytest.mark.parametrize(
    "line, message",
    [
        ("os.system('sleep 61.7')", "no result within 0.5 s in 3 calls; raise grpo.reward_timeout_seconds"),
        ("os._exit(1)", "the worker died in 3 calls"),
    ],
)
def test_a_call_that_never_ends_is_refused_after_three_tries(line, message, folder):
    with reward(COUNTED.format(line), seconds=0.5) as user_reward:
        start = time.monotonic()
        with pytest.raises(AstroError, match=message):
            user_reward.score([group("a"), group("b")])
    assert (folder / "calls.txt").read_text() == "xxx" and time.monotonic() - start < 20
    assert "sleep 61.7" not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout


def test_the_working_folder_is_the_one_of_the_run(folder):
    with reward("import os\ndef reward(completions, **columns): return [os.getcwd() == c for c in completions]") as r:
        assert r.score([group(os.getcwd(), "elsewhere")]) == [[1.0, 0.0]]
