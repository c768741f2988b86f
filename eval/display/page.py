"""What do all pages share? One style sheet, for screens and for paper, and one frame with a table of contents."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment

UNITS = re.compile(r"\[[^\]]*\]|\b[np] = [\d.]+|\S+ − \S+|[\d.]+ (?:%|points)")
"""What stays on one line."""
HARD_SPACE = "\u00a0"
TEMPLATES = Path(__file__).parent / "templates"


def page_environment(directory: Path) -> "Environment":
    """Returns an environment that finds a page's own templates, and the shared ones; it escapes all values."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([directory, TEMPLATES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = unbroken
    return environment


def unbroken(text: str) -> str:
    """Returns a sentence in which no line ends inside an interval, a difference, `n = 500` or `12.3 points`."""
    return UNITS.sub(lambda match: match[0].replace(" ", HARD_SPACE), text)
