"""`foveate study`: run the experiments of a paper on built-in data with several seeds and judge its claims."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import Call, common, dry_run_option, run_option
from foveate.core.errors import UserError, choose

_FOLDER = click.Path(path_type=Path)


@click.command("study", cls=FieldsCommand, short_help="Test the claims of a paper with several seeds.")
@click.argument("name")
@run_option("runs/study-NAME, with --quick runs/study-NAME-quick,")
@fields("foveate_labs.studies.settings:StudySettings", "quick", "seeds", "workers", "variants")
@click.option(
    "--data", "data", multiple=True, type=_FOLDER,
    help="Folder of optional data, such as an unpacked package; the study's page says which. Repeatable.",
)  # fmt: skip
@dry_run_option("Print what would be trained, and train nothing.")
@click.option(
    "--so-far",
    is_flag=True,
    help="Train nothing; write the result of the finished training runs, or with all the overview.",
)
@click.option(
    "--published", type=_FOLDER, default=Path("docs/studies"), show_default=True,
    help="With all and --so-far: folder of published results, whose index.md is written.",
)  # fmt: skip
@common()
def command(
    call: Call, name: str, settings: dict[str, Any], data: tuple[Path, ...], so_far: bool, published: Path
) -> None:
    """Train all variants of the study NAME with several seeds and judge its claims. An unknown NAME lists all.

    NAME all runs every study and writes one table over them. With --so-far it trains nothing and makes the table from
    the published results, or with --out or --quick from the runs that are finished.

    The first training is timed, and the hours of the rest are printed before they start. Every finished training is
    a file: run the same command to resume, and in a second terminal to help. Optional data (regions for cloc, public
    sets for feca and fedne) are used where they are installed.

    \b
    Example:
      foveate study cloc --quick --workers 2
      foveate study calibration
      foveate study all --so-far
    """
    from foveate_labs.studies import ALL, study_names
    from foveate_labs.studies.settings import StudySettings

    size = call.check(StudySettings, settings)
    choose(name, [*study_names(), ALL], "study")
    # Slow imports from here on: a misspelled name must not wait for them.
    from foveate.report import render
    from foveate_labs.studies.runner import run_study

    quick = size.quick
    if name == ALL:
        if data:
            raise UserError("--data has no effect on 'all', which uses what is installed; give it to one study")
        if size.variants:
            raise UserError("--variants has no effect on 'all': every study has its own; give it to one study")
        options = {"seeds": size.seeds, "seed": call.seed or 0, "workers": size.workers, "device": call.device}
        _run_all(call, published, options, quick=quick, so_far=so_far)
        return
    # A folder of its own: a quick study has other trainings, and the full one's folder would refuse them.
    folder = call.run or Path("runs") / f"study-{name}{'-quick' if quick else ''}"
    result = run_study(
        name,
        folder,
        quick=quick,
        seeds=size.seeds,
        seed=call.seed or 0,
        workers=size.workers,
        variants=size.variants,
        device=call.device,
        data=data,
        dry_run=call.dry_run,
        so_far=so_far,
        command=call.command,
    )
    real = [
        f"{dataset['name']}: {'used' if dataset['used'] else 'not found (package ' + dataset['package'] + ')'}"
        for dataset in result["optional_data"]
    ]
    if call.dry_run:
        call.finish(result, [f"{result['trainings']} trainings", *real])
        return
    titles = {condition["key"]: condition["title"] for condition in result["conditions"]}
    lines = [
        f"{claim['verdict']}: {titles[claim['condition']]}: {claim['text']} ({_interval(claim['difference'])})"
        for claim in result["claims"]
    ]
    call.finish(result, [*lines, *real], {"result": folder / "result.json", "report": render(folder)})


def _run_all(call: Call, published: Path, options: dict[str, Any], *, quick: bool, so_far: bool) -> None:
    """Run all studies, or with `so_far` none, and write the table over them."""
    from foveate.core.files import write_text_atomically
    from foveate.report import render
    from foveate_labs.studies import ALL, overview, study_names
    from foveate_labs.studies.runner import run_study

    folder = call.run or Path("runs") / f"study-{ALL}{'-quick' if quick else ''}"
    if call.dry_run:
        plans = {
            name: run_study(name, folder / name, quick=quick, dry_run=True, **options)["trainings"]
            for name in study_names()
        }
        lines = [f"{name}: {count} trainings" for name, count in plans.items()]
        call.finish({"kind": "studies", "trainings": plans}, lines)
        return
    paths: dict[str, Path] = {}
    if not so_far:
        result = overview.run_all(folder, quick=quick, command=call.command, **options)
    elif call.run is not None or quick:
        result = overview.write_overview(overview.read_runs(folder), folder, source=str(folder), command=call.command)
    else:
        results = overview.read_all_published(published)
        result = overview.write_overview(results, folder, source=str(published), command=call.command)
        # Only published results make the page of the docs: a run of one machine must not replace it.
        paths["docs page"] = published / "index.md"
        write_text_atomically(paths["docs page"], (folder / "index.md").read_text(encoding="utf-8"))
    lines = [
        f"{study['study']}: {study['held']} of {study['must_hold']} checks that must hold are shown"
        for study in result["studies"]
    ]
    call.finish(result, lines, {**paths, "result": folder / "result.json", "report": render(folder)})


def _interval(difference: dict[str, float | None]) -> str:
    value, low, high = (difference[name] for name in ("value", "low", "high"))
    return f"{value:+.3f}" if low is None else f"{value:+.3f}, {low:+.3f} to {high:+.3f}"
