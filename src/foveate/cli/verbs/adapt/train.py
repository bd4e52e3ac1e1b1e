"""`foveate adapt train`: train an adapter on labeled images."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import common, dry_run_option, finish, run_option
from foveate.cli.verbs.adapt.options import backbone_option, modules_option

if TYPE_CHECKING:
    from foveate.adapt.results import AdaptResult
    from foveate.core.results import Value


@click.command("train", cls=FieldsCommand, short_help="Train an adapter on labeled images.")
@click.argument("overrides", nargs=-1)
@backbone_option
@modules_option
@click.option(
    "--data",
    required=True,
    metavar="PATH",
    help="Collection folder, or an npz file with the arrays images, labels and split.",
)
@click.option(
    "--method", required=True, metavar="NAME", help="Method name, such as lora; an unknown name prints the list."
)
@fields(
    "foveate.adapt.recipe:AdaptRecipe",
    "data.field",
    "data.shots",
    "training.epochs",
    ("head", "--head-from"),
    "training.head_init",
    metavars={"head": "FOLDER"},
)
@run_option("runs/adapt-METHOD")
@dry_run_option("Print what would be trained and the estimated time; train and write nothing.")
@common()
def command(
    overrides: tuple[str, ...],
    settings: dict[str, Any],
    backbone: str,
    modules: tuple[str, ...],
    data: str,
    method: str,
    run: Path | None,
    dry_run: bool,
    as_json: bool,
    seed: int | None,
    device: str | None,
) -> None:
    """Train METHOD on the images of --data and write an adapter folder and its accuracy on held-out splits.

    OVERRIDES change single fields: of the method (rank=16), or of data, training and backbone
    (training.learning_rate=0.01). Ctrl-C or SIGTERM stops after a checkpoint; the same command resumes.

    \b
    Example:
      foveate adapt train --backbone my-vit --data my-images --field category --method lora rank=16
      foveate adapt train --backbone timm:resnet50.a1_in1k --data mine.npz --method bitfit --shots 10
    """
    from foveate.adapt.load_backbone import parse_backbone
    from foveate.adapt.recipe import build_recipe

    data_settings, training = settings.get("data", {}), settings.get("training", {})
    if seed is not None:
        training["seed"] = seed
    recipe = build_recipe(
        parse_backbone(backbone, modules),
        method,
        overrides,
        head=settings.get("head"),
        data=data_settings,
        training=training,
    )
    if dry_run:
        from foveate.adapt.estimate import estimate_training, format_estimate

        estimate = estimate_training(recipe, data, device=device)
        finish(estimate, format_estimate(estimate), {}, as_json=as_json)
        return
    from foveate.adapt.train import train_adapter
    from foveate.report import render

    target = run or Path("runs") / f"adapt-{method}"
    outcome = train_adapter(recipe, data, target, device=device, command=["foveate", *sys.argv[1:]])
    # Under torchrun every process gets here; only one prints and writes the page.
    if not outcome.is_main:
        return
    result = outcome.result
    if outcome.folder is None:
        stopped = f"stopped at step {result.steps}; run the same command to resume"
        finish(result.to_json(), [stopped], {"run": target}, as_json=as_json)
        sys.exit(130)  # as a shell reports a program that Ctrl-C ended
    paths = {"run": target, "adapter": outcome.folder, "report": render(target)}
    lines = _format_training(result)
    # Tuning lowers the logits of classes that it never saw, which a calibration with these files undoes.
    if result.absent and (target / "logits-test.npz").is_file():
        lines.append(
            f"{len(result.absent)} classes had no training image; bring them back: foveate calibrate "
            f"{target}/logits-test.npz --training {target}/logits-training.npz --classes-seen @{target}/seen.txt "
            f"--run {target}/calibration"
        )
    finish(result.to_json(), lines, paths, as_json=as_json)


def _format_training(result: AdaptResult) -> list[str]:
    counts = result.parameters
    share = counts.trained / max(1, counts.backbone)
    # First of all lines, because someone who stops reading after it must not take the tuned model for the better one.
    lines = [result.loss] if result.loss else []
    lines += [
        f"{result.steps} steps in {result.seconds:.0f} s on {result.images} images; trained {counts.trained:,} of "
        f"{counts.backbone:,} parameters ({share:.2%}) and a head of {counts.head:,}; cached: {result.cached}"
    ]
    for row in [] if result.evaluation is None else result.evaluation.table:
        value = row.values["adapted"]
        if value is not None:
            untuned = row.values.get("features")
            beside = "" if untuned is None else f"; untuned features {_format_value(untuned)}"
            lines.append(f"{row.question}, {row.data}: {_format_value(value)}{beside}, n {row.n}")
    if result.absent:
        lines.append("untuned features: not measured, since a linear probe needs training images of every class")
    return lines


def _format_value(value: Value) -> str:
    interval = "" if value.low is None else f" ({value.low:.3f} to {value.high:.3f})"
    return f"{value.value:.3f}{interval}"
