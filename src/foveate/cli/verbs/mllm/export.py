"""`foveate mllm export`: write a model for transformers, llama.cpp or PEFT."""

from __future__ import annotations

from pathlib import Path

import click

from foveate.cli.options import finish, json_option, path_option, quiet_option


@click.command("export", short_help="Write a model for transformers, llama.cpp or PEFT.")
@click.argument("model")
@click.option("--to", required=True, metavar="TARGET", help="Format: llava, llava-next, idefics3, llama-cpp or peft.")
@path_option("--out", "New folder; MODEL-TARGET by default.")
@json_option
@quiet_option
def command(model: str, to: str, out: Path | None, as_json: bool) -> None:
    """Write MODEL as a folder that transformers, llama.cpp or PEFT opens.

    A folder for transformers is opened with it and compared with MODEL. What the target does not compute is refused by
    its field.

    \b
    Example:
      foveate mllm export runs/mllm-my-llava/model --to llava --out my-llava
    """
    from foveate.mllm.export import export_mllm

    folder, result, lines = export_mllm(model, to=to, out=out)
    finish(result, lines, {"export": folder}, as_json=as_json)
