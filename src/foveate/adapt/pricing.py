"""What a run would take, said before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foveate.adapt.data import labeled
from foveate.adapt.opening import open_backbone
from foveate.adapt.prefix import Prefix
from foveate.adapt.recipe import AdaptRecipe
from foveate.adapt.table import backbone_numbers, trained_numbers
from foveate.adapt.train import build, training_rows


def price(recipe: AdaptRecipe, data: str | Path) -> dict[str, Any]:
    """Numbers trained, updates, visits, and what is computed once; nothing is trained or written."""
    opened = open_backbone(recipe.backbone, seed=recipe.training.seed)
    images = labeled(data, recipe.data, opened.preprocess)
    rows = training_rows(recipe, images)
    settings = recipe.training.resolved(len(rows))
    adapted = build(recipe, opened, images, rows)
    body, head = trained_numbers(adapted)
    prefix = Prefix(adapted)
    kept = recipe.training.keep and not recipe.training.flip
    return {
        "method": recipe.method["method"],
        "classes": len(images.classes),
        "images": len(rows),
        "updates": settings.steps,
        "visits": settings.steps * settings.batch_size,
        "trained": body,
        "head": head,
        "backbone": backbone_numbers(adapted),
        "kept": prefix.describe() if kept else "nothing: training.keep is off or images are mirrored",
        "optimizer_bytes": 8 * (body + head),
    }


def lines(priced: dict[str, Any]) -> Sequence[str]:
    """The same in words."""
    return [
        f"{priced['method']}: {priced['trained']:,} of {priced['backbone']:,} numbers and a head of {priced['head']:,}",
        f"{priced['images']} training images of {priced['classes']} classes, {priced['updates']} updates, "
        f"{priced['visits']:,} visits",
        f"computed once: {priced['kept']}",
        f"AdamW's moments: {priced['optimizer_bytes'] / 2**20:.1f} MiB",
    ]
