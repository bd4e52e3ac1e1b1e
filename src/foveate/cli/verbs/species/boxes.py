"""`foveate species boxes`: propose boxes of animals offline, where none were imported."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import common, finish, workers_option
from foveate.cli.verbs.species.options import SETTINGS


@click.command("boxes", cls=FieldsCommand, short_help="Propose boxes offline, where none were imported.")
@click.argument("collection", type=click.Path(path_type=Path))
@fields(f"{SETTINGS}:BoxSettings", "threshold", "max_boxes", "every_image")
@workers_option
@common(seed=False)
def command(collection: Path, settings: dict[str, Any], workers: int | None, as_json: bool, device: str | None) -> None:
    """Propose boxes of animals on the images of COLLECTION that have none, with a small detector that comes along.

    It was trained on everyday objects and is no MegaDetector; its class names are not used. The same command
    resumes, and tries images again that could not be reached.

    \b
    Example:
      foveate species boxes survey
      foveate species boxes survey --threshold 0.3 --every-image
    """
    from foveate.core.progress import say
    from foveate.core.recipes import validate
    from foveate.species.boxes import NOTICE, add_boxes
    from foveate.species.settings import BoxSettings

    checked = validate(BoxSettings, settings, where="foveate species boxes")
    say(NOTICE)
    result = add_boxes(collection, checked, device=device, workers=workers)
    counts = ", ".join(f"{name} {number:,}" for name, number in sorted(result.status.items())) or "none"
    lines = [f"{result.boxes:,} boxes by NanoDet-g; images: {counts}"]
    if result.skipped:
        lines.append(f"{result.skipped:,} images have boxes of another source and were left as they are")
    if result.unreachable:
        lines.append(f"{result.unreachable:,} images could not be reached; the same command tries them again")
    if result.stopped:
        lines.append("stopped; run the same command to resume")
    finish(asdict(result), lines, {"collection": collection}, as_json=as_json)
    if result.stopped:
        raise KeyboardInterrupt
    # Boxes that were found are written; the exit status still tells a script that there is more to do.
    if (failure := result.find_failure()) is not None:
        raise failure
