"""The worker's side of a user-written reward, called in this process: what may be imported and returned."""

import os
import sys

import pytest

from astro_jax.verify import reward_function
from astro_jax.verify.reward_function import Rewards, Source, UserError

COLUMNS = ("prompts", "completions", "answer")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The working folder of a test. Its modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    modules = dict(sys.modules)
    yield tmp_path
    for name in sys.modules.keys() - modules.keys():
        del sys.modules[name]


def write(source, name="my_reward.py"):
    with open(name, "w") as f:
        f.write(source)


def check(entry_point="my_reward.py:reward"):
    return reward_function.check(entry_point, os.getcwd(), COLUMNS)


def call(*completions, entry_point="my_reward.py:reward"):
    n = len(completions)
    columns = {"prompts": ["1+1"] * n, "completions": list(completions), "answer": ["2"] * n}
    return reward_function.call(entry_point, os.getcwd(), columns)


@pytest.mark.parametrize(
    "entry_point",
    ["my_reward:reward", "my_reward.py:reward", "{folder}/my_reward.py:reward", "my_reward:Rewards.reward"],
)
def test_a_function_is_found_by_module_and_by_file(entry_point, folder):
    write("def reward(**columns): return [1.5]\nclass Rewards: reward = staticmethod(reward)")
    entry_point = entry_point.format(folder=folder)
    source = check(entry_point)
    assert isinstance(source, Source) and os.path.samefile(source.path, "my_reward.py") and len(source.sha256) == 64
    assert call("a", entry_point=entry_point) == Rewards([1.5])


def test_a_module_on_the_python_path_is_found(folder):
    (folder / "elsewhere").mkdir()
    write("def reward(**columns): return [2]", "elsewhere/other_reward.py")
    sys.path.insert(0, str(folder / "elsewhere"))
    assert call("a", entry_point="other_reward:reward") == Rewards([2.0])


def test_a_file_does_not_replace_the_module_of_its_name():
    write("def reward(**columns): return [2]", "statistics.py")
    import statistics

    assert call("a", entry_point="statistics.py:reward") == Rewards([2.0])
    assert sys.modules["statistics"] is statistics and statistics.fmean([1.0, 3.0]) == 2


@pytest.mark.parametrize(
    "entry_point, source, message",
    [
        ("nowhere:reward", "", "ModuleNotFoundError: No module named 'nowhere'"),
        ("nowhere.py:reward", "", "FileNotFoundError: [Errno 2] No such file or directory: '{folder}/nowhere.py'"),
        ("my_reward.py:reward", "", "AttributeError: module 'my_reward' has no attribute 'reward'"),
        ("my_reward.py:reward", "reward = 3", "3 is no function"),
        ("my_reward.py:reward", "x = 1\n1 / 0", "ZeroDivisionError: division by zero (my_reward.py, line 2)"),
        ("my_reward.py:reward", "def reward(", "SyntaxError: '(' was never closed (my_reward.py, line 1)"),
        ("my_reward.py:reward", "raise SystemExit(3)", "SystemExit: 3 (my_reward.py, line 1)"),
        (
            "my_reward.py:reward",
            "def reward(completions): ...",
            "got an unexpected keyword argument 'prompts'; its arguments are prompts, completions, answer: take "
            "`prompts`, `completions` and `**columns`",
        ),
        (
            "my_reward.py:reward",
            "def reward(solution, **columns): ...",
            "missing a required argument: 'solution'; its arguments are prompts, completions, answer: take "
            "`prompts`, `completions` and `**columns`",
        ),
    ],
)
def test_a_function_that_cannot_be_called_is_described(entry_point, source, message, folder):
    write(source)
    for _ in range(2):  # an import that failed is not remembered
        assert check(entry_point) == UserError(message.format(folder=folder))


@pytest.mark.parametrize(
    "value, message",
    [
        ("[1.0]", "returned 1 rewards for 2 completions"),
        ("None", "returned None, not a list of 2 rewards"),
        ("[1.0, 'high']", "returned 'high' for completion 1, not a number or None"),
        ("[float('nan'), 1.0]", "returned NaN, infinity or more than 1e+30 for completion 0; None is no reward"),
        ("[1.0, -10 ** 400]", "returned NaN, infinity or more than 1e+30 for completion 1; None is no reward"),
        ("[[1.0], [2.0]]", "returned [1.0] for completion 0, not a number or None"),
    ],
)
def test_a_result_that_is_no_reward_is_described(value, message):
    write(f"def reward(**columns): return {value}")
    assert call("a", "b") == UserError(message)


@pytest.mark.parametrize("value", ["[1, None, True]", "(1.0, None, 1)", "iter([1, None, 1])"])
def test_numbers_and_none_are_rewards(value):
    write(f"async def reward(**columns): return {value}")
    assert call("a", "b", "c") == Rewards([1.0, None, 1.0])


def test_numbers_of_numpy_are_rewards():
    write("import numpy as np\ndef reward(**columns): return np.arange(3, dtype=np.float32) / 2")
    assert call("a", "b", "c") == Rewards([0.0, 0.5, 1.0])


def test_an_exception_is_described_with_the_line_of_the_users_code():
    write("import json\n\ndef reward(completions, **columns):\n    return [json.loads(c) for c in completions]\n")
    assert call("5") == Rewards([5.0])
    message = "JSONDecodeError: Expecting value: line 1 column 1 (char 0) (my_reward.py, line 4)"
    assert call("5", "x") == UserError(message)


def test_an_exception_with_text_of_the_model_is_one_printable_line():
    write("def reward(completions, **columns): raise ValueError(completions[0])")
    assert call("\x1b[31m\na\u2028b") == UserError("ValueError: [31m a b (my_reward.py, line 1)")
