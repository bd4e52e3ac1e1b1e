"""`foveate study`: an experiment of a paper on built-in images, over several seeds, with its claims judged."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from foveate.cli.options import common, finish


@click.command("study", short_help="What a paper claims, run as an experiment.")
@click.argument("name")
@click.option("--run", "run", type=click.Path(path_type=Path), default=None, help="runs/study-NAME by default.")
@click.option("--quick", is_flag=True, help="Small: two seeds, fewer images and steps.")
@click.option("--seeds", type=click.IntRange(2, 50), default=None, help="Trainings of each variant; 5, quick 2.")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes, a thread each.")
@click.option(
    "--data", "data", multiple=True, type=click.Path(path_type=Path),
    help="Folder of optional data, such as an unpacked package; the study's page says which. May be repeated.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Only say what would be trained.")
@click.option("--so-far", is_flag=True, help="Only write the result of the trainings that are finished.")
@common()
def command(
    name: str,
    run: Path | None,
    quick: bool,
    seeds: int | None,
    workers: int,
    data: tuple[Path, ...],
    dry_run: bool,
    so_far: bool,
    as_json: bool,
    seed: int | None,
    device: str | None,
) -> None:
    """Trains all variants of the study NAME with several seeds and judges its claims. An unknown NAME lists all.

    The first training is timed, and the hours of the rest are printed before they start. Every finished training is
    a file: stopped and repeated, the study goes on, and the same command in a second terminal helps. Optional data
    (regions for cloc, public sets for feca and fedne) are used where they are installed; where not, the page says so.

    \b
    Example:
      foveate study cloc --quick --workers 2
      foveate study cloc --workers 2
      foveate study calibration
    """
    from foveate.report import render
    from foveate.studies.runner import run_study

    folder = run or Path("runs") / f"study-{name}{'-quick' if quick else ''}"
    result = run_study(
        name,
        folder,
        quick=quick,
        seeds=seeds,
        seed=seed or 0,
        workers=workers,
        device=device,
        data=data,
        dry_run=dry_run,
        so_far=so_far,
        command=["foveate", *sys.argv[1:]],
    )
    real = [
        f"{dataset['name']}: {'used' if dataset['used'] else 'not found (package ' + dataset['package'] + ')'}"
        for dataset in result["real"]
    ]
    if dry_run:
        finish(result, [f"{result['trainings']} trainings", *real], {}, as_json=as_json)
        return
    titles = {condition["key"]: condition["title"] for condition in result["conditions"]}
    lines = [
        f"{claim['verdict']}: {titles[claim['condition']]}: {claim['text']} ({_interval(claim['difference'])})"
        for claim in result["claims"]
    ]
    finish(result, [*lines, *real], {"result": folder / "result.json", "report": render(folder)}, as_json=as_json)


def _interval(difference: dict[str, float | None]) -> str:
    value, low, high = (difference[name] for name in ("value", "low", "high"))
    return f"{value:+.3f}" if low is None else f"{value:+.3f}, {low:+.3f} to {high:+.3f}"
