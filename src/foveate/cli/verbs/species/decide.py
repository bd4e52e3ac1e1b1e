"""`foveate species decide`: decide anew about predicted images, without a look at one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from foveate.cli.fields import FieldsCommand
from foveate.cli.options import finish, json_option, quiet_option
from foveate.cli.verbs.species.options import (
    RESULTS_ARGUMENT,
    decide_and_render,
    describe_result,
    page_options,
    stage_options,
)


@click.command("decide", cls=FieldsCommand, short_help="Decide anew, without a look at an image.")
@RESULTS_ARGUMENT
@stage_options
@page_options
@json_option
@quiet_option
def command(
    results: Path, stages: dict[str, Any], decision: dict[str, Any], page: dict[str, Any], as_json: bool
) -> None:
    """Decide about the images of RESULTS with other stages: another list, threshold, pooling or prior.

    \b
    Example:
      foveate species decide results --list other.csv --threshold 0.8
      foveate species decide results --rules speciesnet
    """
    from foveate.species.predictions import Predictions

    result, report = decide_and_render(Predictions.open(results), stages, decision, page)
    finish(
        {"decisions": result.decisions, "counts": result.counts, "ranks": result.ranks},
        describe_result(result),
        {"results": results, "report": report},
        as_json=as_json,
    )
