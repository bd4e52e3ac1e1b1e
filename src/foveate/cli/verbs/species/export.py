"""`foveate species export`: write decisions in a format of others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import finish, json_option, path_option, quiet_option
from foveate.cli.verbs.species.options import RESULTS_ARGUMENT, SETTINGS


@click.command("export", cls=FieldsCommand, short_help="Write decisions in the format of another program.")
@RESULTS_ARGUMENT
@path_option("--path", "File or folder to write; in RESULTS by default.")
@fields(
    f"{SETTINGS}:ExportSettings",
    ("format", "--to"),
    "coordinate_digits",
    "title",
    "contributor",
    "sampling_design",
    "utc_offset",
    "project",
    repeat=("contributor", "utc_offset"),
    metavars={"coordinate_digits": "1|2|3|recorded|drop"},
)
@json_option
@quiet_option
def command(results: Path, path: Path | None, settings: dict[str, Any], as_json: bool) -> None:
    """Write the decisions of RESULTS as a Camtrap DP package, MegaDetector's JSON, for Wildlife Insights, or as CSV.

    Rows of people are written as they are. Only Camtrap DP has coordinates, rounded as --coordinate-digits says.

    \b
    Example:
      foveate species export results --to megadetector
      foveate species export results --to camtrap-dp --coordinate-digits 2 --contributor "A. Person"
    """
    from foveate.core.recipes import validate
    from foveate.species.export import export_predictions
    from foveate.species.predictions import Predictions
    from foveate.species.settings import ExportSettings

    checked = validate(ExportSettings, settings, where="foveate species export")
    name = {"camtrap-dp": "camtrap-dp", "megadetector": "megadetector.json", "csv": "decisions.csv"}.get(checked.format)
    target = path or results / (name or f"{checked.format}.csv")
    counts, lines = export_predictions(Predictions.open(results), target, checked)
    finish(counts, lines, {checked.format: target}, as_json=as_json)
