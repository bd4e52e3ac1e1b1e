"""Measures of the study `cloc` that `foveate evaluate` does not have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from foveate.pretrain.embed import CollectionEmbeddings
from foveate.records.collection import Collection
from foveate.records.geometry import View
from foveate.records.region_sources import is_pseudo_label
from foveate.vision.localizer.model import LocalizingModel
from foveate.vision.preprocess import move_boxes, place_image, render_image
from foveate_labs.studies.real_regions import read_details


def box_gain(seen: CollectionEmbeddings, collection: Collection) -> float:
    """Return 1 - (squared error of the head's boxes) / (squared error of the mean training box), seen concepts.

    0: no better than one box for everything. 1: exact.
    """
    parts = np.array([region.slice for region in seen.regions], dtype=object)
    asked_R = (parts != "unseen") & (parts != "unseen kind")
    training = collection.rows("train")
    boxes = [
        region.box.to_array()
        for row in training
        for region in collection.read_regions(int(row))
        if not is_pseudo_label(region.source)
    ]
    # Under a squared error no other constant box does better on the training boxes.
    mean_4 = np.mean(boxes, axis=0)
    truth_R4 = seen.boxes_R4[asked_R]
    head_error = float(np.square(seen.located["head"][asked_R] - truth_R4).mean())
    return 1.0 - head_error / float(np.square(mean_4 - truth_R4).mean())


@torch.inference_mode()
def details_accuracy(model: LocalizingModel, path: Path) -> float:
    """Return how often a detail's image is nearest to the embedding of its own box among all boxes of the image.

    Real images that no model was trained on; the detail is encoded as an image, the boxes as regions.
    """
    preprocess = model.image_encoder.preprocess
    right: list[bool] = []
    for details in read_details(path):
        placement = place_image(preprocess, details.image.size, View())
        tokens = model.encode_image_tokens(render_image(preprocess, details.image, placement)[None])
        boxes_R4, kept_R = move_boxes(placement, np.stack([box.to_array() for box in details.boxes]), min_visible=0)
        owner_R = torch.zeros(len(boxes_R4), dtype=torch.long, device=model.device)
        z_RE = model.encode_regions(tokens, torch.from_numpy(boxes_R4).to(model.device), owner_R)
        crops = [crop for crop, keep in zip(details.crops, kept_R, strict=True) if keep]
        pixels = [render_image(preprocess, crop, place_image(preprocess, crop.size, View())) for crop in crops]
        crop_RE = model.encode_image(torch.stack(pixels))
        nearest_R = (crop_RE @ F.normalize(z_RE.float(), dim=-1).T).argmax(1).cpu()
        right += (nearest_R == torch.arange(len(crops))).tolist()
    return float(np.mean(right))
