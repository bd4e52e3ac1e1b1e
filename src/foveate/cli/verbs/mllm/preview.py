"""`foveate mllm preview`: a page of training samples as the model gets them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import common, finish, path_option, run_option

if TYPE_CHECKING:
    from foveate.mllm.results import PreviewResult


@click.command("preview", cls=FieldsCommand, short_help="A page of training samples as the model gets them.")
@click.argument("recipe")
@click.argument("overrides", nargs=-1)
@path_option("--collection", "Collection folder.", required=True)
@fields("foveate.mllm.preview_settings:PreviewSettings", "stage", "step", "samples")
@run_option("runs/mllm-preview", "Folder for the page")
@common()
def command(
    recipe: str,
    overrides: tuple[str, ...],
    collection: Path,
    settings: dict[str, Any],
    run: Path | None,
    as_json: bool,
    seed: int | None,
    device: str | None,
) -> None:
    """Write a page of the samples that `mllm train RECIPE` would load in a step: images, tokens, what is learned.

    Nothing is trained. Only the images of this one batch are encoded.

    \b
    Example:
      foveate mllm preview mllm-mini --collection questions
      foveate mllm preview mllm-mini --collection questions --stage alignment --step 20
    """
    from foveate.core.recipes import load, validate
    from foveate.mllm.preview import preview_recipe
    from foveate.mllm.preview_settings import PreviewSettings
    from foveate.mllm.recipe import MllmRecipe
    from foveate.records.collection import Collection
    from foveate.report import render

    checked = validate(PreviewSettings, settings, where="foveate mllm preview")
    resolved = load(MllmRecipe, recipe, overrides).with_training(seed=seed)
    target = run or Path("runs") / "mllm-preview"
    with Collection.open(collection) as opened:
        result = preview_recipe(resolved, opened, target, checked, device=device, command=["foveate", *sys.argv[1:]])
    finish(result.to_json(), _preview_lines(result), {"run": target, "report": render(target)}, as_json=as_json)


def _preview_lines(result: PreviewResult) -> list[str]:
    positions = [text + visual for text, visual in zip(result.lengths, result.visual, strict=True)]
    lines = [
        f"stage {result.stage}, step {result.step}: {result.batch} samples, {result.conversations} conversations, "
        f"{min(positions)} to {max(positions)} of {result.max_positions} positions, "
        f"{result.padding_share:.1%} padding, {result.learned_share:.1%} of the text learned"
    ]
    return lines + [f"left out: {entry.count:,} {entry.what}: {entry.reason}" for entry in result.left_out]
