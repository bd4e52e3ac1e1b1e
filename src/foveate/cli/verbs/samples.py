"""`foveate samples`: files to try the commands on."""

from __future__ import annotations

from pathlib import Path

import click

from foveate.cli.options import Call, common


@click.command("samples", short_help="Write sample files to try the commands on.")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@common(device=False)
def command(call: Call, folder: Path) -> None:
    """Write photographs, a clip, tables of two hospitals, a camera-trap card, a labeled folder and alt-texts into DIR.

    Nothing is downloaded and nothing is overwritten: DIR is new or empty. The output names a command to try on each.

    \b
    Example:
      foveate samples samples
    """
    from foveate.records.samples import write_samples

    samples = write_samples(folder, seed=call.seed or 0)
    width = max(len(str(sample.path)) for sample in samples)
    lines = []
    for sample in samples:
        lines += [f"{str(sample.path):{width}}  {sample.description}", f"  {sample.command}"]
    listed = [
        {"path": str(sample.path), "description": sample.description, "command": sample.command} for sample in samples
    ]
    call.finish({"kind": "samples", "samples": listed}, lines, {"samples": folder})
