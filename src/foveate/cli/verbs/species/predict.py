"""`foveate species predict`: predict species on cards, a survey or a collection."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import common, finish, path_option, workers_option
from foveate.cli.verbs.species.options import (
    MODEL_ARGUMENT,
    SETTINGS,
    check_stages,
    decide_and_render,
    describe_detector,
    describe_result,
    page_options,
    stage_options,
)


@click.command("predict", cls=FieldsCommand, short_help="Predict species on cards, a survey or a collection.")
@MODEL_ARGUMENT
@click.argument("source", type=click.Path(path_type=Path))
@path_option("--out", "Results folder; new, or one of the same model and source.", required=True)
@fields(f"{SETTINGS}:PredictSettings", "deployments", "results", "detect", "features", "split", "batch")
@stage_options
@page_options
@workers_option
@common(seed=False)
def command(
    model: Path,
    source: Path,
    out: Path,
    settings: dict[str, Any],
    stages: dict[str, Any],
    decision: dict[str, Any],
    page: dict[str, Any],
    workers: int | None,
    as_json: bool,
    device: str | None,
) -> None:
    """Predict the species on the images of SOURCE with MODEL, decide about its events, and write a results folder.

    SOURCE is a folder of cards (a folder per camera, and deployments.csv), a collection, or a survey that `foveate
    collect` reads. Images are looked at once: `foveate species decide` decides anew in seconds. The same command
    resumes, and tries images again that could not be reached. The model sees the images alone; a prior of place, hour
    or season is a stage of its own.

    \b
    Example:
      foveate species predict runs/species/model cards-2 --out results
      foveate species predict runs/species/model cards-2 --list my-species.csv --place-prior --out results
    """
    from foveate.core.progress import say
    from foveate.core.recipes import validate
    from foveate.species.folder import open_species
    from foveate.species.predict import predict as run_predict
    from foveate.species.predictions import Predictions
    from foveate.species.settings import PredictSettings

    checked = validate(PredictSettings, settings, where="foveate species predict")
    opened = open_species(model)
    check_stages(stages, opened)
    counts = run_predict(opened, source, out, checked, device=device, workers=workers)
    if counts.stopped:
        lines = [f"stopped after {counts.computed:,} images; run the same command to resume"]
        finish(asdict(counts), lines, {"results": out}, as_json=as_json)
        # Ends with status 130, as Ctrl-C does anywhere else.
        raise KeyboardInterrupt
    if counts.view == "crop" and not counts.cropped and not counts.judged:
        say(
            "the model was trained on crops of animals, and no image has a box that is sure enough: whole frames were "
            "recognized; give --results with MegaDetector's file"
        )
    result, report = decide_and_render(Predictions.open(out), stages, decision, page)
    lines = [f"{counts.images:,} images, {counts.computed:,} of them now; {counts.failed:,} cannot be read"]
    lines += [f"{counts.boxed:,} got boxes from NanoDet-g"] if counts.boxed else []
    lines += [describe_detector(counts.judged, stages)] if counts.judged else []
    lines += [f"{counts.cropped:,} were cropped to a box"] if counts.view == "crop" else []
    lines += describe_result(result)
    finish({**asdict(counts), "counts": result.counts}, lines, {"results": out, "report": report}, as_json=as_json)
    # Results and page are written; the exit status still tells a script that there is more to do.
    if (failure := counts.find_failure()) is not None:
        raise failure
