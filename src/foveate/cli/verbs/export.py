"""`foveate export`: a model or a collection for other libraries."""

from __future__ import annotations

from pathlib import Path

import click

from foveate.cli.options import common, finish, region_source_option


@click.command("export", short_help="Write a model or a collection for other libraries.")
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "--to",
    "to",
    required=True,
    metavar="TARGET",
    help="A model: open_clip, transformers, onnx, embeddings. A collection: webdataset, coco.",
)
@click.option("--out", type=click.Path(path_type=Path), help="New folder; SOURCE-TARGET by default.")
@click.option("--collection", type=click.Path(path_type=Path), help="Whose images and texts to embed.")
@click.option("--split", default=None, help="Only this split of the collection; all images by default.")
@region_source_option
@click.option(
    "--format",
    "format_name",
    type=click.Choice(["parquet", "npz"]),
    default="parquet",
    show_default=True,
    help="Of embeddings.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be written, or why it cannot be; write nothing.")
@common(seed=False)
def command(
    source: Path,
    to: str,
    out: Path | None,
    collection: Path | None,
    split: str | None,
    region_sources: tuple[str, ...],
    format_name: str,
    dry_run: bool,
    as_json: bool,
    device: str | None,
) -> None:
    """Writes the model folder or the collection SOURCE in a format that others load, into a folder of its own.

    Each export of a model is loaded again with the library it is for, and the differences found are printed and
    written into its README.md. The folder appears whole or not at all.

    \b
    Example:
      foveate export runs/tour/cloc-seed0/model --to onnx
      foveate export runs/tour/cloc-seed0/model --to embeddings --collection runs/tour/collection
      foveate export my-images --to webdataset --out shards
    """
    from foveate.pretrain.export import export

    folder, result, lines = export(
        source,
        to=to,
        out=out,
        collection=collection,
        split=split,
        region_sources=region_sources or None,
        format=format_name,
        device=device,
        dry_run=dry_run,
    )
    finish(result.to_json(), lines, {} if dry_run else {"export": folder}, as_json=as_json)
