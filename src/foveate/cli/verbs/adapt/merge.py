"""`foveate adapt merge`: merge an adapter into its backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import common, finish, path_option
from foveate.cli.verbs.adapt.options import SETTINGS, moved_option


@click.command("merge", cls=FieldsCommand, short_help="Merge an adapter into its backbone's weights.")
@click.argument("adapter", type=click.Path(path_type=Path))
@path_option("--to", "Folder of the result; must be empty.", required=True)
@fields(f"{SETTINGS}:MergeSettings", "format")
@moved_option
@common(seed=False, device=False)
def command(adapter: Path, to: Path, settings: dict[str, Any], backbone: str | None, as_json: bool) -> None:
    """Merge ADAPTER (a folder of `adapt train`, or its run folder) and write the model in its backbone's own format.

    Refused with the reason where no weights of the backbone can do what the method does. Prints the largest
    difference of outputs: for timm, transformers and model folders of the model loaded again with its library.

    \b
    Example:
      foveate adapt merge runs/adapt-lora --to merged
      foveate adapt merge runs/adapt-lora --to for-peft --format peft
    """
    from foveate.adapt.export import merge_adapter
    from foveate.adapt.settings import MergeSettings

    form = MergeSettings(**settings).format
    result = merge_adapter(adapter, to, format=form, backbone=backbone)
    network = result.backbone.get("source") or result.backbone.get("model")
    lines = [f"{result.method} on {':'.join(filter(None, (result.backbone['kind'], network)))}, as {form}"]
    if result.difference is not None:
        lines.append(f"largest difference of outputs: {result.difference:.3g}")
    finish(result.to_json(), lines, {"model": to}, as_json=as_json)
