"""`foveate adapt compare`: compare methods on your own tasks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import common, dry_run_option, finish, run_option
from foveate.cli.verbs.adapt.options import SETTINGS, modules_option

if TYPE_CHECKING:
    from foveate.adapt.results import ComparedResult


@click.command("compare", cls=FieldsCommand, short_help="Compare methods on your own tasks.")
@click.argument("overrides", nargs=-1)
@click.option(
    "--backbone",
    required=True,
    metavar="FOLDER|KIND:NAME",
    help="Backbone, as for `adapt train`; it is loaded only once.",
)
@modules_option
@click.option(
    "--tasks",
    "tasks",
    required=True,
    multiple=True,
    metavar="[[GROUP/]NAME=]PATH[:FIELD]",
    help="Collection, npz file, VTAB-1K task, or a folder of such tasks. Repeatable.",
)
@fields(
    "foveate.adapt.compare.recipe:CompareRecipe",
    "methods",
    "grid",
    "folds",
    "seeds",
    "budget",
    "peek",
    repeat=("methods",),
    metavars={"methods": "NAMES"},
)
@fields(f"{SETTINGS}:CompareTasks", "shots", "epochs", into="task_settings", repeat=("shots",))
@fields(f"{SETTINGS}:CompareRun", "max_hours", "save_adapters", into="run_settings")
@run_option("runs/adapt-compare")
@dry_run_option("Print the number of training runs and epochs, and the estimated time; train and write nothing.")
@common()
def command(
    overrides: tuple[str, ...],
    backbone: str,
    modules: tuple[str, ...],
    tasks: tuple[str, ...],
    settings: dict[str, Any],
    task_settings: dict[str, Any],
    run_settings: dict[str, Any],
    run: Path | None,
    dry_run: bool,
    as_json: bool,
    seed: int | None,
    device: str | None,
) -> None:
    """Try each method's candidates on validation images, train the best again on all, and test it once.

    OVERRIDES change fields of the recipe (validation=val, share=0.3) or of all trainings (training.batch_size=32).
    Ctrl-C or a kill loses nothing that is finished; the same command resumes. It may run several times at once.

    \b
    Example:
      foveate adapt compare --backbone my-vit --tasks mine=my-images:category --methods all
      foveate adapt compare --backbone timm:vit_base_patch16_224.augreg_in21k --tasks vtab-1k --grid vtab1k --dry-run
    """
    from foveate.adapt.compare.bench import Stopped
    from foveate.adapt.compare.comparison import Comparison
    from foveate.adapt.compare.pricing import format_cost
    from foveate.adapt.compare.recipe import build_recipe, parse_tasks
    from foveate.adapt.compare.run import compare
    from foveate.adapt.load_backbone import parse_backbone
    from foveate.adapt.settings import CompareRun
    from foveate.core.recipes import validate

    if seed is not None:
        settings["seed"] = seed
    # The grid has its own number of epochs, so only what was given goes into the recipe.
    training = {name: value for name, value in task_settings.items() if name == "epochs"}
    tasks_of_shots = parse_tasks(tasks, task_settings.get("shots", ()))
    recipe = build_recipe(parse_backbone(backbone, modules), tasks_of_shots, overrides, training=training, **settings)
    if dry_run:
        cost = Comparison(recipe).estimate(device=device or "auto")
        finish(cost, format_cost(cost), {}, as_json=as_json)
        return
    from foveate.report import render

    target = run or Path("runs") / "adapt-compare"
    try:
        result = compare(
            recipe,
            target,
            validate(CompareRun, run_settings, where="foveate adapt compare"),
            device=device,
            command=["foveate", *sys.argv[1:]],
        )
    except Stopped:
        finish({"status": "stopped"}, ["stopped; run the same command to resume"], {"run": target}, as_json=as_json)
        sys.exit(130)
    paths = {"run": target, "report": render(target)}
    finish(result.to_json(), _format_comparison(result), paths, as_json=as_json)


def _format_comparison(result: ComparedResult) -> list[str]:
    lines = []
    for task in result.tasks:
        lines.append(f"{task.title}: {task.tested} test images, chance {task.chance:.3f}; {task.selection}")
        entries = [(line.variant, line.tasks[task.key]) for line in result.lines]
        # Accuracies sort by their negative, so the key 1.0 puts those that did not converge last.
        for variant, entry in sorted(entries, key=lambda pair: 1.0 if pair[1].value is None else -pair[1].value):
            if entry.value is None:
                lines.append(f"  {variant:<14} did not converge")
                continue
            if len(entry.seeds) > 1 and entry.low is None:
                span = f" ({len(entry.seeds)} seeds, all equal)"
            else:
                span = "" if entry.low is None else f" ({entry.low:.3f} to {entry.high:.3f})"
            validation = "" if entry.validation is None else f"; validation {entry.validation:.3f}"
            candidate = f"; {entry.candidate}" if entry.candidate else ""
            best = "" if entry.best_epoch is None else f"; best epoch {entry.best_epoch:.3f} (peeks)"
            lines.append(f"  {variant:<14} {entry.value:.3f}{span}{validation}{best}{candidate}")
        if task.ensembles is not None:
            ensemble = task.ensembles
            short = len(ensemble.members) <= 4
            members = ", ".join(ensemble.members) if short else f"{ensemble.count} methods, without linear and full"
            members += ", the first seed of each" if task.seeds else ""
            lines.append(
                f"  ensemble of {members}: {ensemble.ensemble['logits']:.3f}, mean member "
                f"{ensemble.member['mean']:.3f}, best {ensemble.member['best']:.3f}; two of them disagree on "
                f"{ensemble.disagreement:.1%} of the images"
            )
    return lines
