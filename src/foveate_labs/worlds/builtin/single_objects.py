"""The collections `clipart` and `emoji`: the shipped images one by one, with the texts they came with."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from foveate.core.progress import track
from foveate.core.seeds import generator
from foveate.records.builtin import families, tables
from foveate.records.record import Caption
from foveate.records.writer import CollectionWriter
from foveate_labs.worlds.builtin import holdout
from foveate_labs.worlds.builtin.cutouts import Cutout, load_cutouts

LICENSES = {
    "clipart": "Open Clip Art, public domain",
    "emoji": "Noto Emoji Apache-2.0; Twemoji CC-BY-4.0 (Twitter, Inc. and other contributors)",
}
_FILLED = 0.8  # of the image's side
_ENLARGED = 1.8  # at most; more shows the pixels of small cut-outs


@dataclass(frozen=True)
class Single:
    """One image with its texts, ready for `CollectionWriter.add`."""

    key: str
    data: bytes
    captions: tuple[Caption, ...]
    labels: Mapping[str, str]
    group: str
    split: str


def build_clipart(target: Path, *, size: int = 160) -> None:
    """Write the 2,840 clip art images into the collection at `target`; images already in it are kept.

    Captions of kind "title", "keywords" (joined by ", ") and "description" are those of the source, unchanged.
    Labels: source, category, subcategory, style, and concept and slice where the title names a thing.
    Images stand on white, `size` pixels square, as JPEG.
    """
    _build(target, "clipart", size)


def build_emoji(target: Path, *, size: int = 160) -> None:
    """Write 1,412 concepts in two styles into the collection at `target`; images already in it are kept.

    Captions: "title" (the concept's name in lower case), "keywords" (short names). Labels: source, category,
    subcategory, style ("noto", "twemoji"), concept, slice. Images stand on a pale plain color, the other half
    on white, `size` pixels square, as JPEG.
    """
    _build(target, "emoji", size)


def _build(target: Path, source: str, size: int) -> None:
    with CollectionWriter(target, license=LICENSES[source], source=source) as writer:
        for single in track(load_single_objects(source, size=size), description=source, total=len(tables.rows(source))):
            writer.add(
                single.key,
                single.data,
                captions=single.captions,
                labels=single.labels,
                group=single.group,
                split=single.split,
            )


def load_single_objects(source: str, *, size: int = 160) -> Iterator[Single]:
    """Yield all singles of "clipart" or "emoji" in the order of the shipped table."""
    cutouts = _cutouts_by_id()
    for row in tables.rows(source):
        cutout = cutouts[row["key"]]
        captions = _emoji_captions(row) if source == "emoji" else _clipart_captions(row)
        labels = {"source": source, "category": row["category"], "subcategory": row["subcategory"]}
        labels |= {"style": cutout.style, "license": row["license"]}
        if cutout.concept:
            labels |= {"concept": cutout.concept, "slice": cutout.slice}
        # By thing, so that splits drawn by group keep both styles and all variants of an emoji together.
        group = f"emoji {cutout.thing}" if source == "emoji" else holdout.clipart_groups()[cutout.id]
        image = jpeg(render_alone(cutout, size=size))
        yield Single(cutout.id, image, captions, labels, group, holdout.assign_split(cutout.id))


@functools.cache
def _cutouts_by_id() -> dict[str, Cutout]:
    return {cutout.id: cutout for cutout in load_cutouts()}


def _clipart_captions(row: Mapping[str, Any]) -> tuple[Caption, ...]:
    texts = (
        ("title", row["title"]),
        ("keywords", ", ".join(filter(None, row["keywords"]))),
        ("description", row["description"]),
    )
    source = f"Open Clip Art, {row['package']}"
    return tuple(Caption(text, kind, source) for kind, text in texts if text)


def _emoji_captions(row: Mapping[str, Any]) -> tuple[Caption, ...]:
    names = ", ".join(name.replace("_", " ").replace("-", " ") for name in row["short_names"])
    title = families.concept_of_emoji(row)
    return Caption(title, "title", row["package"]), Caption(names, "keywords", row["package"])


def render_alone(cutout: Cutout, *, size: int) -> Image.Image:
    """Render a cut-out centered on a square, RGB: clip art on white, half of the emoji on a pale plain color."""
    color = (255, 255, 255)
    rng = generator("single", cutout.id)
    if cutout.source == "emoji" and rng.random() < 0.5:
        red, green, blue = (int(level) for level in rng.integers(190, 251, 3))
        color = (red, green, blue)
    image = cutout.image()
    scale = min(_FILLED * size / max(image.size), _ENLARGED)
    width, height = (max(1, round(side * scale)) for side in image.size)
    # Premultiplied before resizing: the color of transparent pixels would bleed into the edge.
    enlarged = image.convert("RGBa").resize((width, height), Image.Resampling.BICUBIC).convert("RGBA")
    ground = Image.new("RGB", (size, size), color)
    ground.paste(enlarged, ((size - width) // 2, (size - height) // 2), enlarged)
    return ground


def jpeg(image: Image.Image, *, exif: bytes = b"") -> bytes:
    """Encode as JPEG of quality 90, deterministic for one version of Pillow."""
    target = io.BytesIO()
    image.save(target, "JPEG", quality=90, exif=exif)
    return target.getvalue()
