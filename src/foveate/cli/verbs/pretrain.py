"""`foveate pretrain`: train CLIP or CLOC on a collection."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import common, dry_run_option, finish, path_option, run_option, workers_option

# What tests and docs build from a recipe that this verb runs.
RECIPE = "foveate.pretrain.recipe:PretrainRecipe"
MODEL = "foveate.pretrain.train:build_model"


@click.command("pretrain", cls=FieldsCommand, short_help="Train CLIP or CLOC on a collection.")
@click.argument("recipe")
@click.argument("overrides", nargs=-1)
@path_option("--collection", "Collection folder; optional for a dry run, which checks it if it is given.")
@run_option("runs/pretrain-RECIPE")
@fields(RECIPE, "training.precision", "training.steps", of_recipe=True)
@click.option("--no-evaluation", is_flag=True, help="Skip the evaluation on the test split.")
@dry_run_option("Estimate FLOPs, memory, time and data rate of the run; train nothing.")
@fields(
    "foveate.training.price:PriceSettings",
    "devices",
    "hardware",
    "samples",
    "mfu",
    into="pricing",
    metavars={"hardware": "NAME"},
)
@workers_option
@common()
def command(
    recipe: str,
    overrides: tuple[str, ...],
    collection: Path | None,
    run: Path | None,
    settings: dict[str, Any],
    no_evaluation: bool,
    dry_run: bool,
    pricing: dict[str, Any],
    workers: int | None,
    as_json: bool,
    seed: int | None,
    device: str | None,
) -> None:
    """Train RECIPE (a shipped name or a YAML file) on a collection and write a model folder.

    OVERRIDES change single fields, for example regions.grounding_weight=10. Ctrl-C or SIGTERM stops after a
    checkpoint; the same command resumes. `torchrun --nproc-per-node 2 -m foveate pretrain ...` runs it on several
    processes.

    \b
    Example:
      foveate pretrain tour --collection my-images
      foveate pretrain tour regions.method=roi --collection my-images --run runs/roi --steps 300
      foveate pretrain cloc-vit-l14-336 --dry-run --devices 64 --hardware h100-80gb
    """
    from foveate.core.recipes import load
    from foveate.pretrain.recipe import PretrainRecipe
    from foveate.records.collection import Collection

    training = {"seed": seed, "workers": workers, **settings.get("training", {})}
    # After the overrides, so that an option wins over the same field among them.
    extra = [f"training.{field}={value}" for field, value in training.items() if value is not None]
    resolved = load(PretrainRecipe, recipe, [*overrides, *extra])
    if dry_run:
        from foveate.pretrain.pricing import price_recipe
        from foveate.training.price import format_price

        opened = None if collection is None else Collection.open(collection)
        priced = price_recipe(resolved, collection=opened, **pricing)
        finish(priced.to_json(), format_price(priced), {}, as_json=as_json)
        return
    if pricing:
        raise click.UsageError(f"--{next(iter(pricing))} belongs to --dry-run")
    if collection is None:
        raise click.UsageError("Missing option '--collection'.")
    opened = Collection.open(collection)
    from foveate.pretrain.train import pretrain
    from foveate.report import render

    target = run or Path("runs") / f"pretrain-{Path(recipe).stem}"
    done = pretrain(
        resolved,
        opened,
        target,
        device=device,
        command=["foveate", *sys.argv[1:]],
        evaluate_split=None if no_evaluation else "test",
    )
    # Under torchrun every process gets here; only one prints and writes the page.
    if not done.is_main:
        return
    if done.model_folder is None:
        finish(
            done.result.to_json(),
            [f"stopped after {done.result.steps} steps; run the same command to resume"],
            {"run": target},
            as_json=as_json,
        )
        sys.exit(130)
    paths = {"run": target, "model": done.model_folder, "report": render(target)}
    result = done.result.to_json()
    finish(result, _lines(result), paths, as_json=as_json)


def _lines(result: dict) -> list[str]:
    lines = [f"{result['steps']} steps in {result['seconds']:.0f} s, {result['images']} images"]
    for row in (result["evaluation"] or {}).get("table", []):
        for column, value in row["values"].items():
            interval = "" if value["low"] is None else f" ({value['low']:.3f} to {value['high']:.3f})"
            lines.append(f"{row['question']}, {row['data']}, {column}: {value['value']:.3f}{interval}, n {row['n']}")
    return lines
