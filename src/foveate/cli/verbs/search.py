"""`foveate search`: images and regions of an index, by a text, an image, a box in an image."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from foveate.cli.options import common, finish

if TYPE_CHECKING:
    from foveate.pretrain.searching.search import Hit
    from foveate.records.boxes import Box, PixelBox


@click.command("search", short_help="Find images and regions in an index.")
@click.argument("index", type=click.Path(path_type=Path))
@click.argument("text", required=False)
@click.option("--image", type=click.Path(path_type=Path), help="Search with this image.")
@click.option("--box", metavar="X1,Y1,X2,Y2", help="Search with a box of --image: corners in [0, 1].")
@click.option("--pixels", is_flag=True, help="The corners of --box are pixels.")
@click.option("--negative", metavar="TEXT", help="A text that the results should be unlike.")
@click.option(
    "--weight",
    "weights",
    multiple=True,
    metavar="PART=NUMBER",
    help="Weight of text, image, box or negative in the sum; 1 by default; may be repeated.",
)
@click.option("--count", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many answers.")
@click.option(
    "--kind",
    type=click.Choice(["images", "regions", "both"]),
    default="both",
    show_default=True,
    help="What the answers may be.",
)
@click.option("--per-image", type=click.IntRange(1), default=1, show_default=True, help="Most answers from one image.")
@click.option(
    "--backend",
    type=click.Choice(["exact", "faiss"]),
    default="exact",
    show_default=True,
    help="exact, or faiss (extra): approximate for large indexes.",
)
@click.option("--model", type=click.Path(path_type=Path), help="Where the model is; where it was by default.")
@click.option("--collection", type=click.Path(path_type=Path), help="Where the collection is; where it was by default.")
@click.option("--run", "run", type=click.Path(path_type=Path), help="Folder for the page; runs/search by default.")
@common(seed=False)
def command(
    index: Path,
    text: str | None,
    image: Path | None,
    box: str | None,
    pixels: bool,
    negative: str | None,
    weights: tuple[str, ...],
    count: int,
    kind: str,
    per_image: int,
    backend: str,
    model: Path | None,
    collection: Path | None,
    run: Path | None,
    as_json: bool,
    device: str | None,
) -> None:
    """Finds what in INDEX is nearest to TEXT, an image, a box in an image, or their sum; prints and shows it.

    \b
    Example:
      foveate search my-index "a red boat"
      foveate search my-index --image holiday.jpg --box 0.1,0.2,0.5,0.6 --negative "a person"
    """
    from foveate.core.errors import UserError
    from foveate.core.runs import RunFolder
    from foveate.pretrain.locate import read_image
    from foveate.pretrain.searching.query import Query
    from foveate.pretrain.searching.search import Index, search
    from foveate.pretrain.searching.search_result import write_search
    from foveate.report import render

    if pixels and box is None:
        raise UserError("--pixels says what the corners of --box are: give --box too")
    query = Query(
        text=text,
        image=None if image is None else read_image(image),
        box=None if box is None else _box(box, pixels=pixels),
        negative=negative,
        weights=dict(_weight(weight) for weight in weights),
    )
    opened = Index.open(index, collection=collection)
    encoder = opened.open_model(model, device=device)
    hits, query_box = search(opened, query, encoder, count=count, kind=kind, per_image=per_image, backend=backend)
    folder = RunFolder.create(run or Path("runs/search"), command=["foveate", *sys.argv[1:]])
    result = write_search(folder, opened, query, hits, box=query_box, query_file=image, backend=backend)
    lines = [_line(rank, hit) for rank, hit in enumerate(hits, start=1)]
    finish(result.to_json(), lines, {"report": render(folder.path)}, as_json=as_json)


def _box(text: str, *, pixels: bool) -> Box | PixelBox:
    """Corners written as four numbers with commas."""
    from foveate.core.errors import UserError
    from foveate.records.boxes import Box, PixelBox

    try:
        x1, y1, x2, y2 = (float(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"--box '{text}': allowed are four numbers x1,y1,x2,y2, as in 0.1,0.2,0.5,0.6") from error
    if pixels:
        return PixelBox(x1, y1, x2, y2)
    if max(x1, y1, x2, y2) > 1:
        raise UserError(f"--box {text}: corners must lie in [0, 1] of the image; give --pixels where they are pixels")
    return Box(x1, y1, x2, y2)


def _weight(text: str) -> tuple[str, float]:
    from foveate.core.errors import UserError

    name, _, value = text.partition("=")
    try:
        return name.strip(), float(value)
    except ValueError as error:
        raise UserError(f"--weight '{text}': allowed is PART=NUMBER, as in text=0.5") from error


def _line(rank: int, hit: Hit) -> str:
    """Format one hit: rank, cosine, key, box and text."""
    box = "" if hit.box is None else "  box " + " ".join(f"{value:.3f}" for value in hit.box.to_array())
    text = hit.phrase or hit.caption
    return f"{rank:>3}  {hit.score:+.3f}  {hit.key}{box}" + (f"  {text[:60]}" if text else "")
