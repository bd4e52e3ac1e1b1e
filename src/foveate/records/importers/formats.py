"""Import formats by name, and their options, declared once for `foveate collect` and for the importers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field

from foveate.core.errors import UserError, nearest
from foveate.core.plugins import load_all, load_plugin, module_names
from foveate.core.recipes import Settings, parse_pairs
from foveate.records.images import MAX_DECODED_PIXELS, MAX_PIXELS
from foveate.records.import_summary import ImportSummary
from foveate.records.record import Group

Grouping = Literal["none", "folder"]
Coordinates = Literal["pixels", "resized-pixels", "0-1", "0-1-padded", "0-1000", "none"]


class FormatOptions(Settings):
    """Options that only some formats take, those in parentheses; see `Format.options`."""

    images: Path | None = Field(
        None,
        description="folder of the images that a file names (camtrap-dp, chat, coco, coco-camera-traps, ferret, "
        "flickr-entities, grit, llava, lvis, qwen-vl, refcoco, table, visual-genome, vqa, wilds)",
    )
    captions: Path | None = Field(None, description="a COCO captions file (coco, lvis)")
    path_column: str | None = Field(None, description="column with the images' paths (table)")
    text_column: str | None = Field(None, description="column with their texts (datasets, table)")
    boxes_column: str | None = Field(None, description="column with their regions (table)")
    image_column: str | None = Field(None, description="column with the images themselves (datasets)")
    key_column: str | None = Field(
        None, description="column that names the images; by default their hash does (datasets)"
    )
    label_column: tuple[str, ...] = Field((), description="column that becomes a label field (table)")
    part: str | None = Field(
        None, description="only this part of a data set, such as train (datasets, flickr-entities)"
    )
    revision: str | None = Field(None, description="branch, tag or commit of a data set on the hub (datasets)")
    group_by: Grouping = Field(
        "none", description="folder: images of one folder stay in one split (coco, folder, lvis, table)"
    )
    reference: bool = Field(
        False,
        description="leave the files where they are and refer to them (camtrap-dp, cards, chat, coco, "
        "coco-camera-traps, ferret, flickr-entities, folder, grit, llava, lvis, qwen-vl, refcoco, table, "
        "visual-genome, vqa, wilds)",
    )
    first_line: bool = Field(False, description="only the first line of a .txt is the image's text (folder)")
    label_from_folder: str | None = Field(None, description="label field that gets the folder's name (folder)")
    update: bool = Field(
        False,
        description="take changed texts and replaced images of an earlier import, and list images whose files are gone "
        "(folder)",
    )
    coordinates: Coordinates | None = Field(
        None,
        description="unit of the boxes of a file of conversations, required if it has any (grit: 0-1 if left out); "
        "none leaves them in the text (chat, ferret, grit, llava, qwen-vl)",
    )
    # 4 and 16,384 patches of 28 x 28 pixels: the values in preprocessor_config.json of Qwen2-VL and Qwen2.5-VL.
    resize_min_pixels: int = Field(
        3136, ge=1, description="with resized-pixels: the processor's min_pixels (chat, ferret, grit, llava, qwen-vl)"
    )
    resize_max_pixels: int = Field(
        12_845_056,
        ge=1,
        description="with resized-pixels: the processor's max_pixels (chat, ferret, grit, llava, qwen-vl)",
    )
    data_group: Group | None = Field(
        None,
        description="group of the training mixture; by default text without images, multi-image for several, "
        "refer-ground with regions, else the format's (chat, ferret, flickr-entities, grit, llava, qwen-vl, refcoco, "
        "visual-genome, vqa)",
    )
    answers: Path | None = Field(None, description="VQA's file of annotations (vqa)")
    deployments: Path | None = Field(
        None,
        description="table of a camera-trap survey: a row per camera folder or location, Camtrap DP's columns "
        "(cards, coco-camera-traps, wilds)",
    )


def _parse_fractions(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value == "none":
        return None
    return parse_pairs(value.split(","), hint="write it as train=0.8,validation=0.1,test=0.1")


class CollectSettings(FormatOptions):
    """`foveate collect SOURCE --out COLLECTION`."""

    format: str = Field(
        "auto",
        description="format of the source: folder, webdataset, coco, lvis, visual-genome, table, datasets, llava, "
        "ferret, chat, qwen-vl, grit, refcoco, flickr-entities, vqa, cards, camtrap-dp, coco-camera-traps, wilds or "
        "builtin; auto detects it",
    )
    name: str | None = Field(None, description="name of a new collection; by default that of its folder")
    license: str | None = Field(None, description="license of the images that this command adds, stored with them")
    source_name: str | None = Field(
        None,
        min_length=1,
        description="name of the source that the collection keeps with the images, in place of that of the file or "
        "folder; that of an earlier one for a new release of the same survey",
    )
    max_pixels: int = Field(
        MAX_PIXELS,
        ge=1,
        le=MAX_DECODED_PIXELS,
        description="images with more pixels by their header are quarantined; phones make up to 200000000",
    )
    results: Path | None = Field(
        None, description="results of MegaDetector (to 1.6) or SpeciesNet (JSON) for the images of a camera-trap survey"
    )
    dedupe: bool = Field(False, description="then remove all but one of each group of near-duplicates")
    split: Annotated[dict[str, float] | None, BeforeValidator(_parse_fractions)] = Field(
        {"train": 0.8, "validation": 0.1, "test": 0.1}, description="fractions of the splits; none for no splits"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One import format.

    Args:
        run: imports, called as `run(source, target, **options)`.
        recognize: returns what of this format is at a source ("3 tars"), or None.
        options: keywords that `run` takes besides `SharedOptions`, of the fields of `FormatOptions`.
        refusals: keyword -> why this format does not take it, for the error.
        fallback: chosen only where no other format is recognized.
        by_option: an option that only such a source needs: given, it is evidence of this format
            unless a recognized one takes it, too.
        survey: images come from camera traps; near-duplicates stay.
        videos: `run` takes the keyword `frames_of`, which reads frames of videos; the floor above has the decoder.
    """

    name: str
    run: Callable[..., ImportSummary]
    recognize: Callable[[str], str | None]
    options: tuple[str, ...] = ()
    refusals: Mapping[str, str] = field(default_factory=dict)
    fallback: bool = False
    by_option: str = ""
    survey: bool = False
    videos: bool = False


def load_formats() -> dict[str, Format]:
    """Load all import formats; return {name: format}, sorted by name."""
    tables: dict[str, tuple[Format, ...]] = load_all("foveate.records.importers", "FORMATS")
    formats = (entry for table in tables.values() for entry in table)
    return {entry.name: entry for entry in sorted(formats, key=lambda entry: entry.name)}


def detect_format(source: str, *, others: tuple[str, ...] = (), options: Collection[str] = ()) -> tuple[Format, str]:
    """Detect the format of a source; return it with the evidence ("3 tars").

    Args:
        others: names besides files that the source could have been, for the nearest match.
        options: names of options that the user gave; see `Format.by_option`.

    Raises:
        UserError: the source does not exist, or its format is unknown or ambiguous.
    """
    formats = load_formats()
    matches = {name: evidence for name, entry in formats.items() if (evidence := entry.recognize(source)) is not None}
    if Path(source).exists():
        recognized_options = {option for name in matches for option in formats[name].options}
        # An option is evidence only where no recognized format takes it: COCO Camera Traps have --deployments, too.
        matches |= {
            name: f"--{entry.by_option.replace('_', '-')}"
            for name, entry in formats.items()
            if entry.by_option in options and entry.by_option not in recognized_options
        }
    clear = {name: evidence for name, evidence in matches.items() if not formats[name].fallback} or matches
    if len(clear) > 1:
        candidates = " or ".join(f"{name} ({evidence})" for name, evidence in clear.items())
        raise UserError(f"{source}: ambiguous format ({candidates}); choose one with --format")
    for name, evidence in clear.items():
        return formats[name], evidence
    if Path(source).exists():
        raise UserError(f"{source}: unknown format; choose one with --format: {', '.join(formats)}")
    siblings = Path(source).parent.glob("*") if Path(source).parent.is_dir() else ()
    names = [*others, *map(str, siblings)][:500]  # a folder of millions must not make the error slow
    raise UserError(f"{source}: no such file, folder or built-in collection{nearest(source, names)}")


_DOOR = "foveate.records.builders"


class Builder(NamedTuple):
    """A built-in collection.

    Attributes:
        build: called as `build(target, workers, seed)`; imports its world when it is called.
        is_drawn: whether it is drawn from the seed, by several processes; the others are shipped as they are.
    """

    build: Callable[[Path, int, int], None]
    is_drawn: bool = True


def load_builders() -> Mapping[str, Builder]:
    """Return the built-in collections; none where the laboratory is left out."""
    if "collections" not in module_names(_DOOR):
        return {}
    builders: Mapping[str, Builder] = load_plugin(_DOOR, "collections", "BUILDERS", label="built-in collections")
    return builders
