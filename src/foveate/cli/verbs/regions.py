"""`foveate regions`: region labels for every image, from its captions and a detector (VESL)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import Call, common, dry_run_option, run_option, workers_option


@click.command("regions", cls=FieldsCommand, short_help="Label regions with phrases of captions (VESL).")
@click.argument("collection", type=click.Path(path_type=Path))
@fields(
    "foveate.caption.settings:RegionRunSettings",
    "detector",
    "model",
    ("options", "--set"),
    "split",
    "limit",
    "batch",
    "samples",
    "executor",
    "processes",
    into="selected",
    repeat=("options",),
    metavars={"detector": "NAME", "model": "MODEL", "options": "NAME=VALUE"},
)
@fields(
    "foveate.caption.settings:RegionLabelSettings",
    ("phrases.tagger", "--phrases"),
    "phrases.chunker",
    "phrases.recipe",
    "phrases.tagger_data",
    "captions",
    "prefer",
    "shuffle_phrases",
)
@run_option("runs/regions")
@dry_run_option("Print the phrases that would be located; detect and write nothing.")
@workers_option
@common()
def command(call: Call, collection: Path, selected: dict[str, Any], settings: dict[str, Any]) -> None:
    """Label regions of the images of COLLECTION: noun phrases of their captions, and boxes that a detector finds.

    Rows are added to the table `regions`, with the source vesl:DETECTOR; nothing is overwritten. Run the same
    command to resume; after the end it only tries images again that failed.

    \b
    Example:
      foveate regions my-images --captions alt
      foveate regions my-images --model runs/study-tour/cloc-seed0/model
      foveate regions my-images --detector owlv2 --model google/owlv2-large-patch14-ensemble --recipe paper
    """
    from foveate.caption.settings import RegionLabelSettings, RegionRunSettings
    from foveate.caption.summary import build_gallery
    from foveate.caption.vesl.detection import choose_detector, find_detector
    from foveate.caption.vesl.run import estimate_labeling, label_regions
    from foveate.core.progress import say
    from foveate.core.recipes import parse_overrides, validate
    from foveate.core.runs import RunFolder
    from foveate.records.labeling import end_command
    from foveate.report.render import render_and_tell

    resolved = call.check(RegionLabelSettings, settings)
    options = call.check(RegionRunSettings, selected)
    # Only the detector knows its own fields; --model is one of them that nearly all have.
    content = parse_overrides(options.options) | ({} if options.model is None else {"model": options.model})
    detector = options.detector or choose_detector(content.get("model"))
    where = f"detector '{detector}' (--model, --set)"
    kind = find_detector(detector)
    detector_settings = validate(kind.settings, content, where=where)
    if kind.without_model and content.get("model") is None:
        say(f"no --model: {kind.without_model}")
    run_options: dict[str, Any] = {
        "detector": detector,
        "detector_settings": detector_settings,
        "split": options.split,
        "limit": options.limit,
        "device": call.device,
        "seed": call.seed or 0,
    }
    if call.dry_run:
        planned = estimate_labeling(collection, resolved, **run_options)
        call.finish(planned, _plan_lines(planned))
        return
    made_by = call.command
    # Detector and options are checked by now, so that a mistake leaves no folder.
    folder = RunFolder.create(call.run or Path("runs/regions"), command=made_by)
    labeling = label_regions(
        collection, resolved, batch=options.batch, workers=call.workers or 2, work=options, **run_options
    )
    gallery = build_gallery(
        collection,
        resolved,
        labeling.result.recipe_hash,
        labeling.rows,
        folder.path,
        count=options.samples,
        seed=call.seed or 0,
    )
    result = labeling.result.model_copy(update={"command": made_by, **gallery}).to_json()
    folder.write_result(result)
    report, lines = render_and_tell(folder.path)
    call.finish(result, lines, {"report": report})
    end_command(labeling.failure, stopped=labeling.result.stopped)


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
