"""`foveate species train`: train a model on a graph or a survey."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import common, finish, path_option, run_option
from foveate.cli.verbs.species import RECIPE
from foveate.cli.verbs.species.options import list_labels


@click.command("train", cls=FieldsCommand, short_help="Train a model on a graph or a survey.")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1)
@click.option("--recipe", metavar="NAME|FILE", help="Shipped recipe or YAML file that options and OVERRIDES change.")
@path_option("--taxonomy", "Of a collection: table with columns taxon and parent.")
@click.option("--include-locations", is_flag=True, help="Write coordinates of cameras into the model folder.")
@fields(
    RECIPE,
    "method",
    "train_encoder",
    "graph.score",
    "graph.dim",
    "graph.contexts",
    "view.view",
    "view.strips",
    "data.features",
    "training.epochs",
    "training.taxonomy_passes",
    "training.balance",
    "prior",
    metavars={"data.features": "FILE"},
)
@run_option("runs/species")
@common()
def command(
    source: Path,
    overrides: tuple[str, ...],
    recipe: str | None,
    taxonomy: Path | None,
    include_locations: bool,
    settings: dict[str, Any],
    run: Path | None,
    as_json: bool,
    seed: int | None,
    device: str | None,
) -> None:
    """Train on SOURCE, the folder of a graph or a survey, and write a model folder.

    OVERRIDES change any other field of the recipe: encoder.kind=timm, graph.hour_input=circular, training.epochs=20.
    Ctrl-C or SIGTERM stops after a checkpoint; the same command resumes.

    \b
    Example:
      foveate species train graph --contexts taxonomy,place,time --run runs/species
      foveate species train survey --method erm --view whole --run runs/erm
      foveate species train graph --recipe cosmo-iwildcam --run runs/paper
    """
    from foveate.core.recipes import apply_overrides, format_overrides, read, validate
    from foveate.report import render
    from foveate.species.recipe import SpeciesRecipe
    from foveate.species.train import train_species

    if seed is not None:
        settings.setdefault("training", {})["seed"] = seed
    content = settings if recipe is None else read(recipe, format_overrides(settings))
    # Last: OVERRIDES win over the options, and both over the recipe.
    apply_overrides(content, overrides)
    where = "foveate species train" if recipe is None else f"recipe '{recipe}'"
    resolved = validate(SpeciesRecipe, content, where=where)
    outcome = train_species(
        source,
        run or Path("runs/species"),
        resolved,
        taxonomy=taxonomy,
        include_locations=include_locations,
        device=device,
        command=["foveate", *sys.argv[1:]],
    )
    result, paths = outcome.result, {"run": outcome.run.path}
    if outcome.model is None:
        stopped = f"stopped at step {result.steps}; run the same command to resume"
        finish(result.to_json(), [stopped], paths, as_json=as_json)
        # Ends with status 130, as Ctrl-C does anywhere else.
        raise KeyboardInterrupt
    contexts = ", ".join(result.contexts) or "the species alone"
    lines = [f"{result.images:,} images of {result.cameras} cameras, {len(result.classes)} classes; links: {contexts}"]
    scores = ", ".join(f"{name} {value:.3f}" for name, value in result.selection.items() if value is not None)
    lines += [f"validation ({result.validation_images:,} images): {scores}"] if scores else []
    lines += [f"  {count:,} images left out: {reason}" for reason, count in result.left_out.items()]
    untrained = [entry.label for entry in result.classes if not entry.images]
    if untrained:
        lines.append(f"  {len(untrained)} classes have no training image: {list_labels(untrained)}")
    paths |= {"model": outcome.model.folder, "report": render(outcome.run.path)}
    finish(result.to_json(), lines, paths, as_json=as_json)
