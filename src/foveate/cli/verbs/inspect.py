"""`foveate inspect`: what is in a collection, with a gallery of records as a model sees them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from foveate.cli.options import common, finish


@click.command("inspect", short_help="What is in a collection.")
@click.argument("collection", type=click.Path(path_type=Path))
@click.option("--split", default=None, help="Only this split.")
@click.option("--recipe", default="tour", show_default=True, help="Recipe whose preprocessing the gallery shows.")
@click.option("--samples", type=click.IntRange(0, 500), default=24, show_default=True, help="Images in the gallery.")
@click.option("--run", "run", type=click.Path(path_type=Path), help="Folder for the page; runs/inspect by default.")
@common(device=False)
def command(
    collection: Path,
    split: str | None,
    recipe: str,
    samples: int,
    run: Path | None,
    as_json: bool,
    seed: int | None,
) -> None:
    """Counts, sizes, text lengths, region sizes, quarantine, and images *after* the recipe's preprocessing.

    \b
    Example:
      foveate inspect my-images
      foveate inspect my-images --split train --samples 48 --recipe my-recipe.yaml
    """
    from foveate.core.recipes import load
    from foveate.core.runs import RunFolder
    from foveate.pretrain.recipe import PretrainRecipe
    from foveate.pretrain.samples import sample_rows, write_samples
    from foveate.records.collection import Collection
    from foveate.records.inspection import histograms, quarantine_examples, summarize
    from foveate.report import render

    opened = Collection.open(collection)
    resolved = load(PretrainRecipe, recipe)
    folder = RunFolder.create(run or Path("runs/inspect"))
    summary = summarize(opened, split)
    rows = sample_rows(opened, count=samples, seed=seed or 0, split=split)
    written, unreadable = write_samples(opened, resolved, folder.path, rows, seed=seed or 0)
    result: dict[str, Any] = {
        "kind": "inspect",
        "collection": str(collection),
        "split": split,
        "recipe": recipe,
        "summary": summary,
        "histograms": histograms(opened, split),
        "quarantine": quarantine_examples(opened),
        "samples": written,
        "unreadable": unreadable,
    }
    folder.write_result(result)
    lines = [f"unreadable: {key}: {reason}" for key, reason in unreadable.items()]
    lines += [f"{name}: {_short(value)}" for name, value in summary.items() if value is not None]
    finish(result, lines, {"report": render(folder.path)}, as_json=as_json)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_short(inner)}" for name, inner in list(value.items())[:8]) or "none"
    return f"{value:,.3g}" if isinstance(value, float) else str(value)
