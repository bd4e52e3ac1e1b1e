"""Measures of the study `ferret` on frozen features: a classifier of names behind a region encoder, and decoded boxes.

A control swaps what is read: no image, another image's features, or another region of the same image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foveate.core import seeds
from foveate.records.box_text import Decoding, decode_region, encode_region
from foveate.records.boxes import PixelBox, intersection_over_union
from foveate.vision.lite0 import Lite0Encoder
from foveate.vision.regions import RegionBatch, build_region_encoder
from foveate.vision.registry import seeded
from foveate_labs.studies.ferret_worlds import POINT_AS_BOX, SHAPES, SMALL, VIEW, PointedSet

WIDTH = 128
IMAGES, VECTORS = 16, 256  # of a step
TRAIN_SHARE = 0.75  # of the training images, drawn by the seed
_RATE, _DECAY = 2e-3, 0.05


class RegionClassifier(nn.Module):
    """Projected maps of the frozen network, a region encoder, and a linear classifier of names."""

    def __init__(self, encoder: Mapping[str, Any], *, names: int, seed: int) -> None:
        super().__init__()
        options = dict(encoder)
        with seeded(seed):
            self.tower = Lite0Encoder(image_size=VIEW, width=WIDTH, embed_dim=8, position="none")
            self.regions = build_region_encoder(options.pop("kind"), options, width=WIDTH, out=WIDTH, seed=seed)
            self.norm = nn.LayerNorm(WIDTH)
            self.names = nn.Linear(self.regions.tokens_per_region * WIDTH, names)

    def forward(self, features_BF: Tensor, regions: RegionBatch) -> Tensor:
        maps_BCHW = self.tower(features_BF).tokens.transpose(1, 2).unflatten(2, self.tower.grid)
        vectors = self.norm(self.regions(maps_BCHW, regions))
        return self.names(vectors.flatten(1))


def train_classifier(data: PointedSet, encoder: Mapping[str, Any], *, names: int, steps: int, seed: int) -> nn.Module:
    """Train a classifier of regions that are pointed at by a point, box, stroke or mask, drawn anew in each step."""
    model = RegionClassifier(encoder, names=names, seed=seed)
    rng = seeds.generator("study ferret", seed)
    num_images = len(data.features_BF)
    # Each seed trains on another part: intervals cover the data, too, not only initial weights.
    images = rng.permutation(num_images)[: round(TRAIN_SHARE * num_images)]
    optimizer, schedule = _make_optimizer(model, steps)
    for _ in range(steps):
        batch = torch.from_numpy(rng.choice(images, min(IMAGES, len(images)), replace=False))
        rows_R, map_R = select_regions(data.image_R, batch)
        kinds_R = torch.from_numpy(rng.integers(len(SHAPES), size=len(rows_R)))
        logits = model(data.features_BF[batch], _mix_shapes(data, rows_R, map_R, kinds_R))
        _step(optimizer, schedule, logits, data.name_R[rows_R])
    return model.eval()


def select_regions(image_R: Tensor, images_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return the regions of some images, and the position of each one's image among these.

    >>> rows, maps = select_regions(torch.tensor([0, 0, 1, 2, 2]), torch.tensor([2, 0]))
    >>> rows.tolist(), maps.tolist()
    ([0, 1, 3, 4], [1, 1, 0, 0])
    """
    position_N = torch.full((int(image_R.max()) + 1,), -1)
    position_N[images_B] = torch.arange(len(images_B))
    map_R = position_N[image_R]
    rows_R = (map_R >= 0).nonzero()[:, 0]
    return rows_R, map_R[rows_R]


def _mix_shapes(data: PointedSet, rows_R: Tensor, map_R: Tensor, kinds_R: Tensor) -> RegionBatch:
    """Return regions, each by the kind of shape that is drawn for it."""
    of_kinds = [data.regions[kind].select(rows_R) for kind in SHAPES]
    points_RN2, count_R, boxes_R4, _ = (
        torch.stack(columns)[kinds_R, torch.arange(len(rows_R))] for columns in zip(*of_kinds, strict=True)
    )
    return RegionBatch(points_RN2, count_R, boxes_R4, map_R)


@torch.inference_mode()
def score_classifier(model: nn.Module, data: PointedSet) -> dict[str, float]:
    """Return the share of right names for each kind of shape, and that of the controls, asked by boxes."""
    features, box = data.features_BF, data.regions["box"]
    requests = {
        **{kind: (features, data.regions[kind]) for kind in (*SHAPES, POINT_AS_BOX)},
        "no_image": (torch.zeros_like(features), box),
        # The region keeps its place and shape: only what is seen there changes.
        "another_image": (features.roll(1, dims=0), box),
        "shuffled": (features, box.select(data.neighbor_R)),
    }
    alone_R = data.neighbor_R == torch.arange(len(data.neighbor_R))
    scores = {}
    for name, (features_BF, regions) in requests.items():
        right = []
        for start in range(0, len(features_BF), IMAGES):
            images = torch.arange(start, min(start + IMAGES, len(features_BF)))
            rows_R, map_R = select_regions(data.image_R, images)
            logits = model(features_BF[images], regions.select(rows_R)._replace(map_R=map_R))
            right.append(logits.argmax(dim=1) == data.name_R[rows_R])
        right_R = torch.cat(right)
        # A thing that is alone in its image has no other region that could be asked about.
        scores[name] = float((right_R[~alone_R] if name == "shuffled" else right_R).float().mean())
    return scores


def probe_vectors(
    train: PointedSet, test: PointedSet, maps: Sequence[str], *, names: int, steps: int, seed: int
) -> dict[str, float]:
    """Train a linear classifier on region vectors of one or several maps, and score it by size and control.

    Several maps have a layer each: linear adapters of maps are those of their vectors.
    """

    def join(data: PointedSet, prefix: str = "") -> Tensor:
        parts = [data.vectors[prefix + name] for name in maps]
        # Each map by itself: features of two towers differ in scale.
        return torch.cat([nn.functional.layer_norm(part, part.shape[-1:]) for part in parts], dim=1)

    inputs_RC = join(train)
    rng = seeds.generator("study ferret", seed)
    num_images = int(train.image_R.max()) + 1
    images = torch.from_numpy(rng.permutation(num_images)[: round(TRAIN_SHARE * num_images)])
    rows, _ = select_regions(train.image_R, images)
    with seeded(seed):
        model = nn.Linear(inputs_RC.shape[1], names)
    optimizer, schedule = _make_optimizer(model, steps)
    for _ in range(steps):
        batch = rows[torch.from_numpy(rng.integers(len(rows), size=VECTORS))]
        _step(optimizer, schedule, model(inputs_RC[batch]), train.name_R[batch])
    inputs_of = {"all": join(test), "another_image": join(test, "another_image/")}
    inputs_of |= {"no_image": torch.zeros_like(inputs_of["all"]), "shuffled": inputs_of["all"][test.neighbor_R]}
    with torch.inference_mode():
        right = {name: (model(inputs).argmax(dim=1) == test.name_R).float() for name, inputs in inputs_of.items()}
    small = test.longest_R <= SMALL
    parts = {"small": right["all"][small], "large": right["all"][~small]}
    alone = test.neighbor_R == torch.arange(len(test.neighbor_R))
    parts |= {"no_image": right["no_image"], "another_image": right["another_image"]}
    parts["shuffled"] = right["shuffled"][~alone]
    return {name: float(values.mean()) for name, values in parts.items()}


def _make_optimizer(model: nn.Module, steps: int) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=_DECAY)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps, pct_start=0.1)


def _step(
    optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler, logits: Tensor, names: Tensor
) -> None:
    optimizer.zero_grad(set_to_none=True)
    nn.functional.cross_entropy(logits, names).backward()
    optimizer.step()
    schedule.step()


def score_decoding(
    decoding: Decoding, *, size: tuple[int, int], sides: Sequence[int], count: int, seed: int
) -> dict[str, float]:
    """Return the mean IoU of boxes with themselves, sent through digits and back, by their side in pixels."""
    (width, height), scores = size, {}
    for side in sides:
        # The stream does not depend on the decoding: both are compared on the same boxes.
        rng = seeds.generator("study ferret decoding", seed, side)
        corners_N2 = rng.uniform(0, (width - side, height - side), size=(count, 2))
        boxes_N4 = np.concatenate([corners_N2, corners_N2 + side], axis=1)
        decoded = [_send(PixelBox(*map(float, box)), width, height, decoding) for box in boxes_N4]
        scores[f"iou_{side}"] = float(intersection_over_union(decoded, boxes_N4).mean())
    return scores


def _send(box: PixelBox, width: int, height: int, decoding: Decoding) -> list[float]:
    back = decode_region(encode_region(box, width=width, height=height), width=width, height=height, decoding=decoding)
    assert isinstance(back, PixelBox), "four bins are a box"
    return [back.x1, back.y1, back.x2, back.y2]
