"""`foveate tour`: what ships, a lesson, and the rest on built-in images, on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import Call, common, run_option

_RUN = Path("runs/tour")


@click.command("tour", cls=FieldsCommand, short_help="Show everything on built-in images, in minutes.")
@run_option(str(_RUN))
@fields("foveate_labs.studies.settings:TourSettings", "short", "part")
@common()
def command(call: Call, settings: dict[str, Any]) -> None:
    """Show what ships on photographs and drawings, teach it new names, and go through the rest of Foveate.

    Writes one HTML page, whose path is printed as soon as it has what ships, and which grows as parts finish. Right and
    wrong answers are counted alike. Nothing is downloaded. Run the same command to resume.

    \b
    Example:
      foveate tour
      foveate tour --part lesson --out runs/lesson
    """
    from foveate.core.files import read_json
    from foveate.core.progress import say
    from foveate.report import render
    from foveate_labs.pages.tour import summarize
    from foveate_labs.studies.settings import TourSettings
    from foveate_labs.tour.run import tour

    def write_page(path: Path, opened: bool) -> None:
        page = render(path)
        if opened:
            say(f"what ships has answered: {page}; the rest follows on the same page")

    folder = tour(
        call.run or _RUN,
        call.check(TourSettings, settings),
        seed=call.seed or 0,
        device=call.device,
        command=call.command,
        on_page=write_page,
    )
    result = read_json(folder / "result.json")
    call.finish(result, [*summarize(result), "play with it: foveate serve"], {"report": render(folder)})
