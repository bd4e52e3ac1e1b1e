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
@click.argument("repository", required=False, metavar="[OWNER/NAME]")
@fields(
    "foveate.pretrain.export:ExportSettings",
    "to",
    "collection",
    "split",
    ("region_sources", "--region-source"),
    "format",
    "executor",
    "processes",
    repeat=("region_sources",),
    metavars={"to": "TARGET", "region_sources": "NAME"},
)
@fields("foveate.core.hub_upload:PushSettings", "private", "branch", into="pushing")
@path_option("--out", "New folder; SOURCE-TARGET by default.")
@dry_run_option("Print what would be written, or why it cannot be; write nothing.")
@common(seed=False)
def command(
    call: Call,
    source: Path,
    repository: str | None,
    out: Path | None,
    settings: dict[str, Any],
    pushing: dict[str, Any],
) -> None:
    """Write the model folder, tuned classifier or collection SOURCE in a format that other libraries load.

    Each export of a model is loaded again with the library it is for, and the differences found are printed and
    written into its README.md. The folder appears whole or not at all.

    A run folder goes to an experiment tracker: tensorboard, trackio, wandb or mlflow. A model, an adapter, an index, or
    a run with one goes to the hub, as OWNER/NAME.

    \b
    Example:
      foveate export runs/study-tour/cloc-seed0/model --to onnx
      foveate export runs/study-tour/cloc-seed0/model --to embeddings --collection runs/study-tour/collection
      foveate export runs/adapt-lora --to onnx
      foveate export runs/adapt-lora --to timm --out for-timm
      foveate export my-images --to webdataset --out shards
      foveate export my-images --to yolo --out for-ultralytics
      foveate export runs/adapt-lora --to tensorboard
      foveate export runs/adapt-lora --to hub my-name/my-model --private
    """
    from foveate.core.hub import is_tuned
    from foveate.core.hub_upload import TARGET
    from foveate.training.trackers import tracker_names

    if settings.get("to") == TARGET:
        _push(call, source, repository, out, settings, pushing)
        return
    if repository is not None or pushing:
        given = f"'{repository}'" if repository is not None else f"--{next(iter(pushing))}"
        raise UserError(f"{given} has no effect with --to {settings.get('to')}; it belongs to `--to {TARGET}`")
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


def _push(
    call: Call,
    source: Path,
    repository: str | None,
    out: Path | None,
    settings: dict[str, Any],
    pushing: dict[str, Any],
) -> None:
    """Upload a model, an adapter or an index to the hub."""
    from foveate.core.hub_upload import TARGET, PushSettings, plan_upload, push
    from foveate.core.paths import DATA
    from foveate.core.results import ExportResult

    if repository is None:
        raise click.UsageError(f"--to {TARGET} needs a repository: foveate export {source} --to {TARGET} OWNER/NAME")
    if out is not None or call.device is not None or len(settings) > 1:
        raise UserError(f"--to {TARGET} takes --private, --branch and --dry-run; {source} is uploaded as it is")
    wanted = call.check(PushSettings, pushing)
    upload = plan_upload(source, repository)
    if upload.folder.resolve().is_relative_to(DATA):
        raise UserError(f"{source}: ships with Foveate, so everyone has it; expected a model of yours")
    sizes, notes = upload.sizes(), list(upload.notes)
    result = ExportResult(
        source=str(source),
        to=TARGET,
        files=list(upload.files),
        notes=notes,
        dry_run=call.dry_run,
        repository=repository,
    )
    verb = "would upload" if call.dry_run else "uploaded"
    lines = [f"{verb} {name}, {_format_bytes(size)}" for name, size in sizes.items()]
    if not call.dry_run:
        address = push(upload, repository, private=wanted.private, branch=wanted.branch)
        result = result.model_copy(update={"address": address})
        lines.append(f"commit: {address}")
    call.finish(result.to_json(), [*lines, *notes])


def _format_bytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


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
