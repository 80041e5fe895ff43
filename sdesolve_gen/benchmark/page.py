"""The page: a template with the results written into it, which opens from disk and asks the net for nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any


def page(found: Mapping[str, Any]) -> str:
    """One self-contained HTML document."""
    data = json.dumps(found, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("</", "<\\/")
    return files(__package__).joinpath("page.html").read_text(encoding="utf-8").replace("__RESULTS__", data, 1)
