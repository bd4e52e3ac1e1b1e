"""`foveate adapt import-peft`: make an adapter folder of a LoRA adapter of PEFT."""

from __future__ import annotations

from pathlib import Path

import click

from foveate.cli.options import common, finish, path_option, split_names
from foveate.cli.verbs.adapt.options import backbone_option, modules_option


@click.command("import-peft", short_help="Make an adapter folder of a LoRA adapter of PEFT.")
@click.argument("folder", type=click.Path(path_type=Path))
@backbone_option
@modules_option
@path_option("--to", "Folder of the adapter; must be empty.", required=True)
@click.option(
    "--classes",
    multiple=True,
    metavar="NAMES",
    help="Class names of the head, with commas, or @FILE with one a line; where FOLDER has none. Repeatable.",
)
@common(seed=False, device=False)
def command(
    folder: Path, backbone: str, modules: tuple[str, ...], to: Path, classes: tuple[str, ...], as_json: bool
) -> None:
    """Read FOLDER, a LoRA adapter that PEFT wrote for the network --backbone, and write it as an adapter folder.

    From there on it is one like those of `adapt train`: predict, merge, wise, or train on from its head. PEFT keeps no
    digest of the network, so that --backbone has the weights it was trained on is not checked.

    \b
    Example:
      foveate adapt import-peft my-lora --backbone my-vit --to imported
      foveate adapt import-peft my-lora --backbone my-vit --classes oak,beech --to imported
    """
    from foveate.adapt import export

    result = export.import_peft(folder, to, backbone=backbone, classes=split_names(classes), modules=modules)
    lines = [
        f"{result.method}: {result.parameters.trained:,} of {result.parameters.backbone:,} parameters, matched "
        f"{result.matched}; a head of {len(result.classes)} classes"
    ]
    finish(result.to_json(), lines, {"adapter": to}, as_json=as_json)
