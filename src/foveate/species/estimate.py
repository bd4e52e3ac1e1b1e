"""Estimate of `foveate species train --dry-run`: the images, links and steps of a training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foveate.species.fit import order_passes
from foveate.species.links import LinearBaseline, build_score
from foveate.species.recipe import SpeciesRecipe
from foveate.species.train import identify_data, open_source, read_links


def estimate_training(recipe: SpeciesRecipe, source: Path, *, taxonomy: Path | None = None) -> dict[str, Any]:
    """Return what a run would train on, and in how many steps; no image is read, nothing is trained or written.

    Args:
        source: folder of a graph, or a collection with a camera-trap survey.
        taxonomy: see `train_species`.

    Raises:
        UserError: recipe, survey and taxonomy do not fit.
    """
    graph_settings, training = recipe.graph, recipe.training
    with open_source(source) as collection:
        graph, data = read_links(recipe, source, collection, taxonomy)
        identify_data(data, recipe.data.features)  # refuses a file of features that does not exist
        name = collection.name
    steps: dict[str, int] = {}
    if recipe.method != "linear_probe":
        # Only the score decides whether a pass has a last, smaller batch; the network itself need not be built.
        is_linked = recipe.method == "cosmo"
        score = build_score(graph_settings.score, graph_settings.dim, rows=graph_settings.conve_rows)
        steps = order_passes(score if is_linked else LinearBaseline, data, training).count_steps()
    per_epoch = sum(steps.values())
    return {
        "method": recipe.method,
        "data": name,
        "classes": len(data.classes),
        "images": len(data.train_rows),
        "validation_images": len(data.validation_rows),
        "contexts": list(data.present_contexts),
        "left_out": dict(graph.left_out),
        "untrained": graph.untrained_classes(),
        "steps_per_epoch": steps,
        "epochs": training.epochs if steps else 0,
        "steps": per_epoch * training.epochs,
        "idle": recipe.idle_fields(),
    }


def format_estimate(estimate: dict[str, Any]) -> Sequence[str]:
    """Format `estimate_training` as lines of text."""
    contexts = ", ".join(estimate["contexts"]) or "the species alone"
    lines = [
        f"{estimate['method']} on {estimate['data']}: {estimate['images']:,} training and "
        f"{estimate['validation_images']:,} validation images, {estimate['classes']} classes; links: {contexts}"
    ]
    if estimate["steps"]:
        passes = ", ".join(f"{name} {count:,}" for name, count in estimate["steps_per_epoch"].items())
        lines.append(f"at most {estimate['steps']:,} steps, {estimate['epochs']} epochs of {passes}")
    else:
        lines.append("solved, not trained in steps")
    lines += [f"  {count:,} images left out: {reason}" for reason, count in estimate["left_out"].items()]
    if estimate["untrained"]:
        lines.append(f"  {len(estimate['untrained'])} classes have no training image")
    lines += [f"  {name} has no effect with {reason}" for name, reason in estimate["idle"].items()]
    return [*lines, "dry run: no image was read, nothing was trained or written"]
