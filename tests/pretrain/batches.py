"""Fixed batches for the tests of the training task, made without a dataset."""

from __future__ import annotations

from typing import Any

import torch

from foveate.pretrain.dataset import text_id
from foveate.pretrain.task import PretrainTask
from foveate.pretrain.train import build_model
from foveate.vision.localizer.model import LocalizingModel
from tiny import recipe

# The first four images carry all regions, unevenly; the others none, so that one of two ranks has none.
COUNTS = (3, 1, 0, 2, 0, 0, 0, 0)


def build_task(**changes: Any) -> PretrainTask:
    """The task of the tiny recipe in training mode; corner vectors and temperatures moved off their zeros."""
    model = build_model(recipe(**changes))
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
            parameter.add_(0.02 * noise)
    return PretrainTask(model).train()


def make_batch(model: LocalizingModel, counts: tuple[int, ...] = COUNTS, *, same_phrase: bool = True) -> dict[str, Any]:
    """Random images with texts, and `counts` regions; two phrases are equal unless told otherwise."""
    random = torch.Generator().manual_seed(5)
    size = model.image_encoder.preprocess.size
    total = sum(counts)
    texts = [f"image number {index}" for index in range(len(counts))]
    phrases = [f"thing {index}" for index in range(total)]
    if same_phrase and total > 3:
        phrases[3] = phrases[0]
    corners = torch.rand(total, 2, 2, generator=random).sort(dim=1).values
    corners[:, 1] = (corners[:, 1] + 0.05).clamp(max=1.0)
    return {
        "image": torch.randint(0, 256, (len(counts), 3, size, size), dtype=torch.uint8, generator=random),
        "text": model.text_encoder.frozen_features(texts),
        "boxes_R4": corners.reshape(total, 4),
        "region_text": model.text_encoder.frozen_features(phrases),
        "phrase_ids_R": torch.tensor([text_id(phrase) for phrase in phrases], dtype=torch.int64),
        "image_index_R": torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)),
        "counts_B": torch.tensor(counts),
        "lost_B": torch.zeros(len(counts), dtype=torch.int64),
    }


def reordered(batch: dict[str, Any], images: list[int], *, backwards: bool = False) -> dict[str, Any]:
    """The chosen images of a batch, in that order, each with its regions (backwards if wanted)."""
    regions, index = [], []
    for place, image in enumerate(images):
        own = (batch["image_index_R"] == image).nonzero()[:, 0].tolist()
        regions += reversed(own) if backwards else own
        index += [place] * len(own)
    chosen = {name: batch[name][images] for name in ("image", "text", "counts_B", "lost_B")}
    moved = {name: batch[name][regions] for name in ("boxes_R4", "region_text", "phrase_ids_R")}
    return {**chosen, **moved, "image_index_R": torch.tensor(index, dtype=torch.int64)}
