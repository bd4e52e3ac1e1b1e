"""Embed a collection in one pass: images, regions, and the box that each rule locates for a phrase.

The image tokens of an image are computed once and serve all its regions, phrases and candidate boxes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from foveate.core import seeds
from foveate.records.collection import Collection
from foveate.records.geometry import Placement
from foveate.records.record import Region
from foveate.records.region_sources import is_pseudo_label
from foveate.vision.feature_cache import feature_batches
from foveate.vision.localizer.inference import embed_phrases, encode_crops, find
from foveate.vision.localizer.model import LocalizingModel
from foveate.vision.preprocess import move_boxes


@dataclass
class CollectionEmbeddings:
    """Embeddings of N images and their R regions.

    Attributes:
        rows: the collection's row numbers of the N images that could be read. bad: row -> reason of the others.
        image_NE: unit length. image_R: index into `rows` of each region. boxes_R4: true boxes of the original.
        out_of_view: regions left out because the encoder's view ("center_crop") shows nothing of them.
        z_RE: region embeddings. shuffled_RE: the control, the same images with boxes of other regions.
        crop_RE: embeddings of the boxes cut out as images of their own; None unless asked for.
        phrase_RE: unit-length phrase embeddings (equal phrases have equal rows).
        located: rule -> boxes [R, 4] of the original image that the rule predicts for each region's phrase.
    """

    rows: NDArray[np.int64]
    bad: dict[int, str]
    image_NE: NDArray[np.float32]
    regions: list[Region] = field(default_factory=list)
    image_R: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    boxes_R4: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 4)))
    z_RE: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 1), np.float32))
    shuffled_RE: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 1), np.float32))
    crop_RE: NDArray[np.float32] | None = None
    out_of_view: int = 0
    phrase_RE: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 1), np.float32))
    located: dict[str, NDArray[np.float64]] = field(default_factory=dict)


def embed_images(model: LocalizingModel, collection: Collection, rows: NDArray[np.int64]) -> CollectionEmbeddings:
    """Embed the images only."""
    return _embed(model, collection, rows, regions=False, crops=False, rules=())


def embed_collection(
    model: LocalizingModel,
    collection: Collection,
    rows: NDArray[np.int64],
    *,
    crops: bool = False,
    rules: Sequence[str] = ("head", "candidates"),
    cache: Path | None = None,
) -> CollectionEmbeddings:
    """Embed images and regions, and locate each region's phrase.

    Args:
        crops: also encode each box cut out as an image of its own (`crop_RE`), the costly zero-shot way.
        rules: how phrases are located; "head" is left out for models without one. "candidates" takes most of the
            time of a pass.
        cache: folder where the frozen features of the images are kept, for the next model with the same frozen part.

    Example:
        >>> model = open_model(model_folder).network
        >>> collection = Collection.open(collection_folder)
        >>> embeddings = embed_collection(model, collection, collection.rows("test"))
        >>> embeddings.image_NE.shape, len(embeddings.regions) == len(embeddings.z_RE)
        ((10, 32), True)
    """
    rules = [rule for rule in rules if rule != "head" or (model.prompter is not None and model.localizes)]
    return _embed(model, collection, rows, regions=True, crops=crops, rules=rules, cache=cache)


@torch.inference_mode()
def _embed(
    model: LocalizingModel,
    collection: Collection,
    rows: NDArray[np.int64],
    *,
    regions: bool,
    crops: bool,
    rules: Sequence[str],
    cache: Path | None = None,
) -> CollectionEmbeddings:
    bad: dict[int, str] = {}
    good_rows, images, z, shuffled, crop, owner = [], [], [], [], [], []
    out_of_view = 0
    all_regions: list[Region] = []
    located: dict[str, list[np.ndarray]] = {rule: [] for rule in rules}
    by_row = {int(row): _true_regions(collection, int(row)) if regions else () for row in rows}
    shuffled_boxes = _shuffle_boxes(by_row)
    # Each distinct phrase is encoded once: equal phrases get bit-equal embeddings, so that they tie exactly.
    phrases = sorted({region.phrase for row_regions in by_row.values() for region in row_regions})
    vectors = embed_phrases(model, phrases)
    phrase_row = {phrase: number for number, phrase in enumerate(phrases)}
    encoder = model.image_encoder
    batches = feature_batches(
        encoder, collection, rows, device=model.device, description="images", bad=bad, cache=cache
    )
    for batch_rows, placements, features in batches:
        tokens = encoder(features)
        images.append(model.encode_image(tokens).cpu().numpy())
        by_image = [by_row[row] for row in batch_rows]
        visible, inside_R4 = visible_regions(placements, by_image)
        batch = [by_image[index][number] for index, number in visible]
        out_of_view += sum(map(len, by_image)) - len(batch)
        if batch:
            index_R = torch.tensor([index for index, _ in visible], device=model.device)
            # Use fractions of the visible part, so that every box of another image is a possible one here.
            other_R4 = np.concatenate(
                [
                    placements[index].letterbox.to_input(shuffled_boxes[batch_rows[index]][number][None])
                    for index, number in visible
                ]
            ).astype(np.float32)
            for boxes_R4, embedded in ((inside_R4, z), (other_R4, shuffled)):
                z_RE = model.encode_regions(tokens, torch.from_numpy(boxes_R4).to(model.device), index_R)
                embedded.append(z_RE.float().cpu().numpy())
            # These stay unnormalized: the phrase prompt takes the text embedding as the tower returns it.
            texts_RE = vectors[[phrase_row[region.phrase] for region in batch]].to(model.device)
            for rule in rules:
                boxes_R4 = find(model, tokens, placements, texts_RE, index_R, rule=rule)
                located[rule].append(_to_original(boxes_R4, placements, index_R))
            if crops:
                boxes = [(batch_rows[index], by_image[index][number].box) for index, number in visible]
                crop.append(encode_crops(model, collection, boxes))
        all_regions += batch
        owner += [len(good_rows) + index for index, _ in visible]
        good_rows += batch_rows
    width = model.recipe.embed_dim
    none = np.zeros((0, width), np.float32)
    unit = F.normalize(vectors, dim=-1).numpy() if len(vectors) else none
    return CollectionEmbeddings(
        rows=np.array(good_rows, dtype=np.int64),
        bad=bad,
        image_NE=np.concatenate(images) if images else none,
        regions=all_regions,
        image_R=np.array(owner, dtype=np.int64),
        # Without a region NumPy would return the shape [0].
        boxes_R4=np.array([region.box.to_array() for region in all_regions]).reshape(-1, 4),
        z_RE=np.concatenate(z) if z else none,
        shuffled_RE=np.concatenate(shuffled) if shuffled else none,
        crop_RE=np.concatenate(crop) if crop else None,
        out_of_view=out_of_view,
        phrase_RE=unit[[phrase_row[region.phrase] for region in all_regions]] if all_regions else none,
        located={rule: np.concatenate(boxes) if boxes else np.zeros((0, 4)) for rule, boxes in located.items()},
    )


def _true_regions(collection: Collection, row: int) -> list[Region]:
    """Return the regions of an image without pseudo-labels: what a detector wrote is no ground truth."""
    return [region for region in collection.read_regions(row) if not is_pseudo_label(region.source)]


def _shuffle_boxes(by_row: Mapping[int, Sequence[Region]]) -> dict[int, NDArray[np.float64]]:
    """Return for each region of a row the box of a random region: a permutation of all boxes with a fixed seed."""
    counts = [len(regions) for regions in by_row.values()]
    boxes_R4 = np.array([region.box.to_array() for regions in by_row.values() for region in regions]).reshape(-1, 4)
    # A permutation and not new boxes: the control has the same sizes and positions, only on the wrong regions.
    boxes_R4 = boxes_R4[seeds.generator("shuffled boxes").permutation(len(boxes_R4))]
    return dict(zip(by_row, np.split(boxes_R4, np.cumsum(counts)[:-1]), strict=True)) if counts else {}


def visible_regions(
    placements: Sequence[Placement], by_image: Sequence[Sequence[Region]]
) -> tuple[list[tuple[int, int]], NDArray[np.float32]]:
    """Return which regions of a batch are in view (image, number among its regions), and their boxes [R, 4].

    The boxes are in the model input.
    """
    batch: list[tuple[int, int]] = []
    inside = [np.zeros((0, 4), np.float32)]
    for index, (placement, regions) in enumerate(zip(placements, by_image, strict=True)):
        if regions:
            boxes_R4 = np.stack([region.box.to_array() for region in regions])
            # Every visible sliver counts: the share that training demands would drop hard regions from an evaluation.
            moved_K4, visible_R = move_boxes(placement, boxes_R4, min_visible=0)
            batch += [(index, number) for number in np.flatnonzero(visible_R).tolist()]
            inside.append(moved_K4)
    return batch, np.concatenate(inside)


def _to_original(boxes_R4: np.ndarray, placements: Sequence[Placement], index_R: Tensor) -> np.ndarray:
    owners = index_R.tolist()
    return np.concatenate(
        [placements[owner].to_original(box[None]) for owner, box in zip(owners, boxes_R4, strict=True)]
    )
