"""`render(run_folder)`: from a run folder's result.json to report.html."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from foveate.core.errors import UserError
from foveate.core.files import write_text_atomically
from foveate.core.plugins import load_row, load_table
from foveate.report.blocks import print_lines
from foveate.report.images import RunImages
from foveate.report.page import Page, render_page

PAGES = "foveate.report.pages"


def kinds() -> list[str]:
    """List the kinds of runs that have a page: the rows of PAGES in the modules of `foveate.report.pages`."""
    return sorted(load_table(PAGES, "PAGES"))


def read_result(run_folder: Path) -> dict[str, Any]:
    """Return the content of result.json.

    Raises:
        UserError: the file is missing or broken, or has no kind.
    """
    path = run_folder / "result.json"
    if not path.is_file():
        raise UserError(f"{run_folder} has no result.json; a report is made from the folder of a finished run")
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    # The file may come from somebody else or have been edited by hand.
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(result, dict) or not isinstance(result.get("kind"), str):
        raise UserError(f"{path}: the field 'kind' is missing; expected one of {', '.join(kinds())}")
    return result


def build(result: dict[str, Any], run_folder: Path) -> Page:
    """Build the page of a result by its `kind`."""
    build_page: Callable[[Mapping[str, Any], Path], Page] = load_row(
        PAGES, result["kind"], "PAGES", label="kind of run"
    )
    return build_page(result, run_folder)


def tell(run_folder: Path) -> list[str]:
    """Return what the page of a run folder says, as lines for a terminal; for kinds whose page is made of blocks."""
    return print_lines(build(read_result(run_folder), run_folder))


def render(run_folder: Path) -> Path:
    """Write report.html into a run folder atomically; return its path.

    Reads result.json, the metrics.jsonl that it names and the images of the folder.

    Raises:
        UserError: content is wrong or missing; the message names the field or the file.

    Example:
        >>> run = new_folder
        >>> run.mkdir()
        >>> _ = (run / "result.json").write_text('{"kind": "inspect", "summary": {"images": 3}}')
        >>> render(run).name
        'report.html'
    """
    run_folder = Path(run_folder)
    return _write(build(read_result(run_folder), run_folder), run_folder)


def render_and_tell(run_folder: Path) -> tuple[Path, list[str]]:
    """Return what `render` and `tell` return, but build the page once: drawing many images takes seconds."""
    page = build(read_result(run_folder), run_folder)
    return _write(page, run_folder), print_lines(page)


def _write(page: Page, run_folder: Path) -> Path:
    target = run_folder / "report.html"
    # The whole page is rendered before the file is touched: an error leaves the last report as it was.
    write_text_atomically(target, render_page(page, RunImages(run_folder)))
    return target
