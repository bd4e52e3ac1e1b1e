"""Options that several commands of `foveate adapt` share."""

from __future__ import annotations

import click

SETTINGS = "foveate.adapt.settings"

moved_option = click.option(
    "--backbone", default=None, metavar="FOLDER|KIND:NAME", help="New path of the backbone, if it was moved."
)

backbone_option = click.option(
    "--backbone",
    required=True,
    metavar="FOLDER|KIND:NAME",
    help="Model folder of Foveate, timm, transformers or open_clip; or timm:NAME.TAG, torchvision:NAME, lite0.",
)

modules_option = click.option(
    "--modules",
    multiple=True,
    metavar="ROLE=PATTERN",
    help="Names of modules that methods change, such as qkv='blocks.*.attn.qkv'; repeatable, for other networks.",
)
