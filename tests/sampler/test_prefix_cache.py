"""The index of prefixes that are kept."""

from astro_jax.sampler.library import Library


def test_the_library_forgets_what_was_used_longest_ago():
    library = Library(2, block=4)
    a, b, c = (1,) * 9, (1,) * 4 + (2,) * 6, (3,) * 4
    assert library.find(a) == (0, 0)
    first, second = library.add(a), library.add(b)
    assert {first, second} == {0, 1} and library.add((1,) * 8) is None and library.add((1, 2)) is None
    assert library.find((1,) * 11) == (first, 2) and library.find((1, 1, 1, 1, 2, 2, 2)) == (second, 1)
    assert library.find(a) == (first, 2)
    assert library.add(c) == second  # b was used before a
    assert library.find(b)[1] in (0, 1) and library.find(c) == (second, 1) and library.find(a) == (first, 2)
