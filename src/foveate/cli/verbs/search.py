"""`foveate search`: images and regions of an index, by a text, an image, a box in an image."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import common, finish, path_option, run_option

if TYPE_CHECKING:
    from foveate.pretrain.searching.search import Hit
    from foveate.pretrain.searching.settings import SearchSettings
    from foveate.records.boxes import Box, PixelBox


@click.command("search", cls=FieldsCommand, short_help="Find images and regions in an index.")
@click.argument("index", type=click.Path(path_type=Path))
@click.argument("text", required=False)
@fields(
    "foveate.pretrain.searching.settings:SearchSettings",
    "image",
    "box",
    "pixels",
    "negative",
    ("weights", "--weight"),
    "count",
    "kind",
    "per_image",
    "backend",
    repeat=("weights",),
    metavars={"box": "X1,Y1,X2,Y2", "weights": "PART=NUMBER"},
)
@path_option("--model", "Path of the model; by default the path stored in the index.")
@path_option("--collection", "Path of the collection; by default the path stored in the index.")
@run_option("runs/search", "Folder for the page")
@common(seed=False)
def command(
    index: Path,
    text: str | None,
    settings: dict[str, Any],
    model: Path | None,
    collection: Path | None,
    run: Path | None,
    as_json: bool,
    device: str | None,
) -> None:
    """Find what in INDEX is nearest to TEXT, an image, a box in an image, or their sum; print and show it.

    \b
    Example:
      foveate search my-index "a red boat"
      foveate search my-index --image holiday.jpg --box 0.1,0.2,0.5,0.6 --negative "a person"
    """
    from foveate.core.recipes import validate
    from foveate.core.runs import RunFolder
    from foveate.pretrain.locate import read_image
    from foveate.pretrain.searching.query import Query
    from foveate.pretrain.searching.search import Index, search
    from foveate.pretrain.searching.search_result import write_search
    from foveate.pretrain.searching.settings import SearchSettings
    from foveate.report import render

    resolved = validate(SearchSettings, settings, where="foveate search")
    query = Query(
        text=text,
        image=None if resolved.image is None else read_image(resolved.image),
        box=_box(resolved),
        negative=resolved.negative,
        weights=resolved.weights,
    )
    # The query is checked by now: a mistake in it must not wait for the model to load.
    opened = Index.open(index, collection=collection)
    encoder = opened.open_model(model, device=device)
    hits, query_box = search(
        opened,
        query,
        encoder,
        count=resolved.count,
        kind=resolved.kind,
        per_image=resolved.per_image,
        backend=resolved.backend,
    )
    # Created only now: a query that finds nothing leaves no folder, and the last page stays.
    folder = RunFolder.create(run or Path("runs/search"), command=["foveate", *sys.argv[1:]])
    result = write_search(
        folder, opened, query, hits, box=query_box, query_file=resolved.image, backend=resolved.backend
    )
    lines = [_line(rank, hit) for rank, hit in enumerate(hits, start=1)]
    finish(result.to_json(), lines, {"report": render(folder.path)}, as_json=as_json)


def _box(settings: SearchSettings) -> Box | PixelBox | None:
    """Return the box of the query as a type that knows its units."""
    from foveate.records.boxes import Box, PixelBox

    if settings.box is None:
        return None
    return PixelBox(*settings.box) if settings.pixels else Box(*settings.box)


def _line(rank: int, hit: Hit) -> str:
    """Format one hit: rank, cosine, key, box and text."""
    box = "" if hit.box is None else "  box " + " ".join(f"{value:.3f}" for value in hit.box.to_array())
    text = hit.phrase or hit.caption
    return f"{rank:>3}  {hit.score:+.3f}  {hit.key}{box}" + (f"  {text[:60]}" if text else "")
