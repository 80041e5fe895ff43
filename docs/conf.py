"""Sphinx: Markdown pages, and a reference out of the docstrings."""

from __future__ import annotations

import re
from importlib.metadata import version as installed
from typing import Any

project = "sdesolve"
author = "The sdesolve authors"
copyright = author
version = release = installed("sdesolve")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"sdesolve {release}"
html_static_path = ["_static"]

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # an override without a word of its own is not listed again
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False


def readable(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text with formulas in it: what stands indented on its own is kept as it is, the rest is escaped."""
    done: list[str] = []
    section = verbatim = False
    for i, line in enumerate(lines):
        before = lines[i - 1].strip() if i else ""
        starts_block = not before
        indented = line.startswith("    ")
        if line.strip() and not indented:
            section, verbatim = bool(re.fullmatch(r"[A-Z]\w+:", line.strip())), False
        elif line.strip() and starts_block and not section and not verbatim:
            verbatim = True
            done += ["::", ""]
        done.append(line if verbatim else escaped(line))
    lines[:] = done


def escaped(line: str) -> str:
    """``line`` with what reStructuredText would read as markup taken literally; ``code`` and :roles: stay."""
    pieces = re.split(r"(``.+?``|:\w+:`.+?`)", line)
    pieces[::2] = [re.sub(r"([*|`]|_(?=\W|$))", r"\\\1", piece) for piece in pieces[::2]]
    return "".join(pieces)


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", readable, priority=400)  # before napoleon
