"""`foveate pretrain`: train CLIP or CLOC on a collection."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from foveate.cli.options import common, finish, workers_option

# What tests and docs build from a recipe that this verb runs.
RECIPE = "foveate.pretrain.recipe:PretrainRecipe"
MODEL = "foveate.pretrain.train:build_model"


@click.command("pretrain", short_help="Train CLIP or CLOC on a collection.")
@click.argument("recipe")
@click.argument("overrides", nargs=-1)
@click.option(
    "--collection",
    type=click.Path(path_type=Path),
    help="Collection folder; a dry run needs none, and checks it when it is given.",
)
@click.option("--run", "run", type=click.Path(path_type=Path), help="Run folder; runs/pretrain-RECIPE by default.")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default=None, help="The recipe's by default.")
@click.option("--steps", type=click.IntRange(1), default=None, help="Updates; the recipe's by default.")
@click.option("--no-evaluation", is_flag=True, help="Leave out the evaluation on the test split.")
@click.option("--dry-run", is_flag=True, help="Print what the run takes (FLOPs, memory, time, reading); train nothing.")
@click.option(
    "--devices", type=click.IntRange(1), default=None, help="Dry run: devices, one process each; 1 by default."
)
@click.option(
    "--hardware",
    default=None,
    metavar="NAME",
    help="Dry run: cpu (default), a100-80gb, h100-80gb, h200, tpu-v5p, or name=TFLOPs,GB.",
)
@click.option("--samples", type=float, default=None, help="Dry run: image visits in all, for example 14.4e9.")
@click.option("--mfu", type=float, default=None, help="Dry run: share of the peak that is reached; 0.4 by default.")
@workers_option
@common()
def command(
    recipe: str,
    overrides: tuple[str, ...],
    collection: Path | None,
    run: Path | None,
    precision: str | None,
    steps: int | None,
    no_evaluation: bool,
    dry_run: bool,
    devices: int | None,
    hardware: str | None,
    samples: float | None,
    mfu: float | None,
    workers: int | None,
    as_json: bool,
    seed: int | None,
    device: str | None,
) -> None:
    """Trains RECIPE (a shipped name or a YAML file) on a collection and writes a model folder.

    OVERRIDES change single fields, for example regions.grounding_weight=10. Ctrl-C or SIGTERM stops after a
    checkpoint; the same command goes on. `torchrun --nproc-per-node 2 -m foveate pretrain ...` runs it on several
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

    overrides_given = {"training.seed": seed, "training.precision": precision, "training.steps": steps}
    overrides_given["training.workers"] = workers
    extra = [f"{field}={value}" for field, value in overrides_given.items() if value is not None]
    resolved = load(PretrainRecipe, recipe, [*overrides, *extra])
    pricing = {"devices": devices, "hardware": hardware, "samples": samples, "mfu": mfu}
    requested: dict[str, Any] = {name: value for name, value in pricing.items() if value is not None}
    if dry_run:
        from foveate.pretrain.pricing.price import format_price, price

        priced = price(resolved, collection=None if collection is None else Collection.open(collection), **requested)
        finish(priced, format_price(priced), {}, as_json=as_json)
        return
    if requested:
        raise click.UsageError(f"--{next(iter(requested))} belongs to --dry-run")
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
