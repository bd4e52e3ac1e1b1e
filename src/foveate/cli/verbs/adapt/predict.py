"""`foveate adapt predict`: classify images with a tuned model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import common, finish, path_option
from foveate.cli.verbs.adapt.options import SETTINGS, moved_option

if TYPE_CHECKING:
    from foveate.adapt.results import PredictResult

_MAX_LISTED = 10  # classes and unreadable images that are printed


@click.command("predict", cls=FieldsCommand, short_help="Classify images with a tuned model.")
@click.argument("tuned", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@path_option("--to", "CSV file of the predictions, one row per image; replaced if it exists.", required=True)
@fields(f"{SETTINGS}:PredictSettings", "gamma", "calibration", metavars={"calibration": "FOLDER"})
@moved_option
@common(seed=False)
def command(
    tuned: Path,
    images: tuple[Path, ...],
    to: Path,
    settings: dict[str, Any],
    backbone: str | None,
    as_json: bool,
    device: str | None,
) -> None:
    """Classify IMAGES (files, folders, collections) with RUN and write their classes and probabilities.

    RUN is a run folder of `adapt train`, an adapter folder, or a classifier folder that `adapt merge` or `calibrate`
    wrote. With a calibration the answers are written without and with it. Images that cannot be read have a reason
    instead of a class.

    \b
    Example:
      foveate adapt predict runs/adapt-lora photos --to answers.csv
      foveate adapt predict runs/adapt-full a.jpg b.jpg --calibration runs/calibrate --to answers.csv --json
    """
    from foveate.adapt.predictor import open_adapter, predict_files
    from foveate.adapt.settings import PredictSettings
    from foveate.core.recipes import validate

    checked = validate(PredictSettings, settings, where="foveate adapt predict")
    predictor = open_adapter(tuned, device=device, backbone=backbone, **checked.model_dump())
    result = predict_files(predictor, images, to)
    finish(result.to_json(), _format_predictions(result), {"answers": to}, as_json=as_json)


def _format_predictions(result: PredictResult) -> list[str]:
    counts = sorted(result.counts.items(), key=lambda pair: -pair[1])
    common_classes = [f"{name} {count}" for name, count in counts if count][:_MAX_LISTED]
    more = sum(count > 0 for _, count in counts) - len(common_classes)
    lines = [f"{result.images} images: {', '.join(common_classes)}" + (f" and {more} more classes" if more else "")]
    if result.gamma is not None:
        lines.append(f"gamma {result.gamma:+.4f} changes the class of {result.changed} images")
    if result.ignored_files:
        lines.append(f"{result.ignored_files} files in the folders are no images and were ignored")
    if result.unreadable:
        lines.append(f"{len(result.unreadable)} images cannot be read; they have a reason and no class:")
        lines += [f"  {name}: {reason}" for name, reason in list(result.unreadable.items())[:_MAX_LISTED]]
    if len(result.unreadable) > _MAX_LISTED:
        lines.append(f"  and {len(result.unreadable) - _MAX_LISTED} more, in column error of the file")
    return lines
