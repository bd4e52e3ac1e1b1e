"""`foveate adapt ...`: tune a vision model with few parameters, compare the methods, use and convert what was tuned."""

from __future__ import annotations

import click

from foveate.cli.options import LazyCommands


@click.group("adapt", short_help="Fine-tune a vision model with few parameters.")
def command() -> None:
    """Adapt a trained vision network to classes of images: sixteen methods, or named parts of the network.

    \b
    Example:
      foveate adapt train --backbone my-vit --collection my-images --field category --method lora
      foveate adapt predict runs/adapt-lora photos --out answers.csv
      foveate adapt merge runs/adapt-lora --out merged
      foveate adapt compare --backbone my-vit --tasks mine=my-images:category --methods all
    """


command.commands = LazyCommands(__name__, {"commands": ("train", "predict", "merge", "import-peft", "compare", "wise")})
