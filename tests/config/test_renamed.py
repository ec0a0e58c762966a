"""Keys of older versions are refused with the key to write."""

import re

import pytest

from astro_jax import config as cfg
from astro_jax.config.renamed import RENAMED
from astro_jax.errors import AstroError

CASES = [(section, old, new) for section, names in RENAMED.items() for old, new in names.items()]


@pytest.mark.parametrize("section", RENAMED)
def test_each_old_key_of_a_section_names_its_new_key(section):
    keys = cfg.sections()[section].model_fields
    for old, new in RENAMED[section].items():
        dotted = f"{section}.{old}" if section else old
        assert old not in keys and set(new.split(" and ")) <= keys.keys()
        with pytest.raises(AstroError, match=rf"^config: {re.escape(dotted)}: renamed: write ") as e:
            cfg.parse({section: {old: 3}} if section else {old: 3})
        message = str(e.value)
        assert "\n" not in message
        assert all(f"{section}.{name}".lstrip(".") in message for name in new.split(" and "))


def test_all_renamings_of_0_1_are_known():
    assert len(CASES) == 70


@pytest.mark.parametrize(
    "old, value, replacement",
    [
        ("remat", True, "remat_policy=full"),
        ("remat", False, "remat_policy=none"),
        ("attend_across", True, "packing_strategy=wrapped"),
        ("attend_across", False, "packing_strategy=first-fit"),
    ],
)
def test_an_old_value_names_its_new_value(old, value, replacement):
    with pytest.raises(AstroError) as e:
        cfg.parse({"sft": {old: value}})
    assert str(e.value) == f"config: sft.{old}: renamed: write sft.{replacement}"
    assert cfg.parse({"sft": dict([replacement.split("=")])}).sft


def test_an_old_section_names_the_new_section():
    with pytest.raises(AstroError, match=r"^config: warm_up: renamed: write base_sft$"):
        cfg.parse({"warm_up": {"epochs": 2}})
