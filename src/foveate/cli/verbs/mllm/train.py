"""`foveate mllm train`: train the stages of a recipe, or price them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import common, dry_run_option, finish, path_option, run_option, workers_option


@click.command("train", cls=FieldsCommand, short_help="Train a multimodal model on a collection, in stages.")
@click.argument("recipe")
@click.argument("overrides", nargs=-1)
@path_option("--collection", "Collection folder; not needed for a dry run.")
@click.option("--add-regions", metavar="MODEL", help="Start from this model and give it the recipe's region encoder.")
@run_option("runs/mllm-RECIPE")
@dry_run_option("Print parameters, tokens, FLOPs, memory and time of every stage; train nothing.")
@fields(
    "foveate.mllm.recipe:MllmPriceSettings",
    "devices",
    "hardware",
    "mfu",
    "images",
    "text_tokens",
    "answer_tokens",
    into="pricing",
    metavars={"hardware": "NAME"},
)
@workers_option
@common()
def command(
    recipe: str,
    overrides: tuple[str, ...],
    collection: Path | None,
    add_regions: str | None,
    run: Path | None,
    dry_run: bool,
    pricing: dict[str, Any],
    workers: int | None,
    as_json: bool,
    seed: int | None,
    device: str | None,
) -> None:
    """Train RECIPE (a shipped name or a YAML file), all stages in order, on a collection with conversations.

    OVERRIDES change single fields, for example vocabulary=8192 or, of a stage, stages.instruction.training.steps=100.
    Ctrl-C or SIGTERM stops after a checkpoint; the same command resumes.

    \b
    Example:
      foveate collect questions --to questions
      foveate mllm train mllm-mini --collection questions
      foveate mllm train ferret-on-mini --collection referring
      foveate mllm train ferret-on-llava --add-regions ./llava-1.5-7b-hf --collection lvis
      foveate mllm train mm15-3b --dry-run --devices 64 --hardware h100-80gb
    """
    from foveate.core.recipes import load
    from foveate.mllm.recipe import MllmRecipe

    target = run or Path("runs") / f"mllm-{Path(recipe).stem.removeprefix('mllm-')}"
    if add_regions is not None:
        overrides = (*overrides, f"add_regions={_import_base(add_regions, target, dry_run=dry_run)}")
    resolved = load(MllmRecipe, recipe, overrides).with_training(seed=seed, workers=workers)
    if dry_run:
        from foveate.mllm.pricing import format_price, price_recipe

        priced = price_recipe(resolved, **pricing)
        finish(priced, format_price(priced), {}, as_json=as_json)
        return
    if pricing:
        raise click.UsageError(f"--{next(iter(pricing)).replace('_', '-')} belongs to --dry-run")
    if collection is None:
        raise click.UsageError("Missing option '--collection'.")
    from foveate.mllm.train import train_mllm
    from foveate.records.collection import Collection

    trained = train_mllm(
        resolved, Collection.open(collection), target, device=device, command=["foveate", *sys.argv[1:]]
    )
    # Under torchrun every process gets here; only one prints.
    if not trained.is_main:
        return
    result: dict[str, Any] = trained.result.to_json()
    if trained.model_folder is None:
        finish(result, ["stopped; run the same command to resume"], {"run": target}, as_json=as_json)
        sys.exit(130)
    from foveate.report import render

    paths = {"run": target, "model": trained.model_folder, "report": render(target)}
    finish(result, _stage_lines(result), paths, as_json=as_json)


def _import_base(model: str, run: Path, *, dry_run: bool) -> str:
    """Return the model folder to add regions to; a LLaVA is imported into the run folder first."""
    from foveate.mllm.checkpoints.opening import import_model, is_importable

    if not is_importable(model):
        return model
    # A dry run writes nothing, and the processes of torchrun would all import into the same folder.
    if dry_run or int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise click.UsageError(
            f"--add-regions: {model} must be imported before; run foveate mllm import {model} --to DIR, give DIR/model"
        )
    return str(import_model(model, run / "imported"))


def _stage_lines(result: dict[str, Any]) -> list[str]:
    """Format one line per stage: steps, minutes, and the last losses."""
    lines = []
    for stage in result["stages"]:
        metrics = ("token_accuracy", "nearest_name", "iou")
        last = ", ".join(f"{name} {stage['last'][name]:.3f}" for name in metrics if name in stage["last"])
        lines.append(f"{stage['name']}: {stage['steps']} steps in {stage['seconds'] / 60:.1f} min; {last}")
    return lines
