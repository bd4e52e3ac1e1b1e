"""Samples of Ferret-v2's second stage: all objects of an image, named by their boxes or boxed by their names.

Dense referring numbers regions in the question and names them in the answer; dense detection asks for everything, and
the answer lists names with boxes in raster order: by the upper edge, then by the left one. The paper takes LVIS; here
it is any collection with regions, pseudo-labels included where `sources` names them.

Source: Ferret-v2 (arXiv 2404.07973), section 3.3.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.core.progress import track
from foveate.core.recipes import Settings
from foveate.core.seeds import pick
from foveate.records.boxes import PixelBox, raster_key
from foveate.records.collection import Collection
from foveate.records.conversations import IMAGE, REGION, Conversation, Turn, add_conversations
from foveate.records.region_sources import OWN_SOURCES, RegionSources, SelectedRegions

GROUP = "dense-regions"
# `foveate mllm label` asks the first of each, and hashes it in its recipe: after a change, all is labeled anew.
DETECT_PROMPTS = (
    "Find all things in the image, row by row.",
    "Name and box each thing in the image, from top to bottom.",
    "Which things are in the image, and where? List all of them, row by row.",
)
REFER_PROMPTS = (
    "Name the things in these regions:",
    "What is in each of these regions?",
    "Say what each of these regions shows:",
)


class DenseSettings(Settings):
    """Settings of dense referring and detection: `foveate mllm prepare-dense`.

    Example:
        >>> DenseSettings(objects=5).names
        'phrase'
    """

    split: str = Field("train", description="split whose images are asked about")
    sources: RegionSources = (OWN_SOURCES,)
    names: Literal["phrase", "label"] = Field("phrase", description="column of the regions that names them")
    objects: int = Field(10, ge=1, le=100, description="maximum number of regions in a question")
    max_detected: int = Field(
        40, ge=1, le=300, description="maximum number of things in an image whose answer lists all of them"
    )
    box_share: float = Field(0.5, ge=0, le=1, description="share of images whose answer has boxes; others have names")


class DenseCounts(BaseModel):
    """Counts of `prepare_dense`.

    Attributes:
        conversations, objects: by kind, referring or detection.
        sources: regions by the source that they came from.
        left_out: number of images by reason.
        added, existing: conversations that were new, and that were there already.
    """

    model_config = ConfigDict(frozen=True)

    conversations: dict[str, int]
    objects: dict[str, int]
    sources: dict[str, int]
    left_out: dict[str, int]
    added: int = 0
    existing: int = 0


def prepare_dense(path: Path, settings: DenseSettings, *, seed: int = 0) -> DenseCounts:
    """Write dense referring and detection from a collection's regions into it; repeated, it adds nothing.

    Raises:
        UserError: no region of the split can be used, or another process writes the collection.

    Example:
        >>> counts = prepare_dense(collection_copy, DenseSettings())
        >>> counts.added == sum(counts.conversations.values())
        True
    """
    counts = {name: Counter[str]() for name in ("conversations", "objects", "sources", "left_out")}
    with Collection.open(path) as collection:
        conversations = _write_all(collection, settings, seed=seed, counts=counts)
        content = f"{settings.model_dump_json()} {seed}"
        summary = add_conversations(path, conversations, recipe_hash=hashlib.sha256(content.encode()).hexdigest()[:16])
    if not counts["conversations"]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts["left_out"].items()) or "no images"
        raise UserError(
            f"collection {path}: no regions to ask about in split '{settings.split}' (got {reasons}); expected regions "
            f"with a {settings.names}; --region-source all takes pseudo-labels"
        )
    plain = {name: dict(counter) for name, counter in counts.items()}
    return DenseCounts(**plain, added=summary.added, existing=summary.existing)


def _write_all(
    collection: Collection, settings: DenseSettings, *, seed: int, counts: dict[str, Counter[str]]
) -> Iterator[Conversation]:
    selected = SelectedRegions(collection, settings.sources or (OWN_SOURCES,), where="--region-source")
    index = collection.index
    for row in track(collection.rows(settings.split).tolist(), description="dense regions, images"):
        key, size = collection.keys[row], (int(index["width"][row]), int(index["height"][row]))
        objects = [
            (name, region.box.to_pixels(*size), region.source)
            for region in selected.read(row)
            if (name := getattr(region, settings.names))
        ]
        # Draw by image key, so that a repeated call writes the same conversations and adds none.
        boxed = seeds.uniform("dense task", seed, key) < settings.box_share
        reason = "without regions" if not objects else ""
        # Left out, not cut: the question asks for all things, and a cut answer would teach the model to stop early.
        if boxed and len(objects) > settings.max_detected:
            reason = f"with more than {settings.max_detected} regions"
        if reason:
            counts["left_out"][reason] += 1
            continue
        rng = seeds.generator("dense regions", seed, key)
        kind = "detection" if boxed else "referring"
        order = rng.permutation(len(objects)).tolist()
        parts = [objects] if boxed else [
            [objects[position] for position in order[start : start + settings.objects]]
            for start in range(0, len(order), settings.objects)
        ]  # fmt: skip
        for position, part in enumerate(parts):
            pairs = [(name, box) for name, box, _ in part]
            turns = write_detection(pairs, rng) if boxed else write_referring(pairs, rng)
            sources = Counter(source or "unknown" for _, _, source in part)
            source = f"dense {kind}, regions of {', '.join(sorted(sources))}"
            yield Conversation(f"dense {kind}/{key}/{position}", (key,), turns, GROUP, source)
            counts["conversations"][kind] += 1
            counts["objects"][kind] += len(part)
            counts["sources"].update(sources)


def write_referring(objects: Sequence[tuple[str, PixelBox]], rng: np.random.Generator) -> tuple[Turn, Turn]:
    """Write a question with numbered regions, and their names with the same numbers.

    >>> rng = np.random.default_rng(0)
    >>> [turn.text for turn in write_referring([("boat", PixelBox(0, 0, 9, 9))], rng)]
    ['<image>\\nSay what each of these regions shows: 1. <region>', '1. boat']
    """
    question = f"{IMAGE}\n{pick(rng, REFER_PROMPTS)} {number([REGION] * len(objects))}"
    names = number([name for name, _ in objects])
    return Turn("user", question, tuple(box for _, box in objects)), Turn("assistant", names)


def write_detection(objects: Sequence[tuple[str, PixelBox]], rng: np.random.Generator) -> tuple[Turn, Turn]:
    """Write a question for everything, and names with boxes in raster order."""
    return Turn("user", f"{IMAGE}\n{pick(rng, DETECT_PROMPTS)}"), list_boxes(objects)


def number(texts: Sequence[str]) -> str:
    """Join texts behind their numbers from 1."""
    return " ".join(f"{position}. {text}" for position, text in enumerate(texts, 1))


def list_boxes(objects: Sequence[tuple[str, PixelBox]]) -> Turn:
    """Write the answer with names and boxes in raster order."""
    # An order that the image shows: a random one could not be learned, and would cost loss at every name.
    ordered = sorted(objects, key=lambda pair: raster_key(pair[1]))
    listed = ", ".join(f"{name} {REGION}" for name, _ in ordered)
    return Turn("assistant", listed, tuple(box for _, box in ordered))
