"""`foveate mllm import`: import a LLaVA, LLaVA-NeXT or Ferret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from foveate.cli.options import finish, json_option, path_option, quiet_option


@click.command("import", short_help="Import a LLaVA, LLaVA-NeXT or Ferret.")
@click.argument("source")
@path_option("--to", "New folder: gets language/ and model/.", required=True)
@click.option("--tower", metavar="SOURCE", help="Folder or hub id of Ferret's image tower, if not that of its config.")
@click.option("--chat", type=click.Choice(["vicuna", "chatml", "plain"]), help="Chat template; as a rule Vicuna's.")
@json_option
@quiet_option
def command(source: str, to: Path, tower: str | None, chat: Any, as_json: bool) -> None:
    """Write the model SOURCE, a folder or hub id, as a model folder that can be asked, trained and given regions.

    SOURCE is a LLaVA or LLaVA-NeXT in the format of transformers, or a Ferret or Ferret-UI in the layout of ml-ferret,
    with safetensors. Repeated, the command only checks.

    \b
    Example:
      foveate mllm import ./ferret-7b --to my-ferret
      foveate ask photo.jpg "What is <1>?" --box 120,40,300,310 --model my-ferret/model
    """
    from foveate.mllm.checkpoints.opening import import_model

    folder = import_model(source, to, tower=tower, chat=chat)
    finish({"kind": "imported-model", "source": source}, [f"imported {source}"], {"model": folder}, as_json=as_json)
