"""`foveate collect`: images and their texts into a collection."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from foveate.cli.options import common, finish, workers_option
from foveate.core.errors import UserError, choose
from foveate.core.progress import say

DEFAULT_SPLIT = "train=0.8,validation=0.1,test=0.1"


def parse_fractions(text: str) -> dict[str, float]:
    """`train=0.8,test=0.2` as a mapping.

    Raises:
        UserError: when a part is not name=number.
    """
    fractions = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        try:
            fractions[name.strip()] = float(value)
        except ValueError:
            equals = ""
        if not equals or not name.strip():
            raise UserError(f"--split '{text}': write it as train=0.8,validation=0.1,test=0.1")
    return fractions


def _clipart(target: Path, workers: int, seed: int) -> None:
    from foveate.records.builtin import build_clipart

    build_clipart(target)


def _emoji(target: Path, workers: int, seed: int) -> None:
    from foveate.records.builtin import build_emoji

    build_emoji(target)


def _scenes(target: Path, workers: int, seed: int) -> None:
    from foveate.records.scenes import build_scenes

    build_scenes(target, train=2000, validation=200, test=400, seed=seed, workers=workers)


BUILT_IN: dict[str, Callable[[Path, int, int], None]] = {"clipart": _clipart, "emoji": _emoji, "scenes": _scenes}
# Options of single formats, by the keyword that a format's `options` and its import function call them.
OF_FORMATS = (
    "images",
    "captions",
    "path_column",
    "text_column",
    "boxes_column",
    "image_column",
    "key_column",
    "part",
    "revision",
    "group_by",
    "reference",
    "first_line",
    "label_from_folder",
    "label_column",
)


@click.command("collect", short_help="Images and texts into a collection.")
@click.argument("source")
@click.option("--to", "target", required=True, type=click.Path(path_type=Path), help="Collection folder.")
@click.option(
    "--format",
    "--as",
    "format_name",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="folder, webdataset, coco, lvis, visual-genome, table, datasets or builtin; auto looks at what is there.",
)
@click.option("--name", default=None, help="Name of a new collection; the folder's by default.")
@click.option("--license", default=None, help="License of the images, kept with them.")
@click.option("--images", default=None, metavar="FOLDER", help="Where the images of an annotation file or table lie.")
@click.option("--captions", default=None, metavar="FILE", help="Captions file of COCO.")
@click.option("--path-column", default=None, metavar="NAME", help="Column with the images' paths.")
@click.option("--text-column", default=None, metavar="NAME", help="Column with their texts.")
@click.option("--boxes-column", default=None, metavar="NAME", help="Column with their regions.")
@click.option("--image-column", default=None, metavar="NAME", help="Column with the images themselves.")
@click.option("--key-column", default=None, metavar="NAME", help="Column that names the images; their hash if none.")
@click.option("--part", default=None, metavar="NAME", help="Only this part of a data set, such as train.")
@click.option("--revision", default=None, metavar="NAME", help="Revision of a data set on the hub.")
@click.option("--group-by", type=click.Choice(["none", "folder"]), default="none", help="What stays in one split.")
@click.option("--reference", is_flag=True, help="Leave the files where they are and point at them.")
@click.option("--first-line", is_flag=True, help="Only the first line of a .txt is the image's text.")
@click.option("--label-from-folder", default=None, metavar="FIELD", help="The folder's name is this label.")
@click.option("--label-column", multiple=True, metavar="NAME", help="Column that is a label; may be repeated.")
@click.option("--dedupe", is_flag=True, help="Then take out all but one of each group of near-duplicates.")
@click.option("--split", default=DEFAULT_SPLIT, show_default=True, help="Shares of the splits; 'none' for no splits.")
@workers_option
@common(device=False)
@click.pass_context
def command(
    context: click.Context,
    source: str,
    target: Path,
    format_name: str,
    name: str | None,
    license: str | None,
    dedupe: bool,
    split: str,
    workers: int | None,
    as_json: bool,
    seed: int | None,
    **of_format: Any,
) -> None:
    """Takes images in: a folder with .txt or .json files beside them, WebDataset tars, COCO, LVIS, Visual Genome,
    a table of paths and texts, a data set of Hugging Face, or a built-in collection.

    What cannot be taken in is put into the collection's quarantine table with its reason and counted. Repeated, the
    command adds only what is new; stopped, it goes on. Near-duplicates stay in one split.

    \b
    Example:
      foveate collect my-folder --to my-images
      foveate collect trees --label-from-folder category --to trees-collection
      foveate collect "shards/{00000..00003}.tar" --to my-images
      foveate collect coco/annotations/instances_val2017.json --to coco
      foveate collect pairs.csv --images photos --to my-images --reference
      foveate collect scenes --to scenes
    """
    from foveate.records import layout
    from foveate.records.importers.formats import detect_format, load_formats
    from foveate.records.splits import assign_splits, check_fractions

    given_options = {
        parameter
        for parameter in context.params
        if context.get_parameter_source(parameter) not in (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)
    }
    if format_name == "builtin" or (format_name == "auto" and source in BUILT_IN and not Path(source).exists()):
        return _build(source, target, given_options, workers=workers, seed=seed, as_json=as_json)
    if format_name == "auto":
        importer, evidence = detect_format(source, others=tuple(BUILT_IN))
        say(f"format: {importer.name} ({evidence})")
    else:
        importer = load_formats()[choose(format_name, [*load_formats(), "auto", "builtin"], "format")]
    fractions = None if split == "none" else parse_fractions(split)
    if fractions is not None:
        check_fractions(fractions)
    options = {option: of_format[option] for option in OF_FORMATS if option in given_options}
    for option in options:
        if option not in importer.options:
            takers = [other.name for other in load_formats().values() if option in other.options]
            why = importer.refusals.get(option, f"it is for {', '.join(takers)}")
            raise UserError(f"{_flag(option)} has no effect on the format {importer.name!r}: {why}")
    if "seed" in given_options and fractions is None:
        raise UserError("--seed has no effect with --split none: it is the seed of the splits")
    summary = importer.run(source, target, name=name, license=license, workers=workers, **options)
    result: dict[str, Any] = {"format": importer.name, **summary.as_dict()}
    lines = [f"format: {importer.name}", *summary.lines()]
    if summary.quarantined:
        lines.append(f"each finding with its reason: {target / layout.QUARANTINE_FILE}, shown by foveate inspect")
    if dedupe:
        from foveate.records.duplicates import remove_duplicates

        outcome = remove_duplicates(target, workers=workers or 2)
        result |= {"duplicate_groups": len(outcome.groups), "duplicates_removed": outcome.removed}
        lines.append(f"near-duplicates: {outcome.removed} taken out, {len(outcome.groups)} groups; one of each stays")
    if fractions is not None:
        assigned = assign_splits(target, fractions=fractions, seed=seed or 0)
        result |= {"splits": assigned.images, "divided": assigned.divided}
        split_counts = ", ".join(f"{name} {count}" for name, count in assigned.images.items())
        lines.append(f"splits: {split_counts or 'none, there are no images'}")
        if assigned.divided:
            lines.append(f"{assigned.divided} groups of near-duplicates were given several splits and keep them")
    finish(result, lines, {"collection": target}, as_json=as_json)


def _build(
    source: str, target: Path, given_options: set[str], *, workers: int | None, seed: int | None, as_json: bool
) -> None:
    """Make a built-in collection; options that would have no effect on it are refused."""
    from foveate.records.collection import Collection

    choose(source, BUILT_IN, "built-in collection")
    useful = {"source", "target", "format_name", "as_json"} | ({"workers", "seed"} if source == "scenes" else set())
    useless = sorted(given_options - useful - {"quiet"})
    if useless:
        why = "it has its own name, license and splits" if useless[0] in ("name", "license", "split") else "it is made"
        raise UserError(f"{_flag(useless[0])} has no effect on the built-in collection {source!r}: {why}")
    BUILT_IN[source](target, workers or 2, seed or 0)
    count = len(Collection.open(target))
    result: dict[str, Any] = {"format": "builtin", "source": source, "images": count}
    finish(result, ["format: builtin", f"{count} images"], {"collection": target}, as_json=as_json)


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")
