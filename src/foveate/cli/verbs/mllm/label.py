"""`foveate mllm label`: label a collection with a model's names and boxes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import common, finish


@click.command("label", cls=FieldsCommand, short_help="Label a collection with a model's names and boxes.")
@click.argument("collection", type=click.Path(path_type=Path))
@click.option("--model", required=True, help="Model: mini, a folder of mllm train, or a folder or hub id.")
@fields(
    "foveate.mllm.labeling:LabelSettings",
    ("labels", "--as"),
    "split",
    "limit",
    ("sources", "--region-source"),
    "objects",
    "max_tokens",
    "batch_size",
    repeat=("sources",),
    metavars={"sources": "NAME"},
)
@common(seed=False)
def command(collection: Path, model: str, settings: dict[str, Any], as_json: bool, device: str | None) -> None:
    """Ask MODEL what is where in each image of COLLECTION, and store the answers as pseudo-labels, source mllm:MODEL.

    Ctrl-C stops; the same command resumes; after the end it asks about images alone that
    could not be read.

    \b
    Example:
      foveate mllm label photos --model runs/mllm-ferret-mini/model
      foveate mllm label photos --model mini --as conversations --region-source vesl:nanodet
    """
    from foveate.core.recipes import validate
    from foveate.mllm.labeling import LabelSettings, label_collection
    from foveate.multimodal.opening import hash_source, open_mllm

    checked = validate(LabelSettings, settings, where="foveate mllm label")
    opened = open_mllm(model, device=device)
    counts = label_collection(collection, opened, checked, name=model, sha256=hash_source(model))
    done = counts.done_before + sum(counts.status.values())
    lines = [f"{done}/{counts.images} images, {counts.rows} new {checked.labels}, source {counts.source}"]
    lines += [f"images {name}: {count}" for name, count in counts.status.items()]
    lines += [f"left out: {count} {reason}" for reason, count in counts.left_out.items()]
    lines += ["stopped; run the same command to resume"] * counts.stopped
    finish({"kind": "labels", **counts.model_dump(mode="json")}, lines, {}, as_json=as_json)
    if counts.stopped:
        sys.exit(130)
    # Labels are written; the exit status still tells a script that there is more to do.
    if (failure := counts.find_failure()) is not None:
        raise failure
