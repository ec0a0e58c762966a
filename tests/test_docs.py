"""The generated pages of the documentation hold every config key and every command."""

import importlib.util
import re
from pathlib import Path

import pytest

from astro_jax import config as cfg
from astro_jax.cli.parser import COMMANDS, of_command

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def hooks():
    """docs/hooks.py, as mkdocs loads it."""
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_configuration_page_has_every_key_with_type_default_meaning_source_and_effect(hooks):
    page = hooks.configuration_page()
    described = set()
    for name, section in cfg.sections().items():
        assert f"## {f'`{name}`' if name else 'The config itself'}\n" in page
        if section in described:
            assert f"## `{name}`\n\nKeys as in [`sft`](#sft)." in page
            continue
        described.add(section)
        for key, info in cfg.key_names(section).items():
            (row,) = re.findall(rf"^\| `{re.escape(f'{name}.{key}'.lstrip('.'))}` \|.*\|$", page, re.MULTILINE)
            cells = [cell.strip() for cell in row.strip("|").split("|")]
            assert len(cells) == 6 and all(cells), row
            assert cells[3:] == [info.description, *(info.json_schema_extra[key] for key in ("source", "effect"))]
    assert all(f"`{recipe}`" in page for recipe in cfg.recipes())


@pytest.mark.parametrize(
    "row",
    [
        "| `grpo.learning_rate` | `float` | `2e-7` | Peak learning rate. | paper, section 3.2 (recalled) |",
        "| `traces.merge_at` | `ancestor or root or random` | `ancestor` |",
        "| `search.early_stop` | `section or null` | `null` |",
        '| `search.step_end` | `str` | `".\\n"` |',
        "| `problems.rl_pass_rate` | `[float, float]` | `[0.01, 0.75]` |",
        "| `problems.gym` | `list of section` | `[]` |",
        "| `mesh` | `section` | [below](#mesh) |",
    ],
)
def test_types_and_defaults_are_written_for_readers(hooks, row):
    assert row in hooks.configuration_page()


def test_the_command_line_page_has_every_command_and_option(hooks):
    page = hooks.command_line_page()
    for command in COMMANDS:
        section = page.partition(f"### `astro {command.name}`\n")[2].partition("\n### ")[0]
        text = section if not command.stages else section + page.partition("### `astro run`\n")[2].partition("\n## ")[0]
        for action in of_command(command)._actions:
            names = action.option_strings or [action.metavar or "|".join(action.choices)]
            assert action.dest == "help" or any(f"`{name}" in text for name in names), (command.name, names)


def test_pages_are_generated_for_mkdocs(hooks, tmp_path):
    pytest.importorskip("mkdocs")
    from mkdocs.config.base import load_config
    from mkdocs.structure.files import Files

    (tmp_path / "docs").mkdir()
    (tmp_path / "mkdocs.yml").write_text("site_name: test\nplugins: []\n")
    config = load_config(str(tmp_path / "mkdocs.yml"))
    config.plugins._current_plugin = "docs/hooks.py"  # mkdocs sets it while it runs a hook
    files = hooks.on_files(hooks.on_files(Files([]), config), config)
    assert sorted(f.src_uri for f in files) == ["command-line.md", "configuration.md"]
    assert files.get_file_from_path("configuration.md").content_string == hooks.configuration_page()
