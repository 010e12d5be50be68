"""How the site is built: `make docs`."""

from __future__ import annotations

import inspect
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


# --- docstrings: the house's "name: text" runs as fields


def set_fields(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Turn "rows: text.  columns: text.  Returns text.  Raises X: text." into fields, in place.

    Only names of the object's own parameters count, so that a colon in a sentence stays what it is.
    """
    known = parameters_of(thing)
    paragraphs = [" ".join(each.split("\n")) for each in "\n".join(lines).strip().split("\n\n")]
    if not known or any(each.startswith((" ", "    ")) for each in lines):
        return
    lines[:] = [line for each in paragraphs for line in [*fields(each, known), ""]]


def parameters_of(thing: Any) -> set[str]:
    """Names of the parameters of a function or a class; for a dataclass these are its fields."""
    try:
        return set(inspect.signature(thing).parameters) - {"self", "args", "kwargs"}
    except (TypeError, ValueError):
        return set()


def fields(paragraph: str, known: set[str]) -> list[str]:
    """The lines of one paragraph: its sentences, then a field for each parameter that it describes."""
    names = "|".join(sorted(known, key=len, reverse=True))
    start = re.compile(rf"(?:^|(?<=[.)?]) +|  +)((?:{names})(?:, (?:{names}))*): ")
    first, *rest = start.split(paragraph)
    described = [(name.strip(), text.strip()) for name, text in zip(rest[::2], rest[1::2], strict=True)]
    written = [first.strip()] if first.strip() else []
    last = ""
    if described:
        name, text = described[-1]
        text, _, last = text.partition("  Returns ") if "  Returns " in text else (text, "", "")
        described[-1] = (name, text)
        written.append("")
    written += [f":param {each}: {text}" for name, text in described for each in name.split(", ")]
    return written + ([f":returns: {last}"] if last else [])


def setup(app: Any) -> None:
    """Connect what stands above."""
    app.connect("autodoc-process-docstring", set_fields)
    for name in ("csv", "fasta"):
        app.add_lexer(name, TextLexer)
