"""`foveate doctor`: is the installation whole, and can this machine train on this collection?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import Call, common, workers_option


@click.command("doctor", cls=FieldsCommand, short_help="Check the installation, a collection, a planned run.")
@click.argument("collection", required=False, type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[FIELD=VALUE]...")
@click.option("--recipe", default=None, help="Check a run of this recipe: a shipped name or a YAML file.")
@fields(
    "foveate.pretrain.settings:DoctorSettings",
    "devices",
    "hardware",
    "reader",
    "seconds",
    metavars={"hardware": "NAME"},
)
@workers_option
@common(device=False)
def command(
    call: Call, collection: Path | None, overrides: tuple[str, ...], recipe: str | None, settings: dict[str, Any]
) -> None:
    """Without arguments: libraries, weights and their checksums, extras. With a COLLECTION: how fast it is read,
    decoded and loaded. With --recipe too: what a run reaches, and whether it can be at all; FIELD=VALUE changes single
    fields. Exit status 1 when something makes it impossible. Writes nothing.

    \b
    Example:
      foveate doctor
      foveate doctor my-images
      foveate doctor my-images --recipe cloc-vit-b16 --devices 8 --hardware h100-80gb
    """
    from foveate.core.recipes import load
    from foveate.pretrain.doctor import examine, format_report, installation
    from foveate.pretrain.recipe import PretrainRecipe
    from foveate.pretrain.settings import DoctorSettings
    from foveate.records.collection import Collection

    if overrides and recipe is None:
        raise click.UsageError("fields can be changed only with --recipe")
    if collection is None:
        if recipe is not None:
            raise click.UsageError("--recipe needs a COLLECTION; without one, see `foveate pretrain RECIPE --dry-run`")
        result = installation(Path.cwd())
    else:
        # Without a recipe only the machine and the collection are measured.
        resolved = None if recipe is None else load(PretrainRecipe, recipe, list(overrides))
        result = examine(
            Collection.open(collection),
            resolved,
            call.check(DoctorSettings, settings),
            workers=call.workers,
            seed=call.seed or 0,
        )
    call.finish(result, format_report(result), {})
    # After the report, so that a script can stop and a person still reads everything.
    if result["problems"]:
        sys.exit(1)
