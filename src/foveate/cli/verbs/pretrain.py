"""`foveate pretrain`: train CLIP or CLOC on a collection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.recipe_call import RecipeCall, recipe_command

# What tests and docs build from a recipe that this verb runs.
RECIPE = "foveate.pretrain.recipe:PretrainRecipe"
MODEL = "foveate.pretrain.train:build_model"


@click.command("pretrain", cls=FieldsCommand, short_help="Train CLIP or CLOC on a collection.")
@recipe_command(
    "runs/pretrain-RECIPE",
    dry_run="Estimate FLOPs, memory, time and data rate of the run; train nothing.",
    collection="Collection folder; optional for a dry run, which checks it if it is given.",
)
@fields(RECIPE, "training.precision", "training.steps", of_recipe=True)
@click.option("--no-evaluation", is_flag=True, help="Skip the evaluation on the test split.")
@fields(
    "foveate.training.price:PriceSettings",
    "devices",
    "hardware",
    "samples",
    "mfu",
    into="pricing",
    metavars={"hardware": "NAME"},
)
def command(call: RecipeCall, settings: dict[str, Any], no_evaluation: bool, pricing: dict[str, Any]) -> None:
    """Train RECIPE (a shipped name or a YAML file) on a collection and write a model folder.

    FIELD=VALUE changes single fields, for example regions.grounding_weight=10. Ctrl-C or SIGTERM stops after a
    checkpoint; the same command resumes. `torchrun --nproc-per-node 2 -m foveate pretrain ...` runs it on several
    processes.

    \b
    Example:
      foveate pretrain tour --collection my-images
      foveate pretrain tour regions.method=roi --collection my-images --out runs/roi --steps 300
      foveate pretrain cloc-vit-l14-336 --dry-run --devices 64 --hardware h100-80gb
    """
    from foveate.pretrain.recipe import PretrainRecipe
    from foveate.records.collection import Collection

    resolved = call.load(PretrainRecipe, call.options(settings))
    if call.dry_run:
        from foveate.pretrain.pricing import price_recipe
        from foveate.training.price import format_price

        opened = None if call.collection is None else Collection.open(call.collection)
        priced = price_recipe(resolved, collection=opened, **pricing)
        call.finish(priced.to_json(), format_price(priced))
        return
    call.refuse_pricing(pricing)
    opened = Collection.open(call.data)
    from foveate.pretrain.train import pretrain
    from foveate.report.render import render_and_tell

    run = call.run or Path("runs") / f"pretrain-{call.name}"
    split = None if no_evaluation else "test"
    done = pretrain(resolved, opened, run, device=call.device, command=call.command, evaluate_split=split)
    # Under torchrun every process gets here; only one prints and writes the page.
    if not done.is_main:
        return
    result = done.result.to_json()
    if done.model_folder is None:
        call.stop(result, run, step=done.result.steps)
    report, lines = render_and_tell(run)
    paths = {"run": run, "model": done.model_folder, "report": report}
    call.finish(result, lines, paths)
