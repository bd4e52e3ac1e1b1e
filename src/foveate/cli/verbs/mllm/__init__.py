"""`foveate mllm ...`: plan images; train, evaluate and export multimodal models; fetch a language model."""

from __future__ import annotations

import click

from foveate.cli.options import LazyCommands

# What test and docs build from a recipe that this verb runs.
RECIPE = "foveate.mllm.recipe:MllmRecipe"
MODEL = "foveate.mllm.stages:build_recipe_model"
# Recipes of adapters, which have a model of their own.
OTHER_RECIPES = {
    "own-vlm": "foveate.mllm.tuning.recipe:TuningRecipe",
    "reader": "foveate.mllm.reader:ReadingRecipe",
}


@click.group("mllm", short_help="Plan and build multimodal language models.")
def command() -> None:
    """Plan and build models that read images and text.

    \b
    Example:
      foveate mllm plan scan.png receipt.jpg
      foveate mllm preview mllm-mini --collection questions
      foveate mllm train mllm-mini --collection questions
      foveate mllm fetch smollm2
    """


command.commands = LazyCommands(
    __name__,
    {
        "commands": (
            "plan",
            "train",
            "preview",
            "prepare-dense",
            "label",
            "evaluate",
            "calibrate",
            "export",
            "import",
            "fetch",
        )
    },
)
