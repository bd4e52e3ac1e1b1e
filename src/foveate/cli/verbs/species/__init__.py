"""`foveate species`: which species is on camera-trap images, at places that the model has never seen (COSMO)."""

from __future__ import annotations

import click

from foveate.cli.verbs.species import (
    boxes,
    build,
    check,
    decide,
    demo_frames,
    evaluate,
    explain,
    export,
    predict,
    review,
    train,
)
from foveate.cli.verbs.species.train import RECIPE

__all__ = ["MODEL", "RECIPE", "command"]
MODEL = "foveate.species.fit:build_recipe_model"


@click.group("species", short_help="Recognize species on camera-trap images.")
def command() -> None:
    """Recognize species on camera-trap images, and hand a table to review and publish.

    \b
    Example:
      foveate collect cards --to survey
      foveate species check survey
      foveate species boxes survey
      foveate species train survey --run runs/species
      foveate species predict runs/species/model cards-2 --out results
      foveate species review results --max-events 300
      foveate species export results --to camtrap-dp --coordinate-digits 2
    """


for module in (demo_frames, check, boxes, build, train, predict, decide, evaluate, explain, review, export):
    command.add_command(module.command)
