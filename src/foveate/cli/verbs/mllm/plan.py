"""`foveate mllm plan`: what images cost, before a pixel is read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import common, finish, run_option

if TYPE_CHECKING:
    from foveate.mllm.plan import PlanResult

_TILING = (
    "rule",
    "tile",
    "min_tiles",
    "max_tiles",
    "upscale",
    "grids",
    "longest_side",
    "fit",
    "padding",
    "overview",
    "overview_fit",
    "single_overview",
)


@click.command("plan", cls=FieldsCommand, short_help="What images cost: grids, views, tokens, megapixels.")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@fields(
    "foveate.mllm.plan:PlanSettings",
    "preset",
    *(f"tiling.{name}" for name in _TILING),
    "indicator",
    "tokens_per_view",
    "max_split_images",
)
@click.option("--recipe", metavar="NAME|FILE", help="Recipe whose `model.assembly` gives the options.")
@click.option("--page", is_flag=True, help="Also write a page that draws the tiles and their order.")
@run_option("runs/mllm-plan", "Folder for the page")
@common(seed=False, device=False)
def command(
    images: tuple[Path, ...],
    settings: dict[str, Any],
    recipe: str | None,
    page: bool,
    run: Path | None,
    as_json: bool,
) -> None:
    """Print the grid, views, visual tokens and megapixels of IMAGES as one sample, read from their headers alone.

    \b
    Example:
      foveate mllm plan scan.png
      foveate mllm plan scan.png --min-tiles 1 --max-tiles 16 --page
      foveate mllm plan scan.png --preset llava-next
    """
    from foveate.mllm.plan import plan_images, resolve_options

    if run is not None and not page:
        raise click.UsageError("--run has no effect without --page")
    preset, options = resolve_options(settings, recipe=recipe)
    result = plan_images(images, options, preset=preset)
    paths: dict[str, Path] = {}
    # Only the page decodes pixels: for the numbers, the headers are enough, however large the images are.
    if page:
        from foveate.core.runs import RunFolder
        from foveate.records.images import encode_input, save_thumbnail
        from foveate.report import render

        folder = RunFolder.create(run or Path("runs/mllm-plan"))
        planned = []
        for number, image in enumerate(result.images):
            name = f"images/{number:03d}.webp"
            save_thumbnail(encode_input(image.file), folder.path / name)
            planned.append(image.model_copy(update={"image": name}))
        result = result.model_copy(update={"images": planned, "command": ["foveate", *sys.argv[1:]]})
        folder.write_result(result.to_json())
        paths = {"run": folder.path, "report": render(folder.path)}
    finish(result.to_json(), _format_plan(result), paths, as_json=as_json)


def _format_plan(result: PlanResult) -> list[str]:
    lines = []
    for image in result.images:
        rows, columns = image.grid
        lines.append(
            f"{image.file}: {image.size[0]} x {image.size[1]} px, {rows} x {columns} tiles of {image.tile}, "
            f"{len(image.views)} views, {image.tokens:,} tokens, {image.megapixels:.2f} MP, scale {image.scale:.2f}"
            + (f" ({image.note})" if image.note else "")
        )
    if len(result.images) > 1:
        lines.append(f"all: {result.num_views} views, {result.num_tokens:,} tokens, {result.megapixels:.2f} MP")
    if not result.split:
        limit = result.options["max_split_images"]
        lines.append(f"not split into tiles: {len(result.images)} images, above --max-split-images {limit}")
    return lines
