"""Estimate of `foveate adapt train --dry-run`: what would be trained, in how many steps, and about how long."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from foveate.adapt.data import load_images
from foveate.adapt.fit import is_solved
from foveate.adapt.load_backbone import LoadedBackbone, load_backbone
from foveate.adapt.model import AdaptedModel
from foveate.adapt.prefix import FrozenPrefix
from foveate.adapt.recipe import AdaptRecipe
from foveate.adapt.train import build_adapted, held_out_splits, select_training_rows
from foveate.core.errors import UserError
from foveate.core.progress import duration, silent
from foveate.training.classification import LabeledImages, Rows, readable_batches
from foveate.training.distributed import start

_TIMED_IMAGES = 16


def time_call(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of a call, its work on a CUDA device included."""
    began = time.monotonic()
    call()
    # CUDA runs asynchronously: without waiting, only the launch of the pass would be timed.
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic() - began


def estimate_training(recipe: AdaptRecipe, data: str | Path, *, device: str | None = None) -> dict[str, Any]:
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
    cached = prefix.describe() if caching else "nothing: training.cache is off, or images vary from epoch to epoch"
    missing = images.missing_classes(rows)
    solved = is_solved(
        adapted, recipe.method, recipe.training, missing=missing, cached=caching and prefix.kind != "nothing"
    )
    steps = 0 if solved else settings.steps
    # As `train_adapter`: a linear probe of the network as it came stands beside every other method.
    beside_probe = not solved and not missing
    with start(device or "auto") as here:
        seconds = _estimate_seconds(
            adapted,
            network,
            images,
            rows,
            device=here.device,
            prefix=prefix if caching and prefix.kind != "nothing" else None,
            samples=steps * settings.batch_size,
            splits=held_out_splits(recipe, images),
            beside_probe=beside_probe,
        )
    return {
        "method": recipe.method["method"],
        "classes": len(images.classes),
        "images": len(rows),
        "steps": steps,
        "samples": steps * settings.batch_size,
        **counts._asdict(),
        "cached": cached,
        # AdamW holds two float32 moments for each trained parameter.
        "optimizer_bytes": 8 * (counts.trained + counts.head) if steps else 0,
        "probe": solved or beside_probe,
        "seconds": seconds,
    }


def _estimate_seconds(
    adapted: AdaptedModel,
    network: LoadedBackbone,
    images: LabeledImages,
    rows: Rows,
    *,
    device: torch.device,
    prefix: FrozenPrefix | None,
    samples: int,
    splits: Sequence[str],
    beside_probe: bool,
) -> dict[str, float]:
    """Return about how long the parts of a run take on this device, from some training images.

    Args:
        prefix: what is computed once for each image; None where nothing is.
        samples: of all steps; 0 where the head is solved, whose time is not measured.
        splits: that are measured at the end.
        beside_probe: the features of the network as it came are computed, too.
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

    def per_image(call: Callable[[], object]) -> float:
        # The first call warms up; the better of two more counts: other processes can only slow one down.
        call()
        return min(time_call(call, device) for _ in range(2)) / len(picked)

    reading = per_image(read_images)
    pixels: Tensor = read["pixels"]
    with torch.no_grad():
        passing = reading + per_image(lambda: adapted.eval()(pixels))
        cached = None if prefix is None else prefix.compute(pixels)
        frozen = 0.0 if prefix is None else reading + per_image(lambda: prefix.compute(pixels))
    stepping = 0.0
    if samples:
        labels = torch.from_numpy(images.labels_N[read["rows"]]).to(device)
        adapted.train()

        def step() -> None:
            logits = adapted(pixels) if prefix is None or cached is None else prefix.logits(cached)
            cross_entropy(logits.float(), labels).backward()

        stepping = per_image(step) + (reading if prefix is None else 0.0)
    held_out = sum(len(images.rows(split)) for split in splits)
    measured = passing * (held_out * (2 if beside_probe else 1) + (len(rows) if beside_probe else 0))
    parts = {"frozen": frozen * len(rows), "training": stepping * samples, "measuring": measured}
    return {**parts, "total": sum(parts.values())}


def format_estimate(estimate: dict[str, Any]) -> Sequence[str]:
    """Format `estimate_training` as lines of text."""
    seconds = estimate["seconds"]
    names = {"frozen": "frozen parts", "training": "training", "measuring": "measuring"}
    parts = ", ".join(f"{name} {duration(seconds[key])}" for key, name in names.items() if seconds[key])
    # Its time depends on the features, which nobody has yet.
    unknown = "; the linear probe comes on top" if estimate["probe"] else ""
    return [
        f"{estimate['method']}: {estimate['trained']:,} of {estimate['backbone']:,} parameters and a head of "
        f"{estimate['head']:,}",
        f"{estimate['images']} training images of {estimate['classes']} classes, "
        + (f"{estimate['steps']} steps, {estimate['samples']:,} samples" if estimate["steps"] else "solved by L-BFGS"),
        f"cached: {estimate['cached']}",
        f"AdamW's moments: {estimate['optimizer_bytes'] / 2**20:.1f} MiB",
        f"about {duration(seconds['total'])} on this machine: {parts}{unknown} (from timed passes of up to "
        f"{_TIMED_IMAGES} images)",
    ]
