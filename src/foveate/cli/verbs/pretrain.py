"""`foveate pretrain`: train CLIP or CLOC on a collection."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from foveate.cli.options import common, finish, workers_option


@click.command("pretrain", short_help="Train CLIP or CLOC on a collection.")
@click.argument("recipe")
@click.argument("overrides", nargs=-1)
@click.option("--collection", required=True, type=click.Path(path_type=Path), help="Collection folder.")
@click.option("--run", "run", type=click.Path(path_type=Path), help="Run folder; runs/RECIPE by default.")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default=None, help="The recipe's by default.")
@click.option("--steps", type=click.IntRange(1), default=None, help="Updates; the recipe's by default.")
@click.option("--no-evaluation", is_flag=True, help="Leave out the evaluation on the test split.")
@click.option("--dry-run", is_flag=True, help="Check recipe and collection, print sizes, train nothing.")
@workers_option
@common()
def command(
    recipe: str,
    overrides: tuple[str, ...],
    collection: Path,
    run: Path | None,
    precision: str | None,
    steps: int | None,
    no_evaluation: bool,
    dry_run: bool,
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
      foveate pretrain tour --collection my-pictures
      foveate pretrain tour regions.method=roi --collection my-pictures --run runs/roi --steps 300
    """
    from foveate.pretrain.recipe import PretrainRecipe
    from foveate.records.collection import Collection
    from foveate.settings.recipes import load

    given = {"training.seed": seed, "training.precision": precision, "training.steps": steps}
    given["training.workers"] = workers
    extra = [f"{field}={value}" for field, value in given.items() if value is not None]
    resolved = load(PretrainRecipe, recipe, [*overrides, *extra])
    opened = Collection.open(collection)
    if dry_run:
        _price(resolved, opened, as_json=as_json)
        return
    from foveate.pretrain.train import pretrain
    from foveate.report import render

    target = run or Path("runs") / Path(recipe).stem
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
        finish(done.result, [f"stopped after {done.result['steps']} steps"], {"run": target}, as_json=as_json)
        sys.exit(130)
    paths = {"run": target, "model": done.model_folder, "report": render(target)}
    finish(done.result, _lines(done.result), paths, as_json=as_json)


def _lines(result: dict) -> list[str]:
    lines = [f"{result['steps']} steps in {result['seconds']:.0f} s, {result['pictures']} pictures"]
    for row in (result["evaluation"] or {}).get("table", []):
        for column, value in row["values"].items():
            interval = "" if value["low"] is None else f" ({value['low']:.3f} to {value['high']:.3f})"
            lines.append(f"{row['question']}, {row['data']}, {column}: {value['value']:.3f}{interval}, n {row['n']}")
    return lines


def _price(recipe, collection, *, as_json: bool) -> None:  # type: ignore[no-untyped-def]
    import torch

    from foveate.pretrain.train import build_model

    with torch.device("meta"):
        model = build_model(recipe)
    parameters = sum(one.numel() for one in model.parameters())
    settings = recipe.training
    result = {
        "parameters": parameters,
        "steps": settings.steps,
        "samples": settings.steps * settings.batch_size,
        "pictures": len(collection.rows(recipe.data.split)),
        "tokens_per_picture": model.image_encoder.grid[0] * model.image_encoder.grid[1],
        "optimizer_bytes": 16 * parameters,
    }
    result["epochs"] = round(result["samples"] / max(result["pictures"], 1), 2)
    finish(
        result,
        [f"{name.replace('_', ' ')}: {value:,}" for name, value in result.items()],
        {},
        as_json=as_json,
    )
