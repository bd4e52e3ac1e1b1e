"""`foveate index`: embeds the images and regions of a collection, so that they can be searched."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import Call, common, dry_run_option, model_first, path_option, workers_option


@click.command("index", cls=FieldsCommand, short_help="Make a collection searchable.")
@model_first("target")
@path_option("--out", "The index folder; TARGET-index by default.")
@fields(
    "foveate.search.settings:IndexSettings",
    "regions",
    ("region_sources", "--region-source"),
    "precision",
    "ocr",
    "retry",
    "executor",
    "processes",
    repeat=("region_sources",),
    metavars={"region_sources": "NAME"},
)
@dry_run_option("Print what would be embedded and the size of the index; write nothing.")
@workers_option
@common(seed=False)
def command(call: Call, model: str, target: str, out: Path | None, settings: dict[str, Any]) -> None:
    """Embed the images and regions of TARGET with a model into an index folder for `foveate search`.

    --model: small (default), which ships with Foveate and needs no network; or a trained one as it is,
    `open_clip:ARCH/PRETRAINED`, `OWNER/NAME` of the hub or a folder (CLIP, SigLIP), or a model folder of Foveate.
    TARGET: a collection, or any folder of images, which stay where they are. Run the same command to resume. Run later,
    it adds images that are new and drops those that are gone.

    \b
    Example:
      foveate index my-folder
      foveate index my-folder --model open_clip:ViT-B-32/laion2b_s34b_b79k
      foveate index my-images --model runs/study-tour/cloc-seed0/model --out my-index
    """
    from foveate.core.hub import DEFAULT_ENCODER
    from foveate.search.index import build_index
    from foveate.search.results import IndexResult

    # Beside the images, not among them: an index can be deleted and made again, and a folder may be read-only.
    images = Path(target)
    out = out or images.parent / f"{images.resolve().name}-index"
    index, plan = build_index(
        model, images, out, device=call.device, workers=call.workers or 2, dry_run=call.dry_run, **settings
    )
    result = IndexResult(
        model=model,
        collection=str(target),
        regions=index.regions,
        region_sources=list(index.region_sources),
        precision=index.precision,
        dry_run=call.dry_run,
        embedded=len(plan.todo),
        crops=plan.crops,
        dropped=plan.dropped,
        megabytes_new=round(plan.new_bytes / 1e6, 2),
        counts=index.counts,
        folder=None if plan.folder is None else asdict(plan.folder),
        floor=None if index.floor is None else asdict(index.floor),
    ).to_json()
    lines = [] if plan.folder is None else [f"{target}: {plan.folder.format_line()}"]
    if call.dry_run:
        lines += [plan.format_line(), *filter(None, [plan.price_crops()]), "dry run: nothing was written"]
        call.finish(result, lines)
        return
    counts = index.counts
    lines.append(f"{counts['images']:,} images and {counts['regions']:,} regions can be searched")
    if index.source == DEFAULT_ENCODER:
        lines.append("a text is called not found below what it scores by chance, whatever the images show")
    elif index.floor is not None:
        lines.append(
            f"texts that score below {index.floor.z['both']:.2f} are called not found: so are "
            f"{1 - index.floor.letters_above:.0%} of random letters and {index.floor.names_below:.0%} of random names"
        )
    paths = {"index": out}
    if plan.folder is not None and plan.folder.unreadable:
        lines += [f"left out: {line}" for line in plan.folder.left_out]
        paths["left out"] = out / "collection" / "quarantine.parquet"
    if counts["unreadable"]:
        lines.append(f"{counts['unreadable']:,} images could not be embedded: see quarantine")
        paths["quarantine"] = out / "quarantine.parquet"
    if index.crops:
        lines += _training_lines(model, images, num_images=counts["images"], is_folder=plan.folder is not None)
    call.finish(result, lines, paths)


def _training_lines(model: str, target: Path, *, num_images: int, is_folder: bool) -> list[str]:
    """Name the commands that train a CLOC, which embeds boxes in the image's own pass, from a model without places."""
    collection = target
    lines = ["this model never learned places: a box costs a pass of the encoder. These commands train a CLOC from it:"]
    if is_folder:
        collection = Path(f"{target.resolve().name}-collection")
        lines.append(f"  foveate collect {shlex.quote(str(target))} --out {shlex.quote(str(collection))} --reference")
    name = shlex.quote(str(collection))
    start = shlex.quote(f"initial={model if Path(model).exists() else model.partition('@')[0]}")
    # The recipe's own numbers are those of a cluster: 100,000 steps of 32,768 images. A batch of more images than the
    # training split would have some of them twice.
    batch = min(64, max(1, num_images // 2))
    steps = f"training.steps=2000 training.batch_size={batch} training.warmup_steps=100"
    captions = ' "data.captions={alt: 1.0}"' if is_folder else ""
    return [
        *lines,
        f"  foveate regions {name}",
        f"  foveate pretrain cloc-from-clip {start} --collection {name} {steps}{captions}",
    ]
