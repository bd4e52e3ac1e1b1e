"""`foveate regions`: region labels for every image, from its captions and a detector (VESL)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import common, finish, workers_option


@click.command("regions", cls=FieldsCommand, short_help="Label regions: captions, phrases, boxes (VESL).")
@click.argument("collection", type=click.Path(path_type=Path))
@click.option(
    "--detector",
    default="nanodet",
    metavar="NAME",
    help="nanodet (default; photographs), owlv2, cloc, or annotations (an oracle).",
)
@click.option("--model", metavar="MODEL", help="The detector's model: a folder, or for owlv2 OWNER/NAME on the hub.")
@click.option("--set", "options", multiple=True, metavar="NAME=VALUE", help="A further option of the detector.")
@fields(
    "foveate.caption.vesl.work:RegionLabelSettings",
    ("phrases.tagger", "--phrases"),
    "phrases.chunker",
    "phrases.recipe",
    "phrases.tagger_data",
    "captions",
    "prefer",
    "shuffle_phrases",
)
@click.option("--split", metavar="NAME", help="Only the images of this split.")
@click.option("--limit", type=click.IntRange(1), help="Only the first so many images.")
@click.option("--batch", type=click.IntRange(1, 4096), default=16, show_default=True, help="Images of one pass.")
@click.option("--samples", type=click.IntRange(0, 500), default=24, show_default=True, help="Images on the page.")
@click.option("--run", type=click.Path(path_type=Path), help="Run folder; runs/regions by default.")
@click.option("--dry-run", is_flag=True, help="Only say what would be asked; nothing is detected or written.")
@workers_option
@common()
def command(
    collection: Path,
    settings: dict[str, Any],
    detector: str,
    model: str | None,
    options: tuple[str, ...],
    split: str | None,
    limit: int | None,
    batch: int,
    samples: int,
    run: Path | None,
    dry_run: bool,
    workers: int | None,
    as_json: bool,
    seed: int | None,
    device: str | None,
) -> None:
    """Labels regions of the images of COLLECTION: noun phrases of their captions, and boxes that a detector finds.

    Rows are added to the table `regions`, with the source vesl:DETECTOR; nothing is overwritten. Stopped and repeated,
    it goes on; repeated after that, it does nothing.

    \b
    Example:
      foveate regions my-images --model runs/tour/cloc-seed0/model
      foveate regions my-images --detector owlv2 --model google/owlv2-large-patch14-ensemble --recipe paper
    """
    from foveate.caption.vesl.detection import find_detector
    from foveate.caption.vesl.gallery import build_gallery
    from foveate.caption.vesl.run import estimate_labeling, label_regions
    from foveate.caption.vesl.work import RegionLabelSettings
    from foveate.core.recipes import parse_overrides, validate
    from foveate.core.runs import RunFolder
    from foveate.report import render

    resolved = validate(RegionLabelSettings, settings, where="foveate regions")
    plugin = find_detector(detector)
    detector_options = parse_overrides(options) | ({} if model is None else {"model": model})
    detector_settings = validate(plugin.settings, detector_options, where=f"detector '{detector}' (--model, --set)")
    run_options: dict[str, Any] = {
        "detector": detector,
        "detector_settings": detector_settings,
        "split": split,
        "limit": limit,
        "device": device,
        "seed": seed or 0,
    }
    if dry_run:
        planned = estimate_labeling(collection, resolved, **run_options)
        finish(planned, _plan_lines(planned), {}, as_json=as_json)
        return
    made_by = ["foveate", *sys.argv[1:]]
    folder = RunFolder.create(run or Path("runs/regions"), command=made_by)
    labeling = label_regions(collection, resolved, batch=batch, workers=workers or 2, **run_options)
    gallery = build_gallery(
        collection,
        resolved,
        labeling.result.recipe_hash,
        labeling.rows,
        folder.path,
        count=samples,
        seed=seed or 0,
    )
    result = labeling.result.model_copy(update={"command": made_by, **gallery}).to_json()
    folder.write_result(result)
    finish(result, _lines(result), {"report": render(folder.path)}, as_json=as_json)
    if labeling.result.stopped:
        raise KeyboardInterrupt


def _plan_lines(planned: dict[str, Any]) -> list[str]:
    oracle = " (an oracle: boxes that are there already)" if planned["oracle"] else ""
    lines = [
        f"{planned['pending']:,} of {planned['images']:,} images left to label by {planned['detector']}{oracle}",
        f"of the first {planned['examined']:,}: {planned['with_phrases']:,} have phrases, "
        f"{planned['phrases_per_image']} each; captions: "
        + ", ".join(f"{kind} {count:,}" for kind, count in planned["captions"].items()),
    ]
    lines += [f"{example['text']!r}: {', '.join(example['phrases']) or 'no phrase'}" for example in planned["examples"]]
    return [*lines, "dry run: nothing was detected or written"]


def _lines(result: dict[str, Any]) -> list[str]:
    counts = ", ".join(f"{name} {number:,}" for name, number in result["status"].items() if number)
    oracle = " (an oracle: boxes that were there already)" if result["oracle"] else ""
    lines = [
        f"{result['regions']:,} regions by {result['detector']}{oracle}, source {result['source']}, "
        f"recipe {result['recipe_hash']}",
        f"images: {counts or 'none'}",
    ]
    if result["done_before"]:
        lines.append(f"{result['done_before']:,} images were labeled by this recipe before")
    if result["stopped"]:
        lines.append("stopped; run the same command to resume")
    return lines
