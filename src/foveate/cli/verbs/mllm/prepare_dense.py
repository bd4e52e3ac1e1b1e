"""`foveate mllm prepare-dense`: questions about all regions of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import common, finish, path_option


@click.command("prepare-dense", cls=FieldsCommand, short_help="Questions about all regions of images.")
@path_option("--collection", "Collection folder; the questions become conversations in it.", required=True)
@fields(
    "foveate.mllm.dense:DenseSettings",
    "split",
    ("sources", "--region-source"),
    "names",
    "objects",
    "max_detected",
    "box_share",
    repeat=("sources",),
    metavars={"sources": "NAME"},
)
@common(device=False)
def command(collection: Path, settings: dict[str, Any], as_json: bool, seed: int | None) -> None:
    """Ask about all regions of images, for the second stage of ferret-v2-7b: numbered ones by name, or all by boxes.

    Group `dense-regions`. The same command resumes, and adds nothing after the end.

    \b
    Example:
      foveate mllm prepare-dense --collection lvis
      foveate mllm prepare-dense --collection photos --region-source vesl:nanodet
    """
    from foveate.core.recipes import validate
    from foveate.mllm.dense import DenseSettings
    from foveate.mllm.dense import prepare_dense as prepare

    counts = prepare(collection, validate(DenseSettings, settings, where="foveate mllm prepare-dense"), seed=seed or 0)
    lines = [f"{kind}: {n} questions about {counts.objects[kind]} regions" for kind, n in counts.conversations.items()]
    lines += [f"regions of {source}: {count}" for source, count in counts.sources.items()]
    lines += [f"left out: {count} images {reason}" for reason, count in counts.left_out.items()]
    lines.append(f"{counts.added} conversations added, {counts.existing} were there already")
    finish({"kind": "dense-regions", **counts.model_dump(mode="json")}, lines, {}, as_json=as_json)
