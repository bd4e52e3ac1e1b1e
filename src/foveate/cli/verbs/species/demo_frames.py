"""`foveate species demo-frames`: say where real images are published, or import them from a folder."""

from __future__ import annotations

from pathlib import Path

import click

from foveate.cli.options import common, finish, path_option


@click.command("demo-frames", short_help="Say where real images are published, or import them from a folder.")
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@path_option("--to", "Collection folder, with FOLDER.")
@common(device=False, seed=False)
def command(folder: Path | None, to: Path | None, as_json: bool) -> None:
    """Say where forty real camera-trap images under permissive licenses are published, or import them from FOLDER.

    FOLDER has copies of one or more of the published folders. Images are known by their bytes, and get the label,
    credit and license that they are published with. Nothing is downloaded.

    \b
    Example:
      foveate species demo-frames
      foveate species demo-frames downloads --to demo
    """
    from foveate.core.errors import UserError
    from foveate.survey.demo_frames import describe_sets, import_demo_frames

    if folder is None or to is None:
        if folder is not None or to is not None:
            missing = "--to: missing; expected a collection folder" if to is None else "FOLDER: missing; --to needs one"
            raise UserError(missing)
        sets = describe_sets()
        lines = [f"{each['name']}: {each['images']} images, {each['license']}, {each['url']}" for each in sets]
        return finish({"sets": sets}, lines, {}, as_json=as_json)
    outcome = import_demo_frames(folder, to)
    finish(outcome.as_dict(), outcome.lines(), {"collection": to}, as_json=as_json)
