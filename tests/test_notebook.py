"""The notebook for the free TPUs of Colab and Kaggle: its commands, and the cells of the quickstart on a CPU."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest

from astro_jax import cli
from astro_jax import config as cfg

ROOT = Path(__file__).parents[1]
NOTEBOOK = json.loads((ROOT / "docs" / "first-hour.ipynb").read_text())
CELLS = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
SETTINGS, INSTALL, *RUN = CELLS


def test_notebook_holds_no_output():
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in NOTEBOOK["cells"])


def test_every_command_of_the_notebook_is_one_of_this_version():
    """The commands of `astro` are parsed, with the notebook's own settings, and their configs are loaded."""
    names = {"CHIPS": 8}
    exec(SETTINGS, names)
    commands = [line.format(**names) for line in "\n".join(RUN).splitlines() if ".venv/bin/astro" in line]
    parsed = [cli.parse(shlex.split(command.partition(".venv/bin/astro ")[2])) for command in commands]
    assert [args.call.__name__ for args in parsed] == ["run", "run", "status"]
    for args in parsed[:2]:
        assert cfg.load(args.config, args.overrides).mesh.data == 8
    for path in re.findall(r"launch/\S+", INSTALL):
        assert (ROOT / path).exists()


def execute(cell, names, folder):
    """Execute a cell as IPython does: Python, and lines for the shell after "!". Return the value of a last line."""
    lines = [line for line in cell.splitlines() if not line.startswith("!")]
    tree = ast.parse("\n".join(lines))
    last = ast.Expression(tree.body.pop().value) if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    value = eval(compile(last, "cell", "eval"), names) if last else None
    for line in cell.splitlines():
        if line.startswith("!"):
            subprocess.run(line[1:].format(**names), shell=True, cwd=folder, check=True)
    return value


TINY = {
    "sampler.max_num_seqs": 4, "search.max_concurrent_trees": 4, "search.shard_size": 4, "grpo.max_steps": 1,
    "grpo.prompts_per_step": 2, "grpo.num_generations": 4, "search.method": "rounds", "search.rounds": "[8,8]",
}  # fmt: skip


def overrides(keys):
    return shlex.join(f"{key}={value}" for key, value in keys.items())


@pytest.mark.slow
def test_cells_of_the_quickstart_run_on_a_cpu_and_show_the_report(tmp_path, monkeypatch):
    """The environment that the notebook would install is replaced by this one, and the budgets by tiny ones."""
    bin = tmp_path / "astro" / ".venv" / "bin"
    bin.mkdir(parents=True)
    for name, command in (("python", ""), ("astro", "-m astro_jax ")):
        (bin / name).write_text(f'#!/usr/bin/env bash\nexec {sys.executable} {command}"$@"\n')
        (bin / name).chmod(0o755)
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(HTML=str))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # of the tests: eight devices
    monkeypatch.chdir(tmp_path)
    names = {}
    execute(SETTINGS, names, tmp_path)
    names["QUICKSTART"] = overrides(TINY | {"scale": 0.004})
    chips, _, page = [execute(cell, names, tmp_path) for cell in RUN[:3]]
    assert chips == 1 and page.startswith('<iframe srcdoc="&lt;!doctype html')
