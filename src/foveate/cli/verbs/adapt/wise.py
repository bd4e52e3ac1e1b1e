"""`foveate adapt wise`: interpolate between a network and its tuned version."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import common, finish, path_option, run_option
from foveate.cli.verbs.adapt.options import SETTINGS, moved_option

if TYPE_CHECKING:
    from foveate.adapt.results import WiseResult


@click.command("wise", cls=FieldsCommand, short_help="Interpolate between a network and its tuned version.")
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option(
    "--data", required=True, metavar="PATH[:FIELD]", help="In-distribution data with a validation and a test split."
)
@click.option(
    "--shifted", multiple=True, metavar="NAME=PATH[:FIELD]", help="Data under distribution shift. Repeatable."
)
@fields(f"{SETTINGS}:WiseSettings", "validation", "test", "points", "head", "at")
@path_option("--to", "Write the model at this alpha as an adapter to this folder.")
@moved_option
@run_option("runs/adapt-wise")
@common(seed=False)
def command(
    adapter: Path,
    data: str,
    shifted: tuple[str, ...],
    settings: dict[str, Any],
    to: Path | None,
    backbone: str | None,
    run: Path | None,
    as_json: bool,
    device: str | None,
) -> None:
    """Measure ADAPTER (a folder of `adapt train`, or its run folder) at alphas from 0, the original network, to 1.

    Prints the accuracy on own and shifted data at each alpha and recommends one, chosen on validation images alone.

    \b
    Example:
      foveate adapt wise runs/adapt-full --data my-images:category --shifted sketches=sketches:category
      foveate adapt wise runs/adapt-lora --data mine.npz --shifted night=night.npz --to robust
    """
    from foveate.adapt.compare.recipe import parse_task
    from foveate.adapt.robustness import measure_robustness
    from foveate.adapt.settings import WiseSettings
    from foveate.core.recipes import validate
    from foveate.report import render

    # Settings hold what the user gave: --at with its own default would otherwise count as given.
    if "at" in settings and to is None:
        raise click.UsageError("--at has no effect without --to")
    target = run or Path("runs") / "adapt-wise"
    result = measure_robustness(
        adapter,
        parse_task(data, what="--data"),
        target,
        validate(WiseSettings, settings, where="foveate adapt wise"),
        shifted=[parse_task(text, what="--shifted") for text in shifted],
        to=to,
        backbone=backbone,
        device=device,
        command=["foveate", *sys.argv[1:]],
    )
    paths = {"run": target, "report": render(target), **({} if to is None else {"adapter": to})}
    finish(result.to_json(), _format_curve(result), paths, as_json=as_json)


def _format_curve(result: WiseResult) -> list[str]:
    recommended = result.recommended
    titles = [image_set.title for image_set in result.sets]
    lines = [f"{result.method}: {result.rule}; the head is {result.head}", "  ".join(["alpha", *titles])]
    for number, alpha in enumerate(result.alphas):
        values = "  ".join(
            f"{image_set.accuracy[number].value:>{len(image_set.title)}.3f}" for image_set in result.sets
        )
        lines.append(f"{alpha:<5.3g}  {values}{'  <- recommended' if alpha == recommended.alpha else ''}")
    lines.append(f"recommended: alpha {recommended.alpha:g}, {recommended.rule}")
    if result.saved is not None:
        lines.append(f"written: the model at alpha {result.saved.alpha:g}")
    return lines
