"""`foveate species review`: list what a person should look at first; read answers back."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import finish, json_option, path_option, quiet_option
from foveate.cli.verbs.species.options import RESULTS_ARGUMENT, SETTINGS


@click.command("review", cls=FieldsCommand, short_help="List what a person should look at first; read answers back.")
@RESULTS_ARGUMENT
@path_option("--out", "Folder of sheet and table; RESULTS/review by default.")
@fields(f"{SETTINGS}:ReviewSettings", "max_events", "corrections", "column", metavars={"corrections": "FILE|FOLDER"})
@json_option
@quiet_option
def command(results: Path, out: Path | None, settings: dict[str, Any], as_json: bool) -> None:
    """Write a contact sheet and a table of the events of RESULTS that a look would change most, or read answers back.

    Answers come from the column "correction" of that table, from any CSV with a column of files and one of species,
    from Timelapse's CSV, or from the human rows of a Camtrap DP package. They are labels of the next `foveate species
    train`; later answers about the same image replace them. With --corrections RESULTS may be a survey that nothing was
    predicted for.

    \b
    Example:
      foveate species review results --max-events 300
      foveate species review results --corrections results/review/review.csv
      foveate species review survey --corrections TimelapseData.csv
    """
    from foveate.core.errors import UserError
    from foveate.core.recipes import validate
    from foveate.records import layout
    from foveate.report import render
    from foveate.species.corrections import apply_corrections, open_target
    from foveate.species.predictions import Predictions
    from foveate.species.review import write_review
    from foveate.species.settings import ReviewSettings
    from foveate.survey.importers.corrections import read_corrections

    checked = validate(ReviewSettings, settings, where="foveate species review")
    if checked.corrections is not None:
        corrections = read_corrections(checked.corrections, column=checked.column)
        reviewed = open_target(results)
        summary = apply_corrections(reviewed, corrections, checked.corrections)
        paths = {"collection": reviewed.survey.collection.path}
        finish(asdict(summary), summary.lines(), paths, as_json=as_json)
        return
    if (results / layout.DESCRIPTION).is_file():
        raise UserError(
            f"{results} is a collection, no results of foveate species predict; expected --corrections FILE"
        )
    predictions = Predictions.open(results)
    target = out or results / "review"
    result = write_review(predictions, target, max_events=checked.max_events, command=["foveate", *sys.argv[1:]])
    lines = [f"{len(result.events):,} of {result.decisions:,} decisions, those first that a look would change most"]
    paths = {"table": target / result.table, "report": render(target)}
    paths |= {"sheet": target / result.sheet} if result.sheet else {}
    finish({"decisions": result.decisions, "events": len(result.events)}, lines, paths, as_json=as_json)
