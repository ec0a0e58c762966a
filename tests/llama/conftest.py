"""Fixtures of several modules: a Hugging Face folder, written once a module."""

import shutil

import pytest
from etils import epath
from helpers import countdown_tokenizer, tiny_config, tiny_params

from astro_jax.llama import hf


@pytest.fixture(scope="module")
def written_folder(tmp_path_factory):
    """A Hugging Face folder of `tiny_config()` and `tiny_params`; tests must not change it."""
    folder = epath.Path(tmp_path_factory.mktemp("written") / "model")
    hf.write(folder, tiny_config(), tiny_params(tiny_config()), countdown_tokenizer(9))
    return folder


@pytest.fixture
def folder(written_folder, tmp_path):
    """A copy of `written_folder` that a test may damage."""
    return epath.Path(shutil.copytree(written_folder, tmp_path / "model"))
