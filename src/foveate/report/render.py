"""`render(run_folder)`: from a run folder's result.json to report.html."""

from __future__ import annotations

import importlib
import json
import pkgutil
from pathlib import Path
from typing import Any

from foveate.core.errors import UserError, choose
from foveate.core.files import write_text_atomically
from foveate.report import pages
from foveate.report.images import ImageBook
from foveate.report.page import Page, render_page


def kinds() -> list[str]:
    """The kinds of runs that have a page: the modules of `foveate.report.pages`."""
    return sorted(module.name for module in pkgutil.iter_modules(pages.__path__) if not module.name.startswith("_"))


def read_result(run_folder: Path) -> dict[str, Any]:
    """The content of result.json; a missing or broken file raises UserError."""
    path = run_folder / "result.json"
    if not path.is_file():
        raise UserError(f"{run_folder} holds no result.json: a report is made from a finished run's folder")
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(result, dict) or not isinstance(result.get("kind"), str):
        raise UserError(f"{path}: the field 'kind' is missing: allowed are {', '.join(kinds())}")
    return result


def build(result: dict[str, Any], run_folder: Path) -> Page:
    """Find the page builder by the result's `kind` and call it."""
    kind = choose(result["kind"], kinds(), "kind of run")
    builder = importlib.import_module(f"foveate.report.pages.{kind}")
    return builder.build(result, run_folder)


def render(run_folder: Path) -> Path:
    """Write report.html into a run folder, atomically, and return its path.

    Reads result.json, the metrics.jsonl that it names and the images beside it. Wrong or missing content
    raises UserError with the field or the file.
    """
    run_folder = Path(run_folder)
    page = build(read_result(run_folder), run_folder)
    target = run_folder / "report.html"
    write_text_atomically(target, render_page(page, ImageBook(run_folder)))
    return target
