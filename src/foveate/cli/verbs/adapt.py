"""`foveate adapt train|merge`: tune a vision model with few parameters, and put what was learnt into its weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from foveate.cli.options import common, finish


@click.group("adapt", short_help="Tune a vision model with few parameters.")
def command() -> None:
    """Adapts a trained vision network to classes of pictures: sixteen methods, or named parts of the network.

    \b
    Example:
      foveate adapt train --backbone runs/tour/model --data my-pictures --field category --method lora
      foveate adapt merge runs/adapt-lora --to merged
    """


@command.command("train", short_help="Train an adapter on labelled pictures.")
@click.argument("overrides", nargs=-1)
@click.option(
    "--backbone",
    required=True,
    metavar="FOLDER|KIND:NAME",
    help="Model folder of Foveate, timm, transformers or open_clip; or timm:ARCHITECTURE, lite0 and the like.",
)
@click.option("--data", required=True, metavar="PATH", help="Collection folder, or an npz of images, labels, split.")
@click.option("--method", required=True, metavar="NAME", help="Such as lora; an unknown one lists all.")
@click.option("--field", "label", default=None, metavar="NAME", help="Label field of the collection.")
@click.option("--epochs", type=click.IntRange(1), default=None, help="Visits of each picture; 50 by default.")
@click.option("--shots", type=click.IntRange(1), default=None, help="Training pictures of each class; all by default.")
@click.option("--run", "run", type=click.Path(path_type=Path), help="Run folder; runs/adapt-METHOD by default.")
@click.option("--dry-run", is_flag=True, help="Print what would be trained and for how long; train and write nothing.")
@common()
def train(
    overrides: tuple[str, ...],
    backbone: str,
    data: str,
    method: str,
    label: str | None,
    epochs: int | None,
    shots: int | None,
    run: Path | None,
    dry_run: bool,
    as_json: bool,
    seed: int | None,
    device: str | None,
) -> None:
    """Trains METHOD on the pictures of --data and writes an adapter folder and its accuracy on held-out splits.

    OVERRIDES change single fields: of the method (rank=16), or of data, training and backbone
    (training.learning_rate=0.01). Ctrl-C or SIGTERM stops after a checkpoint; the same command goes on.

    \b
    Example:
      foveate adapt train --backbone runs/tour/model --data my-pictures --field category --method lora rank=16
      foveate adapt train --backbone timm:vit_tiny_patch16_224 --data mine.npz --method ssf --shots 10
    """
    from foveate.adapt.opening import backbone_settings
    from foveate.adapt.recipe import recipe_of

    given = {"data": {"field": label, "shots": shots}, "training": {"epochs": epochs, "seed": seed}}
    parts = {part: {k: v for k, v in fields.items() if v is not None} for part, fields in given.items()}
    recipe = recipe_of(backbone_settings(backbone), method, overrides, **parts)
    if dry_run:
        from foveate.adapt.pricing import lines, price

        priced = price(recipe, data)
        finish(priced, lines(priced), {}, as_json=as_json)
        return
    from foveate.adapt.train import train_adapter
    from foveate.report import render

    target = run or Path("runs") / f"adapt-{method}"
    done = train_adapter(recipe, data, target, device=device, command=["foveate", *sys.argv[1:]])
    if not done.is_main:
        return
    if done.folder is None:
        finish(done.result, [f"stopped after {done.result['steps']} updates"], {"run": target}, as_json=as_json)
        sys.exit(130)
    paths = {"run": target, "adapter": done.folder, "report": render(target)}
    finish(done.result, _lines(done.result), paths, as_json=as_json)


def _lines(result: dict[str, Any]) -> list[str]:
    numbers = result["parameters"]
    share = numbers["trained"] / max(1, numbers["backbone"])
    lines = [
        f"{result['steps']} updates in {result['seconds']:.0f} s on {result['pictures']} pictures; "
        f"trained {numbers['trained']:,} of {numbers['backbone']:,} numbers ({share:.2%}) and a head of "
        f"{numbers['head']:,}; computed once: {result['kept']}"
    ]
    for row in (result["evaluation"] or {"table": []})["table"]:
        value = row["values"]["adapted"]
        interval = "" if value["low"] is None else f" ({value['low']:.3f} to {value['high']:.3f})"
        lines.append(f"{row['question']}, {row['data']}: {value['value']:.3f}{interval}, n {row['n']}")
    return lines


@command.command("merge", short_help="Put an adapter into its backbone's weights.")
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option("--to", "to", required=True, type=click.Path(path_type=Path), help="Folder of the merged model.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["merged", "peft"]),
    default="merged",
    show_default=True,
    help="merged: weights in the backbone's own format; peft: an adapter folder of PEFT, not merged.",
)
@click.option("--backbone", default=None, metavar="FOLDER|KIND:NAME", help="Where the backbone is now, if it moved.")
@common(seed=False, device=False)
def merge(adapter: Path, to: Path, form: str, backbone: str | None, as_json: bool) -> None:
    """Merges ADAPTER (a folder of `adapt train`, or its run folder) and writes the model in its backbone's own format.

    Refuses with the reason where no weights of the backbone can do what the method does. Prints the largest
    difference of outputs: for timm, transformers and model folders of the model loaded again with its library.

    \b
    Example:
      foveate adapt merge runs/adapt-lora --to merged
      foveate adapt merge runs/adapt-lora --to for-peft --format peft
    """
    from foveate.adapt.verbs import merge_adapter

    result = merge_adapter(adapter, to, form=form, backbone=backbone)
    lines = [f"{result['method']} on {result['backbone']}, as {form}"]
    if result["difference"] is not None:
        lines.append(f"largest difference of outputs: {result['difference']:.3g}")
    finish(result, lines, {"model": to}, as_json=as_json)
