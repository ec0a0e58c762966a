"""Values of SamplingParams out of range."""

import pytest

from astro_jax.errors import AstroError
from astro_jax.sampler import SamplingParams


@pytest.mark.parametrize(
    "changes", [dict(temperature=-1), dict(top_k=-1), dict(top_p=0), dict(top_p=1.1), dict(min_p=1)], ids=str
)
def test_settings_out_of_range_are_errors(changes):
    ((name, value),) = changes.items()
    with pytest.raises(AstroError, match=f"sampler: {name} is (at least|in) .*, got {value}$"):
        SamplingParams(max_tokens=1, **changes)


@pytest.mark.parametrize("max_tokens", [0, -1])
def test_no_new_tokens_is_an_error(max_tokens):
    with pytest.raises(AstroError, match=r"max_tokens is .*at least 1"):
        SamplingParams(max_tokens)


def test_an_empty_stop_string_is_an_error():
    with pytest.raises(AstroError, match="a stop string must not be empty"):
        SamplingParams(1, stop=("",))
