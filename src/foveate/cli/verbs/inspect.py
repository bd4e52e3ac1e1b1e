"""`foveate inspect`: what is in a collection, with a gallery of records as a model sees them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import Call, common, run_option


@click.command("inspect", cls=FieldsCommand, short_help="Show the contents of a collection.")
@click.argument("collection", type=click.Path(path_type=Path))
@fields("foveate.records.inspection:InspectionSettings", "split", "recipe", "samples")
@run_option("runs/inspect", "Folder for the page")
@common(device=False)
def command(call: Call, collection: Path, settings: dict[str, Any]) -> None:
    """Show counts, sizes, text lengths, region sizes, quarantine, and images *after* the recipe's preprocessing.

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
    from foveate.records.inspection import InspectionSettings, histograms, quarantine_examples, summarize
    from foveate.report.render import render_and_tell

    opened = Collection.open(collection)
    selected = call.check(InspectionSettings, settings)
    split = selected.split
    # The recipe is read before the run folder is created: a misspelled name must not leave an empty folder.
    recipe = load(PretrainRecipe, selected.recipe)
    folder = RunFolder.create(call.run or Path("runs/inspect"))
    summary = summarize(opened, split)
    rows = sample_rows(opened, count=selected.samples, seed=call.seed or 0, split=split)
    written, unreadable = write_samples(opened, recipe, folder.path, rows, seed=call.seed or 0)
    result: dict[str, Any] = {
        "kind": "inspect",
        "collection": str(collection),
        "split": split,
        "recipe": selected.recipe,
        "summary": summary,
        "histograms": histograms(opened, split),
        "quarantine": quarantine_examples(opened),
        "samples": written,
        "unreadable": unreadable,
    }
    folder.write_result(result)
    # Reasons first: a long summary would push them off the screen.
    lines = [f"unreadable: {key}: {reason}" for key, reason in unreadable.items()]
    report, page_lines = render_and_tell(folder.path)
    call.finish(result, lines + page_lines, {"report": report})
