"""A page without scripts about a figure and its tables: one head, which lets nothing load, one style, one table."""

from __future__ import annotations

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
        `style` and `body`. Its tables are those of static_page/table.html.
      title: of the page.
      command: that made the page.
      **values: what the template reads.
    """
    return _JINJA.get_template(template).render(title=title, command=command, **values)
