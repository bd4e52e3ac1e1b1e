"""`foveate export`: a model, a collection or a run for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import Call, common, dry_run_option, path_option
from foveate.core.errors import UserError
from foveate.core.progress import say


@click.command("export", cls=FieldsCommand, short_help="Write a model, a collection or a run for other programs.")
@click.argument("source", type=click.Path(path_type=Path))
@fields(
    "foveate.pretrain.export:ExportSettings",
    "to",
    "collection",
    "split",
    ("region_sources", "--region-source"),
    "format",
    repeat=("region_sources",),
    metavars={"to": "TARGET", "region_sources": "NAME"},
)
@path_option("--out", "New folder; SOURCE-TARGET by default.")
@dry_run_option("Print what would be written, or why it cannot be; write nothing.")
@common(seed=False)
def command(call: Call, source: Path, out: Path | None, settings: dict[str, Any]) -> None:
    """Write the model folder, tuned classifier or collection SOURCE in a format that other libraries load.

    Each export of a model is loaded again with the library it is for, and the differences found are printed and
    written into its README.md. The folder appears whole or not at all.

    A run folder goes to an experiment tracker: tensorboard, trackio, wandb or mlflow.

    \b
    Example:
      foveate export runs/study-tour/cloc-seed0/model --to onnx
      foveate export runs/study-tour/cloc-seed0/model --to embeddings --collection runs/study-tour/collection
      foveate export runs/adapt-lora --to onnx
      foveate export runs/adapt-lora --to timm --out for-timm
      foveate export my-images --to webdataset --out shards
      foveate export my-images --to yolo --out for-ultralytics
      foveate export runs/adapt-lora --to tensorboard
    """
    from foveate.core.hub import is_tuned
    from foveate.training.trackers import tracker_names

    if settings.get("to") in tracker_names():
        _send(call, source, out, settings)
        return
    from foveate.pretrain.export import export

    if is_tuned(source):
        from foveate.adapt.exporting import export_tuned

        target = settings.pop("to")
        if settings:
            option = next(iter(settings)).replace("_", "-").removesuffix("s")
            raise UserError(f"--{option} has no effect on {source}, a tuned model; it belongs to `--to embeddings`")
        if call.device is not None:
            say(f"--device has no effect on {source}, a tuned model, which is exported and compared on the CPU")
        folder, result, lines = export_tuned(source, to=target, out=out, dry_run=call.dry_run)
    else:
        # What a target takes is known only to its module, so `export` refuses options that have no effect.
        folder, result, lines = export(source, out=out, device=call.device, dry_run=call.dry_run, **settings)
    call.finish(result.to_json(), lines, {} if call.dry_run else {"export": folder})


def _send(call: Call, run: Path, out: Path | None, settings: dict[str, Any]) -> None:
    """Send a run folder to a tracker, which keeps it where it keeps all runs."""
    from foveate.training.trackers import send_run

    tracker = settings["to"]
    if out is not None or call.device is not None or len(settings) > 1:
        raise UserError(f"--to {tracker} takes no other option than --dry-run: {run} is sent as it is")
    if call.dry_run:
        call.finish({"kind": "export", "to": tracker}, [f"would send {run} to {tracker}"])
        return
    rows = send_run(run, tracker)
    call.finish({"kind": "export", "to": tracker, "rows": rows}, [f"{rows} rows and the result sent to {tracker}"])
