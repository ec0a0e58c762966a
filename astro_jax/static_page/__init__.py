"""A page without scripts about a figure and its tables: all have one head, which lets nothing load, and one style."""

from __future__ import annotations

import math
from typing import Any

import jinja2
from etils import epath

_PACKAGE = epath.resource_path("astro_jax")
_JINJA = jinja2.Environment(
    loader=jinja2.FunctionLoader(lambda name: (_PACKAGE / name).read_text()),
    autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
)  # fmt: skip


def render(template: str, title: str, command: str, **values: Any) -> str:
    """Render a page.

    Args:
      template: the path of a template in the package, which extends static_page/page.html and fills in its blocks
        `style` and `body`. Its tables are those of static_page/table.html, the axes of its pictures those of
        static_page/axes.html.
      title: of the page.
      command: that made the page.
      **values: what the template reads.
    """
    return _JINJA.get_template(template).render(title=title, command=command, **values)


def log_ticks(low: float, high: float) -> list[int]:
    """Return the round numbers between two numbers, for a logarithmic axis: 1, 2 and 5 times the powers of 10."""
    numbers = [m * 10**e for e in range(int(math.log10(high)) + 1) for m in (1, 2, 5)]
    return [n for n in numbers if low <= n <= high]
