"""`foveate species explain`: show what is behind the answer for one image."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from foveate.cli.options import common, finish, path_option
from foveate.cli.verbs.species.options import RESULTS_ARGUMENT


@click.command("explain", short_help="Show what is behind the answer for one image.")
@RESULTS_ARGUMENT
@click.argument("image")
@path_option("--training", "Collection that the model was trained on, for the nearest training images.")
@path_option("--out", "Folder of the page; RESULTS/explain by default.")
@common(seed=False)
def command(
    results: Path, image: str, training: Path | None, out: Path | None, as_json: bool, device: str | None
) -> None:
    """Show the steps of the decision about IMAGE, the nearest taxa of the graph, and the nearest training images.

    IMAGE is a key, or a path as the shell knows it.

    \b
    Example:
      foveate species explain results cards-2/A/IMG_0042.JPG --training survey
    """
    from foveate.report import render
    from foveate.species.explain import explain as explain_image
    from foveate.species.folder import open_species
    from foveate.species.predictions import Predictions

    predictions = Predictions.open(results)
    model = open_species(Path(predictions.config["model"]["path"]))
    target = out or results / "explain"
    made_by = ["foveate", *sys.argv[1:]]
    result = explain_image(predictions, model, image, target, training=training, device=device, command=made_by)
    lines = [
        f"{result.file}: {result.answer} {result.rank} {result.score:.2f}",
        *(f"  {step}" for step in result.steps),
    ]
    lines += [f"  alike in the graph: {taxon.name} {taxon.cosine:.2f} {taxon.relation}" for taxon in result.taxa[:5]]
    for near in result.images[:5]:
        lines.append(f"  near: {near.label or 'no label'}, camera {near.camera}, {near.cosine:.2f} ({near.key})")
    finish(result.to_json(), lines, {"report": render(target)}, as_json=as_json)
