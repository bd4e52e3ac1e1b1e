"""`foveate index`: embeds the images and regions of a collection, so that they can be searched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import common, dry_run_option, finish, path_option, workers_option


@click.command("index", cls=FieldsCommand, short_help="Make a collection searchable.")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("collection", type=click.Path(path_type=Path))
@path_option("--out", "The index folder; COLLECTION-index by default.")
@fields(
    "foveate.pretrain.searching.settings:IndexSettings",
    "regions",
    ("region_sources", "--region-source"),
    "precision",
    "retry",
    repeat=("region_sources",),
    metavars={"region_sources": "NAME"},
)
@dry_run_option("Print what would be embedded and the size of the index; write nothing.")
@workers_option
@common(seed=False)
def command(
    model: Path,
    collection: Path,
    out: Path | None,
    settings: dict[str, Any],
    dry_run: bool,
    workers: int | None,
    as_json: bool,
    device: str | None,
) -> None:
    """Embed the images and regions of COLLECTION with MODEL into an index folder for `foveate search`.

    Stopped and repeated, it goes on. Repeated later, it adds images that are new and drops those that were removed.

    \b
    Example:
      foveate index runs/tour/cloc-seed0/model my-images --out my-index
    """
    from foveate.pretrain.results import IndexResult
    from foveate.pretrain.searching.index import build_index

    # Beside the collection, not in it: an index can be deleted and made again, and a collection may be read-only.
    out = out or collection.parent / f"{collection.resolve().name}-index"
    index, plan = build_index(
        model,
        collection,
        out,
        device=device,
        workers=workers or 2,
        dry_run=dry_run,
        **settings,
    )
    result = IndexResult(
        model=str(model),
        collection=str(collection),
        regions=index.regions,
        region_sources=list(index.region_sources),
        precision=index.precision,
        dry_run=dry_run,
        embedded=len(plan.todo),
        dropped=plan.dropped,
        megabytes_new=round(plan.new_bytes / 1e6, 2),
        counts=index.counts,
    ).to_json()
    if dry_run:
        finish(result, [plan.format_line(), "dry run: nothing was written"], {}, as_json=as_json)
        return
    counts = index.counts
    lines = [f"{counts['images']:,} images and {counts['regions']:,} regions can be searched"]
    paths = {"index": out}
    if counts["unreadable"]:
        lines.append(f"{counts['unreadable']:,} images could not be embedded: see quarantine")
        paths["quarantine"] = out / "quarantine.parquet"
    finish(result, lines, paths, as_json=as_json)
