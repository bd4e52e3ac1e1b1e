"""`foveate adapt compare`: every method selected on validation images, trained again on all, tested once.

```python
from foveate.adapt.compare.recipe import CompareRecipe, parse_tasks
from foveate.adapt.compare.run import compare

recipe = CompareRecipe(backbone=parse_backbone("timm:vit_tiny_patch16_224"), tasks=parse_tasks(["mine=mine.npz"]))
result = compare(recipe, Path("runs/compare"))                  # result.lines, result.tasks; a page beside it
result = compare(recipe, folder, network=network, data={"mine": images})   # a network and images in memory
```

A study with its own cells uses the layers below: `bench.Bench.fit` trains one candidate, `splits.split_rows` gives the
rows, `grids.GRIDS` the candidates, `summary.summarize_task` agreement and ensembles of logits.

Each training is a cell (`foveate.core.experiment_grid`): finished ones are files, the same command resumes, and several
processes may work on one folder. Nothing looks at test images before the last training of a method.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from foveate.adapt.compare.bench import Bench, Fit
from foveate.adapt.compare.comparison import Comparison, SelectedCandidate
from foveate.adapt.compare.grids import Candidate
from foveate.adapt.compare.pricing import check_hours
from foveate.adapt.compare.recipe import CompareRecipe, CompareTask
from foveate.adapt.compare.summary import summarize
from foveate.adapt.load_backbone import LoadedBackbone, has_drop_path
from foveate.adapt.results import ComparedResult
from foveate.adapt.settings import CompareRun
from foveate.core.experiment_grid import Cell, CellResult, CellStore, run_cells
from foveate.core.files import sweep
from foveate.core.progress import Meter, say
from foveate.core.recipes import dump
from foveate.core.runs import RunFolder
from foveate.core.version import code_revision
from foveate.metrics.classification import class_accuracies
from foveate.training.classification import LabeledImages, Rows
from foveate.training.logit_files import write_logits
from foveate.training.loop import TrainingError

DIVERGED = {"diverged": 1.0}
# Of the values in a cell; a folder of another format is refused like one of another recipe.
CELL_FORMAT = 2


def compare(
    recipe: CompareRecipe,
    run_path: Path,
    settings: CompareRun | None = None,
    *,
    device: str | None = None,
    command: list[str] | None = None,
    network: LoadedBackbone | None = None,
    data: Mapping[str, LabeledImages] | None = None,
) -> ComparedResult:
    """Compare methods on tasks and write the run folder's result.json; the same call again resumes.

    Args:
        recipe: backbone, tasks, grid.
        run_path: run folder.
        settings: what it may cost, and what stays of it.
        device: such as "cuda"; CUDA where there is one by default.
        command: command line, for the page.
        network: a network in memory instead of `recipe.backbone`.
        data: images in memory, by the name of a task.

    Raises:
        UserError: a mistake in data or recipe, a grid that takes too long, or a folder of another comparison.
        Stopped: after a signal; what was finished stays.
    """
    settings = settings or CompareRun()
    comparison = Comparison(recipe, network=network, data=data)
    device = device or "auto"
    if not (run_path / "cells").is_dir():  # before the folder is created: a refusal leaves nothing behind
        check_hours(comparison.estimate(device=device), max_hours=settings.max_hours, grid=recipe.grid)
    run = RunFolder.create(run_path, command=command, recipe=dump(recipe))
    candidates = comparison.plan.candidates
    # Finished cells belong to exactly this; a folder of another recipe, data or candidates is refused.
    identity = {
        "format": CELL_FORMAT,
        "recipe": recipe.model_dump(mode="json"),
        "tasks": [task.to_json() for task in comparison.tasks.values()],
        "candidates": {
            name: [candidate.describe() for candidate in of_variant] for name, of_variant in candidates.items()
        },
    }
    store = CellStore(run.path / "cells", identity)
    _warn(comparison)
    trainings = comparison.list_trainings(store)
    if trainings:
        # Again for a resumed comparison: it may be allowed what it was refused as a whole.
        check_hours(comparison.estimate(device=device, store=store), max_hours=settings.max_hours, grid=recipe.grid)
        bench = Bench(comparison.network, device=device)
        began = time.monotonic()
        with Meter("comparing methods", len(trainings)) as meter:
            for task in recipe.tasks:
                for variant in candidates:
                    _train_candidates(comparison, store, bench, task, variant, meter)
                    _train_final(comparison, store, bench, task, variant, meter, run.path, save=settings.save_adapters)
        say(f"{len(trainings)} trainings in {time.monotonic() - began:.0f} s")
    selected, done, paths = _collect(comparison, store, run.path)
    result = summarize(comparison, selected, done, paths).model_copy(
        update={
            "title": f"{_count(len(candidates), 'method')} on {_count(len(recipe.tasks), 'task')}",
            "command": command or "",
            "recipe": recipe.model_dump(mode="json"),
            "revision": code_revision(),
        }
    )
    run.write_result(result.to_json())
    return result


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _warn(comparison: Comparison) -> None:
    """Print which options have no effect and which candidates are left out."""
    recipe, refused = comparison.recipe, comparison.plan.refused
    candidates = [candidate for of_variant in comparison.plan.candidates.values() for candidate in of_variant]
    drops = any(candidate.training.get("drop_path") for candidate in candidates)
    if drops and not has_drop_path(comparison.network.model):
        say("training.drop_path has no effect: the blocks of this network have none")
    # A field has no effect only if it has none for any candidate: each may set its own schedule.
    unused = [
        set(
            recipe.resolve_training(comparison.grid.training, candidate.training, seed=0).unused_fields(recipe.training)
        )
        for candidate in candidates
    ]
    for sentence in sorted(set.intersection(*unused)):
        say(sentence)
    for candidate in candidates:
        training = recipe.resolve_training(comparison.grid.training, candidate.training, seed=0)
        by_steps = not training.cache or training.varies_images or training.balanced or training.label_smoothing
        if candidate.method["method"] == "linear" and training.head_solver == "lbfgs" and by_steps:
            # Here, because trainings of a comparison print nothing.
            say("linear: with these training fields the head is trained by steps instead of solved")
            break
    if refused:
        say(f"{len(refused)} candidates are left out, such as {refused[0].variant}: {refused[0].reason}")
    without = {row.variant for row in refused} - set(comparison.plan.candidates)
    if without:
        say(f"methods without any candidate are left out: {', '.join(sorted(without))}")


def _train_candidates(
    comparison: Comparison, store: CellStore, bench: Bench, task: CompareTask, variant: str, meter: Meter
) -> None:
    cells = {cell: (candidate, fold) for cell, candidate, fold in comparison.selection_cells(task, variant)}

    def work(cell: Cell) -> dict[str, float]:
        candidate, fold = cells[cell]
        images, rows = comparison.open_task(task)
        learn, held_out = rows.folds[fold]
        fit = _fit(comparison, bench, images, candidate, cell, store, learn=learn, test=held_out)
        return DIVERGED if fit is None else {"validation": fit.accuracy, "training_seconds": fit.seconds}

    _run_cells(store, list(cells), work, meter)


def _train_final(
    comparison: Comparison,
    store: CellStore,
    bench: Bench,
    task: CompareTask,
    variant: str,
    meter: Meter,
    folder: Path,
    *,
    save: bool,
) -> None:
    selected = comparison.select(store, task, variant)
    assert selected is not None, "a candidate is selected once all of its cells are finished"

    def work(cell: Cell) -> dict[str, float]:
        # All candidates diverged: a final training of any of them would do so again.
        if selected.tied == 0:
            return DIVERGED
        images, rows = comparison.open_task(task)
        adapter = folder / "adapters" / task.key / f"{variant}-seed{cell.seed}" if save else None
        fit = _fit(
            comparison, bench, images, selected.candidate, cell, store, learn=rows.whole, test=rows.test, memory=True,
            peek=comparison.recipe.peek, save=adapter,
        )  # fmt: skip
        if fit is None:
            return DIVERGED
        path = logits_path(folder, task, cell)
        sweep(path)  # what a killed process left of the same file
        write_logits(path, logits=fit.logits, labels=fit.labels, class_names=list(images.classes))
        return {
            "test": fit.accuracy,
            "classes": float(class_accuracies(fit.logits.argmax(axis=1), fit.labels).accuracy_C.mean()),
            "trained": fit.trained,
            "head": fit.head,
            "step_bytes": fit.step_bytes,
            "training_seconds": fit.seconds,
            "steps": fit.steps,
            "unreadable": fit.unreadable,
            "cached": float(fit.cached != "nothing"),
            **({"best": max(fit.epochs), "best_epoch": 1.0 + int(np.argmax(fit.epochs))} if fit.epochs else {}),
        }

    _run_cells(store, comparison.final_cells(task, selected.candidate), work, meter)


def logits_path(folder: Path, task: CompareTask, cell: Cell) -> Path:
    """Return where a final training's logits of test images are."""
    # "NAME.CANDIDATE.final", and a name may have dots, too. Without the number of the candidate: whoever reads the
    # logits asks for a method and a seed.
    return folder / "logits" / task.key / f"{cell.variant.rsplit('.', 2)[0]}-seed{cell.seed}.npz"


def _run_cells(store: CellStore, cells: Sequence[Cell], work: Callable[[Cell], dict[str, float]], meter: Meter) -> None:
    for cell in run_cells(store, cells, work):
        meter.advance(note=cell.name)


def _fit(
    comparison: Comparison,
    bench: Bench,
    images: LabeledImages,
    candidate: Candidate,
    cell: Cell,
    store: CellStore,
    *,
    learn: Rows,
    test: Rows,
    memory: bool = False,
    peek: bool = False,
    save: Path | None = None,
) -> Fit | None:
    """Train a candidate; None where its loss was not finite."""
    recipe = comparison.recipe
    training = recipe.resolve_training(comparison.grid.training, candidate.training, seed=cell.seed)
    folder = store.work_folder(cell) / "training"
    try:
        return bench.fit(
            images, learn, candidate.method, training, folder=folder, test=test, memory=memory, peek=peek, save=save
        )
    # A candidate that diverges is a result of the comparison, not its end.
    except TrainingError:
        return None


Selections = dict[tuple[str, str], SelectedCandidate]
Finished = dict[tuple[str, str], list[tuple[Cell, CellResult]]]
LogitPaths = dict[tuple[str, str, int], Path]


def _collect(comparison: Comparison, store: CellStore, folder: Path) -> tuple[Selections, Finished, LogitPaths]:
    """Return, by task and variant, the selected candidates and finished cells; by seed too, where their logits are."""
    selected: Selections = {}
    done: Finished = {}
    paths: LogitPaths = {}
    for task in comparison.recipe.tasks:
        for variant in comparison.plan.candidates:
            selection = comparison.select(store, task, variant)
            assert selection is not None
            selected[task.key, variant] = selection
            cells = comparison.final_cells(task, selection.candidate)
            done[task.key, variant] = [(cell, outcome) for cell in cells if (outcome := store.done(cell)) is not None]
            for cell, outcome in done[task.key, variant]:
                if "test" in outcome.values:
                    paths[task.key, variant, cell.seed] = logits_path(folder, task, cell)
    return selected, done, paths
