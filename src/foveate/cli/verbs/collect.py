"""`foveate collect`: images and their texts into a collection."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import Call, common, path_option, workers_option
from foveate.core.errors import UserError, choose
from foveate.core.files import write_text_atomically
from foveate.core.progress import say

if TYPE_CHECKING:
    from foveate.records.importers.formats import CollectSettings, Format
    from foveate.records.splits import SplitSummary


GONE = "gone.txt"  # in a collection: keys of images whose files are gone


@click.command("collect", cls=FieldsCommand, short_help="Import images and texts into a collection.")
@click.argument("source")
@path_option("--out", "Collection folder.", required=True)
@fields(
    "foveate.records.importers.formats:CollectSettings",
    ("format", "--format", "--as"),
    "name",
    "license",
    "source_name",
    "images",
    "captions",
    "path_column",
    "text_column",
    "boxes_column",
    "image_column",
    "key_column",
    "label_column",
    "part",
    "revision",
    "group_by",
    "reference",
    "first_line",
    "label_from_folder",
    "update",
    "max_pixels",
    "coordinates",
    "resize_min_pixels",
    "resize_max_pixels",
    "data_group",
    "answers",
    "deployments",
    "results",
    "dedupe",
    "split",
    repeat=("label_column",),
    metavars={
        "images": "FOLDER",
        "captions": "FILE",
        "answers": "FILE",
        "deployments": "FILE",
        "results": "FILE",
        "label_from_folder": "FIELD",
        "split": "NAME=FRACTION,...",
        **dict.fromkeys(
            ("format", "path_column", "text_column", "boxes_column", "image_column", "key_column", "label_column"),
            "NAME",
        ),
    },
)
@workers_option
@common(device=False)
def command(call: Call, source: str, out: Path, settings: dict[str, Any]) -> None:
    """Import images and their texts into a collection.

    SOURCE: a folder with .txt or .json files beside the images, WebDataset tars, COCO, LVIS, Visual Genome, a table
    of paths and texts, a data set of Hugging Face, conversations of LLaVA, Ferret, chat messages or Qwen-VL,
    grounded captions of GRIT or Flickr30k Entities, expressions of RefCOCO, questions of VQA, TextVQA, DocVQA,
    InfographicVQA or ChartQA, a survey of camera traps (cards, Camtrap DP, COCO Camera Traps, iWildCam-WILDS), or a
    built-in collection (clipart, emoji, scenes, questions, wordings, referring, image-sets, documents, screens, words,
    traps). What cannot be imported is counted and listed in the collection's quarantine table with its reason.
    Repeated, the command adds only what is new and counts what changed, which --update takes; stopped, it resumes.
    Near-duplicates stay in one split.

    \b
    Example:
      foveate collect my-folder --out my-images
      foveate collect my-folder --out my-images --update
      foveate collect trees --label-from-folder category --out trees-collection
      foveate collect "shards/{00000..00003}.tar" --out my-images
      foveate collect coco/annotations/instances_val2017.json --out coco
      foveate collect pairs.csv --images photos --out my-images --reference
      foveate collect cards --deployments deployments.csv --out survey
      foveate collect camtrap-dp.zip --images cards --out survey
      foveate collect traps.json --deployments cameras.csv --results megadetector.json --out survey
      foveate collect scenes --out scenes
      foveate collect documents --out documents
    """
    from foveate.records import layout
    from foveate.records.annotate import describe_unreachable
    from foveate.records.importers.formats import CollectSettings, FormatOptions, load_builders
    from foveate.records.splits import assign_splits, check_fractions, read_drawn
    from foveate.survey.importers.results import add_results, read_results

    resolved = call.check(CollectSettings, settings)
    # A folder of the user's named "scenes" comes first: a built-in collection can still be named by --format builtin.
    built_in = source in load_builders() and not Path(source).exists()
    if resolved.format == "builtin" or (resolved.format == "auto" and built_in):
        return _build(call, source, out, settings)
    importer = _choose_importer(source, resolved.format, settings)
    # All mistakes are reported before the first image is read: an import may take hours.
    if resolved.split is not None:
        check_fractions(resolved.split)
    # Only what the user gave: a default must neither reach a format that lacks the option nor be refused.
    options = {option: getattr(resolved, option) for option in FormatOptions.model_fields if option in settings}
    _refuse_useless(importer, resolved, options, call.seed)
    # Read before the images: a file that cannot be used must not cost an import of hours.
    detections = None if resolved.results is None else read_results(resolved.results)
    shared: dict[str, Any] = {**options, "max_pixels": resolved.max_pixels}
    if resolved.source_name is not None:
        shared["source_name"] = resolved.source_name
    if importer.videos:
        from foveate.vision.video.stills import read_stills

        shared["frames_of"] = read_stills
    summary = importer.run(source, out, name=resolved.name, license=resolved.license, workers=call.workers, **shared)
    result: dict[str, Any] = {"format": importer.name, **summary.as_dict()}
    lines = [f"format: {importer.name}", *summary.lines()]
    if summary.quarantined:
        lines.append(f"each finding with its reason: {out / layout.QUARANTINE_FILE}, shown by foveate inspect")
    renamed = set(summary.renamed)
    gone = [key for key in summary.gone if key not in renamed]
    if summary.updated and summary.gone:
        # A removal is for good, and a folder may be incomplete for a day: the user decides.
        listed = out / GONE
        write_text_atomically(listed, "".join(f"{key}\n" for key in gone))
        if gone:
            lines.append(
                f"to remove what is gone: foveate remove {shlex.quote(str(out))} --from {shlex.quote(str(listed))}"
            )
    if summary.updated and renamed:
        # Bytes that were removed are not imported again under any name: the next renaming would lose the image.
        lines.append(
            f"images that were renamed, or are still there as a copy, stay under both names; {GONE} does not list them"
        )
    if resolved.dedupe:
        from foveate.records.duplicates import remove_duplicates

        outcome = remove_duplicates(out, workers=call.workers or 2)
        result |= {"duplicate_groups": len(outcome.groups), "duplicates_removed": outcome.removed}
        lines.append(f"near-duplicates: {outcome.removed} taken out, {len(outcome.groups)} groups; one of each stays")
    if resolved.results is not None:
        added = add_results(out, resolved.results, detections)
        result["results"] = added.as_dict()
        lines += added.lines()
    # After duplicates are gone: splits are drawn for what stays.
    if resolved.split is not None:
        # Unless stated, as drawn before: other fractions or another seed would move images from test to train.
        drawn_fractions, drawn_seed = read_drawn(out) or (resolved.split, 0)
        fractions = resolved.split if "split" in settings else drawn_fractions
        assigned = assign_splits(out, fractions=fractions, seed=drawn_seed if call.seed is None else call.seed)
        result |= {"splits": assigned.images, "divided": assigned.divided, "moved": assigned.moved}
        if assigned.cameras:
            result["cameras"] = assigned.cameras
        lines += _describe_splits(assigned)
    call.finish(result, lines, {"collection": out})
    if summary.away:
        total = summary.imported + summary.existing + summary.images_quarantined
        raise UserError(describe_unreachable(summary.away, total, summary.first_away))


def _choose_importer(source: str, format: str, settings: dict[str, Any]) -> Format:
    """Return the importer of a format, or of the source's own where it is to be found."""
    from foveate.records.importers.formats import detect_format, load_builders, load_formats

    if format != "auto":
        return load_formats()[choose(format, [*load_formats(), "auto", "builtin"], "format")]
    importer, evidence = detect_format(source, others=tuple(load_builders()), options=settings)
    say(f"format: {importer.name} ({evidence})")
    return importer


def _refuse_useless(importer: Format, settings: CollectSettings, options: dict[str, Any], seed: int | None) -> None:
    """Raise UserError if an option would have no effect on a format; `options` are those for some formats only."""
    from foveate.records.importers.formats import load_formats

    formats = load_formats().values()
    for option in options:
        if option not in importer.options:
            takers = [other.name for other in formats if option in other.options]
            why = importer.refusals.get(option, f"it is for {', '.join(takers)}")
            raise UserError(f"{_flag(option)} has no effect on the format {importer.name!r}: {why}")
    if settings.dedupe and importer.survey:
        from foveate.records.duplicates import SURVEY_REFUSAL

        raise UserError(f"--dedupe: {SURVEY_REFUSAL}")
    if settings.results is not None and not importer.survey:
        surveys = ", ".join(other.name for other in formats if other.survey)
        raise UserError(f"--results has no effect on the format {importer.name!r}: it is for surveys ({surveys})")
    if seed is not None and settings.split is None:
        raise UserError("--seed has no effect with --split none: it is the seed of the splits")


def _describe_splits(assigned: SplitSummary) -> list[str]:
    """Return lines for the images and cameras of each split."""
    split_counts = ", ".join(f"{name} {count}" for name, count in assigned.images.items())
    lines = [f"splits: {split_counts or 'none, there are no images'}"]
    if assigned.moved:
        lines.append(f"{assigned.moved:,} images of an earlier import changed their split")
    if assigned.cameras:
        lines.append("split by camera: " + ", ".join(f"{name} {count}" for name, count in assigned.cameras.items()))
    if assigned.divided:
        lines.append(f"{assigned.divided} groups of near-duplicates were given several splits and keep them")
    return lines


def _build(call: Call, source: str, target: Path, settings: dict[str, Any]) -> None:
    """Make a built-in collection; options that would have no effect on it are refused."""
    from foveate.records.collection import Collection
    from foveate.records.importers.formats import load_builders

    builder = load_builders()[choose(source, load_builders(), "built-in collection")]
    # Clip art and emoji are ready-made: a seed or more processes would change nothing.
    undrawn = {} if builder.is_drawn else {"workers": call.workers, "seed": call.seed}
    useless = sorted({*settings, *(name for name, value in undrawn.items() if value is not None)} - {"format"})
    if useless:
        why = "it has its own name, license and splits" if useless[0] in ("name", "license", "split") else "it is made"
        raise UserError(f"{_flag(useless[0])} has no effect on the built-in collection {source!r}: {why}")
    builder.build(target, call.workers or 2, call.seed or 0)
    count = len(Collection.open(target))
    result: dict[str, Any] = {"format": "builtin", "source": source, "images": count}
    call.finish(result, ["format: builtin", f"{count} images"], {"collection": target})


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")
