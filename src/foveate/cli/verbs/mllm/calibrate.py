"""`foveate mllm calibrate`: measure when a model answers "not found"."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import common, finish, path_option


@click.command("calibrate", cls=FieldsCommand, short_help="Measure when a model answers 'not found'.")
@click.argument("model")
@path_option("--collection", "Collection folder with named regions.", required=True)
@fields("foveate.mllm.suite_settings:CalibrateSettings", "split", "limit")
@common()
def command(
    model: str, collection: Path, settings: dict[str, Any], as_json: bool, seed: int | None, device: str | None
) -> None:
    """Ask MODEL for phrases that images show and for others; store the threshold that separates them.

    Below it, the answer to "Where is the X?" is "not found". A training measures it at its end; this is for folders
    without one, or for other images.

    \b
    Example:
      foveate mllm calibrate runs/mllm-mini/model --collection questions
    """
    from foveate.core.recipes import validate
    from foveate.mllm.calibrate import calibrate as calibrate_model
    from foveate.mllm.suite_settings import CalibrateSettings
    from foveate.records.collection import Collection

    checked = validate(CalibrateSettings, settings, where="foveate mllm calibrate")
    with Collection.open(collection) as opened:
        result = calibrate_model(model, opened, checked, seed=seed or 0, device=device)
    lines = [
        f"not found below a score of {result.min_box_score:.2f}; AUC {result.auc:.3f}",
        f"boxes for {result.hit_rate:.3f} of {result.present} phrases that an image shows, "
        f"{result.false_alarm_rate:.3f} of {result.absent} others",
    ]
    finish({"kind": "box-scores", **result.to_json()}, lines, {"model": Path(model)}, as_json=as_json)
