"""What a captioner's training would take, without writing anything: `foveate captioner train --dry-run`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from foveate.caption.small.model import CaptionerModel
from foveate.caption.small.recipe import CaptionerRecipe
from foveate.caption.small.samples import nothing_for
from foveate.caption.targets.material import read_material
from foveate.caption.targets.rewriting import open_rewriter
from foveate.caption.targets.rows import ALIGN_STAGE, FORMAT_STAGE, write_rows
from foveate.core import seeds
from foveate.records.collection import Collection

_EXAMINED = 500


def estimate(recipe: CaptionerRecipe, collection: Collection) -> dict[str, Any]:
    """Parameters (on the meta device), images with material, and from a sample of them the targets of each stage,
    their lengths and what is dropped, and training FLOPs (6 per parameter and position)."""
    with torch.device("meta"):
        model = CaptionerModel(recipe, vocabulary=recipe.vocabulary)
    parameters = sum(value.numel() for value in model.parameters())
    rows = collection.rows(recipe.data.split)
    drawn = seeds.generator("estimate", recipe.training.seed).permutation(len(rows))[:_EXAMINED]
    data = recipe.data.model_copy(update={"ocr": "none"})
    materials, sources = read_material(collection, np.sort(rows[drawn]), data, seed=recipe.training.seed)
    result: dict[str, Any] = {
        "images": len(rows),
        "examined": len(drawn),
        "sources_of_examined": sources,
        "parameters": parameters,
        "prefix": model.prefix_length,
    }
    if recipe.data.rewriter == "rules":
        targets = write_rows(materials, data, open_rewriter(data), seed=recipe.training.seed)
        visits = len({(row.stage, row.row) for row in targets.rows})  # one shows all formats of an image
        positions = model.prefix_length + sum(row.tokens for row in targets.rows) / max(1, visits)
        updates = {FORMAT_STAGE: recipe.training.steps, ALIGN_STAGE: recipe.alignment.steps}
        samples = sum(steps * recipe.stage_settings(stage).batch_size for stage, steps in updates.items())
        without = [
            stage for stage, steps in updates.items() if steps and all(row.stage != stage for row in targets.rows)
        ]
        result |= {"targets_of_examined": targets.summary(), "samples": samples, "stages_without_targets": without}
        result["training_flops"] = 6.0 * parameters * positions * samples
    return result


def lines(result: Mapping[str, Any]) -> Iterable[str]:
    """The estimate in words."""
    yield f"{result['images']} images in the split, {result['parameters']:,} parameters, prefix {result['prefix']}"
    known = ", ".join(f"{name} {count}" for name, count in result["sources_of_examined"].items())
    yield f"of {result['examined']} examined images: {known}"
    if "targets_of_examined" not in result:
        yield "targets are written by a language model: not estimated"
        return
    for name, counts in result["targets_of_examined"].items():
        yield f"targets {name}: " + (", ".join(f"{what} {count}" for what, count in counts.items()) or "none")
    yield from (f"of the examined images, {nothing_for(stage)}" for stage in result["stages_without_targets"])
    yield f"{result['samples']} samples, {result['training_flops']:.2g} FLOPs"
