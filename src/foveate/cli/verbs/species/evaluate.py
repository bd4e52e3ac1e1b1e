"""`foveate species evaluate`: measure a model on labeled images."""

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
    page_options,
    stage_options,
)


@click.command("evaluate", cls=FieldsCommand, short_help="Measure a model on labeled images.")
@MODEL_ARGUMENT
@click.argument("collection", type=click.Path(path_type=Path))
@click.option("--split", default="test", show_default=True, help="Images of this split; all = every labeled image.")
@click.option("--label-field", default=None, metavar="NAME", help="Label field of a collection that is no survey.")
@path_option("--out", "Results folder; runs/species-evaluate by default.")
@fields(f"{SETTINGS}:PredictSettings", "detect", "features", "batch")
@stage_options
@page_options
@workers_option
@common(seed=False)
def command(
    model: Path,
    collection: Path,
    split: str,
    label_field: str | None,
    out: Path | None,
    settings: dict[str, Any],
    stages: dict[str, Any],
    decision: dict[str, Any],
    page: dict[str, Any],
    workers: int | None,
    as_json: bool,
    device: str | None,
) -> None:
    """Predict the images of COLLECTION and compare with its labels of people: classes, ranks, coverage, cameras, hours.

    \b
    Example:
      foveate species evaluate runs/species/model survey --split test
    """
    from foveate.core.recipes import validate
    from foveate.species.evaluate import read_truth
    from foveate.species.folder import open_species
    from foveate.species.predict import predict as run_predict
    from foveate.species.predictions import Predictions
    from foveate.species.settings import PredictSettings
    from foveate.species.summary import name_stage

    where = "foveate species evaluate"
    checked = validate(PredictSettings, {**settings, "split": None if split == "all" else split}, where=where)
    opened, target = open_species(model), out or Path("runs/species-evaluate")
    check_stages(stages, opened)
    counts = run_predict(opened, collection, target, checked, device=device, workers=workers)
    if counts.stopped:
        finish(asdict(counts), ["stopped; run the same command to resume"], {"results": target}, as_json=as_json)
        # Ends with status 130, as Ctrl-C does anywhere else.
        raise KeyboardInterrupt
    predictions = Predictions.open(target)
    truth = read_truth(predictions, label_field=label_field)
    train_counts = dict(zip(opened.classes.labels, opened.info.images_K.tolist(), strict=True))
    result, report = decide_and_render(predictions, stages, decision, page, truth=truth, train_counts=train_counts)
    assert result.evaluation is not None
    lines = [f"{result.labels:,} labeled images of {len(result.per_camera)} cameras"]
    for row in result.evaluation.table:
        value = row.values["model"]
        if value is not None:
            span = "" if value.low is None or value.high is None else f" ({value.low:.3f} to {value.high:.3f})"
            lines.append(f"  {value.value:.3f}{span}  {row.question}, {row.data}")
    if result.stages:
        unit = "events" if result.events else "images"
        total = max(stage.total for stage in result.stages)
        lines.append(f"of {total:,} {unit} with one label (right: the label, or a group that it is in):")
    for stage in result.stages:
        named, right = stage.named / max(1, stage.total), stage.right / max(1, stage.named)
        lines.append(f"  after {name_stage(stage.stage)}: {named:.3f} named, {right:.3f} of those right")
    if result.unknown_labels:
        lines.append(f"left out: {sum(result.unknown_labels.values()):,} images of classes that the model lacks")
    finish(result.to_json(), lines, {"results": target, "report": report}, as_json=as_json)
