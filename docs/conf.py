"""How the site is built: `make docs`."""

from __future__ import annotations

import inspect
import logging
import re
from typing import Any

from pygments.lexers.special import TextLexer

import plft

project = "plft"
author = "the plft authors"
copyright = author
version = release = plft.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"plft {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
smartquotes = False  # --flag is not –flag

myst_heading_anchors = 4  # links to headings as GitHub writes them
myst_links_external_new_tab = False

default_role = "code"  # docstrings write `name`, as Markdown does
add_module_names = False
autodoc_typehints = "description"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
python_display_short_literal_types = True

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it misses optional kernels when it is imported


# --- docstrings: the house's "name: text" runs as fields


def set_fields(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Turn "rows: text.  columns: text.  Returns text.  Raises X: text." into fields, in place.

    Only names of the object's own parameters count, so that a colon in a sentence stays what it is. After the name in
    `name`s comes a mark, without which reStructuredText does not see where it ends.
    """
    if any(line.startswith(" ") for line in lines):  # indented: written as reStructuredText already
        return
    text = re.sub(r"(``[^`]+``|`[^`]+`)(?=(\w?))", lambda code: code[1] + "\\ " * bool(code[2]), "\n".join(lines))
    paragraphs = text.strip().split("\n\n")
    lines[:] = [line for each in paragraphs for line in [*fields(each, parameters_of(thing)), ""]]


def parameters_of(thing: Any) -> set[str]:
    """Names of the parameters of a function or a class; for a dataclass these are its fields."""
    try:
        return set(inspect.signature(thing).parameters)
    except (TypeError, ValueError):
        return set()


def fields(paragraph: str, known: set[str]) -> list[str]:
    """The lines of one paragraph: its own sentences, then a field for each parameter it describes."""
    names = "|".join(sorted(map(re.escape, known), key=len, reverse=True)) or "(?!)"
    begins = rf"(?:^|(?<=[.)])\s+|\s\s+)(?:((?:{names})(?:, (?:{names}))*):|(Returns|Raises \w+))\s"
    first, *rest = re.split(begins, paragraph)
    if not rest:
        return [paragraph]
    written = [first.strip(), ""] if first else [""]
    for parameters, outcome, text in zip(rest[::3], rest[1::3], rest[2::3], strict=True):
        written += [f":{name}: {' '.join(text.split())}" for name in field_names(parameters, outcome)]
    return written


def field_names(parameters: str | None, outcome: str | None) -> list[str]:
    """What reStructuredText calls the fields of "name, other name", or of "Returns" and "Raises X"."""
    if parameters:
        return [f"param {name}" for name in parameters.split(", ")]
    return [str(outcome).lower() if outcome == "Returns" else f"raises {str(outcome).split()[1]}"]


def setup(app: Any) -> None:
    """Connect what stands above."""
    app.connect("autodoc-process-docstring", set_fields)
    for name in ("csv", "fasta"):
        app.add_lexer(name, TextLexer)
