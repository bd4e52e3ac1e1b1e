"""`foveate species`: which species is on camera-trap images, at places that the model has never seen (COSMO)."""

from __future__ import annotations

import click

from foveate.cli.options import LazyCommands

RECIPE = "foveate.species.recipe:SpeciesRecipe"
MODEL = "foveate.species.fit:build_recipe_model"


@click.group("species", short_help="Recognize species on camera-trap images.")
def command() -> None:
    """Recognize species on camera-trap images, and hand a table to review and publish.

    \b
    Example:
      foveate species triage cards --out triage
      foveate collect cards --out survey
      foveate species check survey
      foveate species boxes survey
      foveate species train --collection survey --out runs/species
      foveate species predict runs/species/model cards-2 --out results
      foveate species review results --max-events 300
      foveate species summary results --out tables
      foveate species export results --to camtrap-dp --coordinate-digits 2
    """


command.commands = LazyCommands(
    __name__,
    {
        "survey": ("demo-frames", "check", "triage", "boxes", "build", "summary"),
        "model": ("train", "predict", "decide", "evaluate", "explain", "review", "export"),
    },
)
