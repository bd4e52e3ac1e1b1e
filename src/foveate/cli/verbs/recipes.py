"""`foveate recipes`: lists, shows and copies the recipes that come with Foveate."""

from __future__ import annotations

from pathlib import Path

import click

from foveate.cli.options import finish, json_option
from foveate.core.errors import UserError
from foveate.core.files import write_text_atomically


def _about(name: str) -> str:
    """Return the second comment line of a recipe: what it is for (the first is the command that runs it)."""
    from foveate.core.recipes import recipe_path

    comments = [
        line[1:].strip() for line in recipe_path(name).read_text(encoding="utf-8").splitlines() if line.startswith("#")
    ]
    return comments[1] if len(comments) > 1 else ""


@click.command("recipes", short_help="List, show or copy the shipped recipes.")
@click.argument("name", required=False)
@click.option(
    "--out",
    "target",
    type=click.Path(path_type=Path),
    help="Copy the recipe to this file; an existing file is not overwritten.",
)
@json_option
def command(name: str | None, target: Path | None, as_json: bool) -> None:
    """List the recipes; with NAME print one; with --out copy it, to be changed.

    \b
    Example:
      foveate recipes
      foveate recipes cloc-vit-b16
      foveate recipes tour --out my-recipe.yaml
    """
    from foveate.core.recipes import read_recipe_text, recipe_names, recipe_path

    if name is None:
        if target is not None:
            raise UserError("--out: name the recipe to copy, for example foveate recipes tour --out my.yaml")
        about = {recipe: _about(recipe) for recipe in recipe_names()}
        width = max(map(len, about))
        finish({"recipes": about}, (f"{recipe:{width}}  {text}" for recipe, text in about.items()), {}, as_json=as_json)
        return
    text = read_recipe_text(recipe_path(name))
    if target is None:
        finish({"name": name, "text": text}, [text.rstrip()], {}, as_json=as_json)
        return
    # Most likely a recipe that the user has changed already.
    if target.exists():
        raise UserError(f"{target}: exists already; a copy does not overwrite, choose another file")
    write_text_atomically(target, text)
    finish({"name": name}, [], {"recipe": target}, as_json=as_json)
