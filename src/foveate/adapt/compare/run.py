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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.adapt.compare.bench import Bench, BenchOutcome
from foveate.adapt.compare.comparison import Comparison, SelectedCandidate
from foveate.adapt.compare.grids import Candidate
from foveate.adapt.compare.pricing import check_hours
from foveate.adapt.compare.recipe import CompareRecipe, CompareTask
from foveate.adapt.load_backbone import LoadedBackbone, has_drop_path
from foveate.adapt.recipe import CompareRun
from foveate.adapt.registry import get_method
from foveate.adapt.results import (
    ComparedAgreement,
    ComparedBackbone,
    ComparedEnsemble,
    ComparedEntry,
    ComparedGrid,
    ComparedLine,
    ComparedRegions,
    ComparedResult,
)
from foveate.core.experiment_grid import Cell, CellResult, CellStore, run_cells
from foveate.core.files import sweep
from foveate.core.progress import Meter, say
from foveate.core.recipes import dump
from foveate.core.runs import RunFolder
from foveate.core.version import code_revision
from foveate.metrics.agreement import (
    agreement,
    compare_ensembles,
    confident_regions,
    ensemble,
    error_consistency,
    group_means,
    mean_disagreement,
    pareto_mask,
    relative_spread,
)
from foveate.metrics.classification import class_accuracies
from foveate.metrics.intervals import accuracy_interval, bootstrap_interval, seed_interval
from foveate.training.classification import LabeledImages, Rows
from foveate.training.logit_files import read_logits, write_logits
from foveate.training.loop import TrainingError

# Summarize a comparison: accuracy, size, time and memory of methods, how alike they are, and their ensembles.


# The two baselines between which methods with few parameters lie; they join no ensemble where others can.
BASELINES = ("linear", "full")
# The spread that the study publishes is of the 13 methods without these.
_NOT_IN_SPREAD = (*BASELINES, "vpt_shallow")
_COSTS = ("trained", "head", "step_bytes", "training_seconds")


def summarize(
    comparison: Comparison,
    selected: Mapping[tuple[str, str], SelectedCandidate],
    done: Mapping[tuple[str, str], Sequence[tuple[Cell, CellResult]]],
    paths: Mapping[tuple[str, str, int], Path],
) -> ComparedResult:
    """Build the result of a comparison.

    Args:
        selected, done: by key of the task and variant.
        paths: of the logits, by key of the task, variant and seed.
    """
    recipe, variants = comparison.recipe, list(comparison.plan.candidates)
    lines = [_build_line(comparison, variant, selected, done, paths) for variant in variants]
    complete = [line for line in lines if "mean" in line.means]
    if complete:
        flags = pareto_mask([line.trained or 0 for line in complete], [line.means["mean"] for line in complete])
        flagged = {line.variant for line, flag in zip(complete, flags, strict=True) if flag}
        lines = [line.model_copy(update={"unbeaten": line.variant in flagged}) for line in lines]
    methods = {line.variant: line.method for line in lines}
    tasks = []
    for task in recipe.tasks:
        logits: dict[str, list[NDArray[Any]]] = {}
        labels: NDArray[np.int64] | None = None
        # Sorted, so that the logits of a variant are in the order of its seeds.
        for (key, variant, _), path in sorted(paths.items()):
            if key == task.key:
                file = read_logits(path)
                logits.setdefault(variant, []).append(file.logits)
                labels = file.labels
        ordered = {variant: logits[variant] for variant in variants if variant in logits}
        parts = {} if labels is None else summarize_task(ordered, labels, methods=methods)
        tasks.append(comparison.tasks[task.key].model_copy(update=parts))
    return ComparedResult(
        backbone=ComparedBackbone(settings=comparison.network.settings, parameters=comparison.plan.backbone),
        grid=ComparedGrid(
            name=comparison.grid.name,
            description=comparison.grid.description,
            candidates={variant: len(of_variant) for variant, of_variant in comparison.plan.candidates.items()},
            training=comparison.grid.training,
            refused=comparison.plan.refused,
        ),
        seeds=recipe.seeds,
        tasks=tasks,
        lines=lines,
        spread=_spread_between(complete, grouped=len({task.group for task in recipe.tasks if task.group}) > 1),
        seconds=round(sum(outcome.seconds for finished in done.values() for _, outcome in finished), 1),
    )


def _spread_between(lines: Sequence[ComparedLine], *, grouped: bool) -> float | None:
    """Return the relative spread of the methods' mean accuracies as the study takes it; None for fewer than two.

    Args:
        grouped: tasks are in several groups; then it is that of the means of groups.
    """
    key = "mean of groups" if grouped else "mean"
    means = [line.means[key] for line in lines if line.method not in _NOT_IN_SPREAD]
    return relative_spread(means) if len(means) > 1 else None


def _build_line(
    comparison: Comparison,
    variant: str,
    selected: Mapping[tuple[str, str], SelectedCandidate],
    done: Mapping[tuple[str, str], Sequence[tuple[Cell, CellResult]]],
    paths: Mapping[tuple[str, str, int], Path],
) -> ComparedLine:
    method = get_method(comparison.grid.methods[variant])
    tasks: dict[str, ComparedEntry] = {}
    costs: dict[str, list[float]] = {name: [] for name in _COSTS}
    groups: dict[str, list[str]] = {}
    for task in comparison.recipe.tasks:
        selection, finished = selected[task.key, variant], done[task.key, variant]
        # A training that diverged has no accuracy: it counts as failed and is not averaged in as 0.
        converged = [outcome.values for _, outcome in finished if "test" in outcome.values]
        entry: dict[str, Any] = {
            "candidate": selection.candidate.describe(),
            "options": {"method": selection.candidate.method, "training": selection.candidate.training},
            "validation": selection.validation,
            "tried": selection.tried,
            "tied": selection.tied,
            "diverged": selection.diverged,
            "seeds": [values["test"] for values in converged],
            "failed": len(finished) - len(converged),
        }
        if converged:
            entry |= _accuracy([values["test"] for values in converged], paths, task.key, variant)
            entry["classes"] = float(np.mean([values["classes"] for values in converged]))
            if all("best" in values for values in converged):
                entry["best_epoch"] = float(np.mean([values["best"] for values in converged]))
            for name, of_tasks in costs.items():
                of_tasks.append(float(np.mean([values[name] for values in converged])))
            if task.group:
                groups.setdefault(task.group, []).append(task.key)
        tasks[task.key] = ComparedEntry(**entry)
    accuracies = {key: entry.value for key, entry in tasks.items() if entry.value is not None}
    # A mean over the tasks that went well would rank methods that fail on the hard ones first.
    is_complete = len(accuracies) == len(tasks)
    means = {name: float(np.mean(values)) if values else None for name, values in costs.items()}
    return ComparedLine(
        variant=variant,
        method=method.name,
        location=method.location,
        mergeable=method.mergeable,
        tasks=tasks,
        means=group_means(accuracies, groups) if is_complete else {},
        trained=means["trained"],
        head=means["head"],
        step_bytes=means["step_bytes"],
        training_seconds=means["training_seconds"],
    )


def _accuracy(
    values: Sequence[float], paths: Mapping[tuple[str, str, int], Path], task: str, variant: str
) -> dict[str, Any]:
    """Return the mean over seeds with its t-interval; of one seed an interval over test images."""
    # Seeds that agree to the image have no interval: one of no width would claim a certainty that equal counts of few
    # images do not give.
    if len(set(values)) == 1 < len(values):
        return {"value": values[0], "low": None, "high": None, "n": len(values)}
    if len(values) > 1:
        interval = seed_interval(list(values))
    else:
        path = next(path for (key, name, _), path in paths.items() if (key, name) == (task, variant))
        file = read_logits(path)
        interval = accuracy_interval(file.logits.argmax(axis=1) == file.labels)
    # A t-interval of few seeds may reach beyond what an accuracy can be.
    low, high = (None if end is None else min(1.0, max(0.0, end)) for end in (interval.low, interval.high))
    return {"value": interval.value, "low": low, "high": high, "n": interval.n}


def summarize_task(
    logits: Mapping[str, Sequence[NDArray[Any]]], labels_N: NDArray[np.int64], *, methods: Mapping[str, str]
) -> dict[str, Any]:
    """Return how alike the methods' answers to one task's test images are, and their ensembles.

    Args:
        logits: by variant, [N, K] of each seed.
        labels_N: class numbers.
        methods: variant to method; linear and full join no ensemble where two others are there.

    Returns:
        Fields of `ComparedTask`: `agreement` and `ensembles` of the first seeds, `regions` of the three most accurate
        methods, and in `seeds`, for each variant with several, their ensemble: what other initial values alone do.
    """
    if not logits:
        return {}
    names = list(logits)
    first = np.stack([logits[name][0] for name in names])
    summary: dict[str, Any] = {
        "agreement": ComparedAgreement(
            names=names,
            matrix=np.round(agreement(first), 6).tolist(),
            kappa=np.round(error_consistency(first, labels_N), 6).tolist(),
            disagreement=mean_disagreement(first) if len(names) > 1 else None,
        )
    }
    members = [name for name in names if methods.get(name, name) not in BASELINES]
    members = members if len(members) > 1 else names
    if len(members) > 1:
        summary["regions"] = _find_regions({name: logits[name][0] for name in members}, labels_N)
        summary["ensembles"] = _build_ensemble(np.stack([logits[name][0] for name in members]), labels_N, members)
    summary["seeds"] = {
        name: _build_ensemble(np.stack(of_seeds), labels_N) for name, of_seeds in logits.items() if len(of_seeds) > 1
    }
    return summary


def _find_regions(logits: Mapping[str, NDArray[Any]], labels_N: NDArray[np.int64]) -> ComparedRegions:
    """Count which of the three most accurate methods share confident correct and unconfident wrong answers."""
    accuracy = {name: float((values.argmax(axis=1) == labels_N).mean()) for name, values in logits.items()}
    names = sorted(logits, key=lambda name: -accuracy[name])[:3]
    # Confident is the more confident half of the images, as in the study's figure.
    stacked, half = np.stack([logits[name] for name in names]), max(1, len(labels_N) // 2)
    return ComparedRegions(
        names=names,
        num_confident=half,
        right=confident_regions(stacked, labels_N, num_samples=half, right=True),
        wrong=confident_regions(stacked, labels_N, num_samples=half, right=False),
    )


def _build_ensemble(
    logits_MNK: NDArray[Any], labels_N: NDArray[np.int64], members: Sequence[str] = ()
) -> ComparedEnsemble:
    combined = compare_ensembles(logits_MNK, labels_N)
    correct = (logits_MNK.argmax(axis=2) == labels_N).mean(axis=0)
    # Image by image, so that the interval accounts for members and ensemble being right on the same images.
    gain = (ensemble(logits_MNK).argmax(axis=1) == labels_N) - correct
    interval = bootstrap_interval(gain, seed=("ensemble", len(labels_N)))
    single = combined["single"]
    return ComparedEnsemble(
        members=list(members),
        count=len(logits_MNK),
        member={"worst": min(single), "mean": float(np.mean(single)), "best": max(single)},
        ensemble=combined["ensemble"],
        any_right=combined["any_right"],
        gain={**combined["gain"], "low": interval.low, "high": interval.high},
        disagreement=mean_disagreement(logits_MNK),
    )


DIVERGED = {"diverged": 1.0}
# Format of a cell's values; a folder of another format is refused like one of another recipe.
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
) -> BenchOutcome | None:
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
