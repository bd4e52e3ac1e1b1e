"""Options of imports, declared once for `foveate collect` and for the importers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from foveate.core.recipes import Settings, parse_pairs
from foveate.records.images import MAX_DECODED_PIXELS, MAX_PIXELS
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
