"""`foveate tour`: the main job on built-in images, from nothing to a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import Call, common, run_option

_RUN = Path("runs/tour")


@click.command("tour", cls=FieldsCommand, short_help="Show everything on built-in images, in minutes.")
@run_option(str(_RUN))
@fields("foveate_labs.studies.settings:TourSettings", "full", "seeds", "image_size", "scenes", "test_scenes", "steps")
@common()
def command(call: Call, settings: dict[str, Any]) -> None:
    """Ask the shipped model, build a collection of real and generated images, train CLIP and CLOC on it, and ask both.

    Real images and scenes, seen and unseen concepts are reported apart. Ends with the path of one HTML page, which
    opens within a minute with what the shipped model answers. Nothing is downloaded. Run the same
    command to resume.

    \b
    Example:
      foveate tour
      foveate tour --seeds 3 --out runs/tour-3-seeds
    """
    from foveate.core.files import read_json
    from foveate.core.progress import say
    from foveate.report import render
    from foveate_labs.pages.tour import summarize
    from foveate_labs.studies.settings import TourSettings
    from foveate_labs.tour.run import tour

    folder = tour(
        call.run or _RUN,
        call.check(TourSettings, settings),
        seed=call.seed or 0,
        device=call.device,
        command=call.command,
        on_first_answers=lambda path: say(f"the shipped model's answers are on {render(path)}; the rest follows"),
    )
    result = read_json(folder / "result.json")
    serve = f"play with it: foveate serve {folder / f'cloc-seed{call.seed or 0}' / 'model'} mini"
    call.finish(result, [*summarize(result), serve], {"report": render(folder)})
