"""Estimate of `foveate adapt train --dry-run`: what would be trained, in how many steps, and about how long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveate.adapt.data import load_images
from foveate.adapt.fit import is_solved
from foveate.adapt.load_backbone import LoadedBackbone, load_backbone
from foveate.adapt.model import AdaptedModel
from foveate.adapt.prefix import FrozenPrefix
from foveate.adapt.recipe import AdaptRecipe
from foveate.adapt.scores import held_out_splits
from foveate.adapt.tasks import open_task
from foveate.adapt.train import build_adapted, select_training_rows
from foveate.core.errors import UserError
from foveate.core.progress import silent
from foveate.training.classification import Criterion, LabeledImages, Rows, readable_batches
from foveate.training.costs import time_call
from foveate.training.distributed import start
from foveate.training.price import Price, PricedStage, optimizer_bytes

_TIMED_IMAGES = 16
_NOT_CACHED = "nothing: training.cache is off, or images vary from epoch to epoch"


def estimate_training(recipe: AdaptRecipe, data: str | Path, *, device: str | None = None) -> Price:
    """Return what a run would train, in how many steps, and about how long; nothing is trained or written.

    Args:
        device: that is timed, such as "cuda"; CUDA where there is one by default.
    """
    network = load_backbone(recipe.backbone, seed=recipe.training.seed)
    images = load_images(data, recipe.data, network.preprocess)
    rows = select_training_rows(recipe, images)
    settings = recipe.training.resolve(len(rows))
    adapted = build_adapted(recipe, network, images, rows)
    counts = adapted.count_parameters()
    caching = recipe.training.cache and not recipe.training.varies_images
    prefix = FrozenPrefix(adapted)
    caches = caching and prefix.kind != "nothing"
    missing = images.missing_classes(rows)
    solved = is_solved(adapted, recipe.method, recipe.training, missing=missing, cached=caches)
    # As `train_adapter`: a linear probe of the network as it came stands beside every other method.
    beside_probe = not solved and not missing
    with start(device or "auto") as here:
        criterion = None if solved else open_task(images, rows).criterion(recipe.training, rows)
        passing, freezing, stepping = _time_image(
            adapted, network, images, rows, criterion, device=here.device, prefix=prefix if caches else None
        )
    steps, trained = (0, 0) if solved else (settings.steps, counts.trained + counts.head)
    held_out = sum(len(images.rows(split)) for split in held_out_splits(recipe, images))
    measured = held_out * (2 if beside_probe else 1) + (len(rows) if beside_probe else 0)
    training = PricedStage(
        name="training",
        steps=steps,
        batch_size=settings.batch_size if steps else 0,
        samples=steps * settings.batch_size,
        trained=trained,
        seconds_per_step=stepping * settings.batch_size,
        seconds=stepping * steps * settings.batch_size,
        facts={"optimizer_bytes": optimizer_bytes(settings, trained)},
    )
    stages = [
        PricedStage(name="frozen parts", seconds=freezing * len(rows)),
        training,
        PricedStage(name="measuring", seconds=passing * measured),
    ]
    notes = [f"the times are those of passes of up to {_TIMED_IMAGES} images"]
    if solved or beside_probe:
        # Its time depends on the features, which nobody has yet.
        notes.append("the linear probe comes on top")
    return Price(
        parameters_by_part={"backbone": counts.backbone, "head": counts.head},
        stages=[stage for stage in stages if stage.seconds],
        facts={
            "method": recipe.method["method"],
            "trained_in_backbone": counts.trained,
            "task": images.task,
            "classes": len(images.classes),
            "images": len(rows),
            "cached": prefix.describe() if caching else _NOT_CACHED,
            "solved_by_lbfgs": solved,
        },
        notes=notes,
    )


def _time_image(
    adapted: AdaptedModel,
    network: LoadedBackbone,
    images: LabeledImages,
    rows: Rows,
    criterion: Criterion | None,
    *,
    device: torch.device,
    prefix: FrozenPrefix | None,
) -> tuple[float, float, float]:
    """Return about how many seconds it takes to predict an image, to cache it, and to train a step with it.

    Args:
        criterion: the loss; None of a solved head, which has no steps.
        prefix: what is computed once for each image; None where nothing is.
    """
    adapted.to(device)
    picked = rows[np.linspace(0, len(rows) - 1, min(_TIMED_IMAGES, len(rows))).astype(int)]
    read: dict[str, Any] = {}

    def read_images() -> None:
        with silent():
            parts = list(readable_batches(images, picked, {}, description="timing"))
        if not parts:
            raise UserError(f"{images.name}: none of the {len(picked)} images that are timed can be read")
        read["rows"] = [row for numbers, _ in parts for row in numbers]
        read["pixels"] = network.normalize(torch.cat([pixels for _, pixels in parts]).to(device))

    reading = time_call(read_images, device) / len(picked)
    pixels: Tensor = read["pixels"]
    caching = stepping = 0.0
    cached: Tensor | None = None
    with torch.no_grad():
        passing = reading + time_call(lambda: adapted.eval()(pixels), device) / len(picked)
        if prefix is not None:
            cached = prefix.compute(pixels)
            caching = reading + time_call(lambda: prefix.compute(pixels), device) / len(picked)
    if criterion is not None:
        targets = images.labels_N if images.targets_NT is None else images.targets_NT
        labels = torch.from_numpy(targets[read["rows"]]).to(device)
        adapted.train()

        def step() -> None:
            logits = adapted(pixels) if prefix is None or cached is None else prefix.logits(cached)
            criterion(logits.float(), labels)[0].backward()

        stepping = time_call(step, device) / len(picked) + (reading if prefix is None else 0.0)
    return passing, caching, stepping
