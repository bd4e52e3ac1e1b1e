"""`foveate tour`: the main job on built-in images, from nothing to a page."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from foveate.cli.options import common, finish


@click.command("tour", short_help="All of it on built-in images, in minutes.")
@click.option("--run", "run", type=click.Path(path_type=Path), default=Path("runs/tour"), show_default=True)
@click.option("--seeds", type=click.IntRange(1, 20), default=1, show_default=True, help="Trainings of each model.")
@click.option("--scenes", type=click.IntRange(200), default=8000, show_default=True, help="Training scenes.")
@click.option("--test-scenes", type=click.IntRange(50), default=400, show_default=True, help="Held-out scenes.")
@click.option("--steps", type=click.IntRange(10), default=None, help="Updates; the recipes' by default.")
@common()
def command(
    run: Path,
    seeds: int,
    scenes: int,
    test_scenes: int,
    steps: int | None,
    as_json: bool,
    seed: int | None,
    device: str | None,
) -> None:
    """Builds a collection of real clip art, emoji and generated scenes, trains CLIP and CLOC on it, and asks both.

    Real images and scenes, seen and unseen concepts are reported apart. Ends with the path of one HTML page.
    Nothing is downloaded. Stopped and repeated, it goes on where it was.

    \b
    Example:
      foveate tour
      foveate tour --seeds 3 --run runs/tour-3-seeds
    """
    from foveate.report import render
    from foveate.studies.tour import tour

    folder = tour(
        run,
        seed=seed or 0,
        seeds=seeds,
        device=device,
        train_scenes=scenes,
        test_scenes=test_scenes,
        steps=steps,
        command=["foveate", *sys.argv[1:]],
    )
    from foveate.core.files import read_json

    result = read_json(folder / "result.json")
    lines = [
        f"{row['question']}, {row['data']}: "
        + ", ".join(f"{key} {value['value']:.3f}" for key, value in row["values"].items())
        for row in result["table"]
    ]
    lines.append(f"{result['seconds']['total']:.0f} s in all, {result['memory_gb']:.1f} GB of memory")
    paths = {"collection": folder / "collection", "model": folder / f"cloc-seed{seed or 0}" / "model"}
    finish(result, lines, {**paths, "report": render(folder)}, as_json=as_json)
