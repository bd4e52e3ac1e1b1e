"""`foveate adapt compare`: every method chosen on validation images, trained again on all, tested once.

```python
from foveate.adapt.compare.recipe import CompareRecipe, tasks_of
from foveate.adapt.compare.run import compare

recipe = CompareRecipe(backbone=backbone_settings("timm:vit_tiny_patch16_224"), tasks=tasks_of(["mine=mine.npz"]))
result = compare(recipe, Path("runs/compare"))                  # result["lines"], result["tasks"]; a page beside it
result = compare(recipe, folder, opened=opened, data={"mine": labeled})   # a network and images in memory
```

A study that has cells of its own uses the layers below: `bench.Bench.fit` trains one candidate, `splits.parts_of` gives
the rows, `grids.GRIDS` the candidates, `summary.task_summary` agreement and ensembles of logits.

Each training is a cell (`foveate.core.experiment_grid`): finished ones are files, the same command goes on, and several
processes may work on one folder. Nothing looks at test images before the last training of a method.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foveate.adapt.backbones.registry import view_of
from foveate.adapt.calibration.logit_files import write_logits
from foveate.adapt.compare.bench import Bench, Fit
from foveate.adapt.compare.grids import Candidate, Grid, grid_of
from foveate.adapt.compare.plan import Plan, plan
from foveate.adapt.compare.pricing import Speed, Training, measured, price, refuse_if_dear
from foveate.adapt.compare.recipe import CompareRecipe, CompareTask, most_numbers
from foveate.adapt.compare.splits import Parts, parts_of
from foveate.adapt.compare.summary import summarize
from foveate.adapt.data import Labeled, labeled
from foveate.adapt.load_backbone import Opened, open_backbone
from foveate.adapt.recipe import AdaptData
from foveate.core.experiment_grid import Cell, CellResult, CellStore, run_cells
from foveate.core.files import sweep
from foveate.core.progress import Meter, say
from foveate.core.recipes import dump
from foveate.core.runs import RunFolder
from foveate.core.version import code_revision
from foveate.metrics.classification import class_accuracies
from foveate.metrics.comparison import argmax_last
from foveate.training.loop import TrainingError

DIVERGED = {"diverged": 1.0}


@dataclass(frozen=True)
class Chosen:
    """The candidate of a method on a task: its validation accuracy, how many were tried, tied, and diverged."""

    candidate: Candidate
    validation: float | None
    tried: int
    tied: int
    diverged: int


class Comparison:
    """What all trainings of one comparison share; made by `compare`."""

    def __init__(
        self,
        recipe: CompareRecipe,
        *,
        opened: Opened | None = None,
        data: Mapping[str, Labeled] | None = None,
    ) -> None:
        self.recipe = recipe
        self.grid: Grid = grid_of(recipe.grid)
        self.opened = opened or open_backbone(recipe.backbone, seed=recipe.seed)
        self._given = dict(data or {})
        self._speeds: dict[str, Speed] = {}
        self._open: tuple[str, Labeled, Parts] | None = None
        self.about: dict[str, dict[str, Any]] = {}
        for task in recipe.tasks:  # mistakes in data are said before anything is trained
            self.parts(task)
        tower = view_of(self.opened.model).parameters_of_tower()
        most = most_numbers(recipe.budget, sum(value.numel() for value in tower.values()))
        self.plan: Plan = plan(self.opened, self.grid, recipe.methods, most=most)

    def parts(self, task: CompareTask) -> tuple[Labeled, Parts]:
        """The images and rows of a task; those of one task at a time are open."""
        if self._open is None or self._open[0] != task.key:
            recipe = self.recipe
            data = self._given.get(task.key) or self._given.get(task.name)
            if data is None:
                data = labeled(task.path, AdaptData(field=task.field), self.opened.preprocess)
            parts = parts_of(
                data,
                train=recipe.train,
                validation=recipe.validation,
                test=recipe.test,
                shots=task.shots,
                share=recipe.share,
                folds=recipe.folds,
                seed=recipe.seed,
            )
            self._open = (task.key, data, parts)
            labels = data.labels_N[parts.test]
            self.about[task.key] = {
                "key": task.key,
                "title": task.title,
                "group": task.group,
                "data": data.name,
                "classes": len(data.classes),
                "images": len(parts.whole),
                "folds": len(parts.folds),
                "tested": len(parts.test),
                "chance": float(np.bincount(labels).max() / len(labels)),
                "how": parts.how,
            }
        return self._open[1], self._open[2]

    def choosing(self, task: CompareTask, variant: str) -> list[tuple[Cell, Candidate, int]]:
        """The trainings by which a candidate is chosen: none where there is only one."""
        candidates = self.plan.candidates[variant]
        if len(candidates) == 1:
            return []
        return [
            (Cell(self.recipe.seed, task.key, f"{variant}.{candidate.number}.{fold}"), candidate, fold)
            for candidate in candidates
            for fold in range(self.about[task.key]["folds"])
        ]

    def final(self, task: CompareTask, candidate: Candidate) -> list[Cell]:
        """The last trainings, one a seed."""
        name = f"{candidate.variant}.{candidate.number}.final"
        return [Cell(self.recipe.seed + number, task.key, name) for number in range(self.recipe.seeds)]

    def chosen(self, store: CellStore, task: CompareTask, variant: str) -> Chosen | None:
        """The best candidate by the mean over folds, of equal ones the last; None while trainings are missing, or
        where all diverged (see `diverged`)."""
        candidates = self.plan.candidates[variant]
        if len(candidates) == 1:
            return Chosen(candidates[0], None, 1, 1, 0)
        values: dict[int, list[float]] = {}
        broken: set[int] = set()
        for cell, candidate, _ in self.choosing(task, variant):
            done = store.done(cell)
            if done is None:
                return None
            if "diverged" in done.values:
                broken.add(candidate.number)
            else:
                values.setdefault(candidate.number, []).append(done.values["validation"])
        whole = [candidate for candidate in candidates if candidate.number not in broken]
        if not whole:
            return Chosen(candidates[-1], None, len(candidates), 0, len(broken))
        means = [float(np.mean(values[candidate.number])) for candidate in whole]
        place = argmax_last(means)
        return Chosen(whole[place], means[place], len(candidates), means.count(means[place]), len(broken))

    def trainings(self, store: CellStore | None = None) -> list[Training]:
        """All that is to be done and not finished, for the price; of candidates that are not chosen yet the first."""
        found = []
        for task in self.recipe.tasks:
            _, parts = self.parts(task)
            for variant, candidates in self.plan.candidates.items():
                for cell, candidate, fold in self.choosing(task, variant):
                    if store is None or store.done(cell) is None:
                        learn, held = parts.folds[fold]
                        found.append(self._training(candidate, len(learn), len(held)))
                chosen = None if store is None else self.chosen(store, task, variant)
                candidate = candidates[0] if chosen is None else chosen.candidate
                for cell in self.final(task, candidate):
                    if store is None or store.done(cell) is None:
                        found.append(self._training(candidate, len(parts.whole), len(parts.test)))
        return found

    def _training(self, candidate: Candidate, images: int, tested: int) -> Training:
        settings = self.recipe.trained_with(self.grid.training, candidate.training, seed=self.recipe.seed)
        return Training(candidate, settings, images, tested)

    def price(self, *, device: str = "auto", store: CellStore | None = None) -> dict[str, Any]:
        """What is still to be done, with its time."""
        if device not in self._speeds:
            self._speeds[device] = measured(self.opened, device=device)
        found = price(self.plan, self.trainings(store), self._speeds[device])
        return {"grid": self.grid.name, "tasks": list(self.about.values()), **found, "left_out": self.plan.left_out}


def compare(
    recipe: CompareRecipe,
    run_path: Path,
    *,
    device: str | None = None,
    command: list[str] | None = None,
    opened: Opened | None = None,
    data: Mapping[str, Labeled] | None = None,
    max_hours: float = 24.0,
    save: bool = False,
) -> dict[str, Any]:
    """Compares methods on tasks and writes the run folder's result.json; the same call goes on where it was stopped.

    Args:
        opened: a network in memory instead of `recipe.backbone`. data: images in memory, by the name of a task.
        max_hours: the longest that the price may say.
        save: also write the adapter of every final training.

    Raises:
        UserError: a mistake in data or recipe, a grid that is too dear, a folder that holds another comparison.
        Stopped: after a signal; what was finished stays.
    """
    comparison = Comparison(recipe, opened=opened, data=data)
    where = device or "auto"
    if not (run_path / "cells").is_dir():  # a refusal leaves nothing behind
        refuse_if_dear(comparison.price(device=where), max_hours=max_hours, grid=recipe.grid)
    run = RunFolder.create(run_path, command=command, recipe=dump(recipe))
    identity = {
        "recipe": recipe.model_dump(mode="json"),
        "tasks": list(comparison.about.values()),
        "candidates": {name: [one.said for one in found] for name, found in comparison.plan.candidates.items()},
    }
    store = CellStore(run.path / "cells", identity)
    _warn(comparison)
    left = comparison.trainings(store)
    if left:
        refuse_if_dear(comparison.price(device=where, store=store), max_hours=max_hours, grid=recipe.grid)
        bench = Bench(comparison.opened, device=where)
        began = time.monotonic()
        with Meter("comparing methods", len(left)) as meter:
            for task in recipe.tasks:
                for variant in comparison.plan.candidates:
                    _choose(comparison, store, bench, task, variant, meter)
                    _finish(comparison, store, bench, task, variant, meter, run.path, save=save)
        say(f"{len(left)} trainings in {time.monotonic() - began:.0f} s")
    result = {
        "kind": "adapt_compare",
        "title": f"{_count(len(comparison.plan.candidates), 'method')} on {_count(len(recipe.tasks), 'task')}",
        "command": command,
        "recipe": recipe.model_dump(mode="json"),
        "revision": code_revision(),
        **_result(comparison, store, run.path),
    }
    run.write_result(result)
    return result


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _warn(comparison: Comparison) -> None:
    drop = any(one.training.get("drop_path") for found in comparison.plan.candidates.values() for one in found)
    blocks = list(getattr(comparison.opened.model, "blocks", []))
    if drop and not (blocks and all(hasattr(block, "drop_path1") for block in blocks)):
        say("training.drop_path has no effect: this network has no places for it")
    recipe, candidates = comparison.recipe, [one for found in comparison.plan.candidates.values() for one in found]
    idle = [
        set(recipe.trained_with(comparison.grid.training, one.training, seed=0).without_effect(recipe.training))
        for one in candidates
    ]
    for sentence in sorted(set.intersection(*idle)):
        say(sentence)
    if comparison.plan.left_out:
        first = comparison.plan.left_out[0]
        say(f"{len(comparison.plan.left_out)} candidates are left out, such as {first['variant']}: {first['why']}")
    gone = {row["variant"] for row in comparison.plan.left_out} - set(comparison.plan.candidates)
    if gone:
        say(f"methods without a candidate that is left take no part: {', '.join(sorted(gone))}")


def _choose(
    comparison: Comparison, store: CellStore, bench: Bench, task: CompareTask, variant: str, meter: Meter
) -> None:
    asked = {cell: (candidate, fold) for cell, candidate, fold in comparison.choosing(task, variant)}

    def work(cell: Cell) -> dict[str, float]:
        candidate, fold = asked[cell]
        data, parts = comparison.parts(task)
        learn, held = parts.folds[fold]
        fit = _fit(comparison, bench, data, candidate, cell, store, learn=learn, measured=held)
        return DIVERGED if fit is None else {"validation": fit.accuracy, "training_seconds": fit.seconds}

    _work(store, list(asked), work, meter)


def _finish(
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
    chosen = comparison.chosen(store, task, variant)
    assert chosen is not None, "a candidate is chosen once all of its cells are finished"

    def work(cell: Cell) -> dict[str, float]:
        if chosen.tied == 0:
            return DIVERGED
        data, parts = comparison.parts(task)
        kept = folder / "adapters" / task.key / f"{variant}-seed{cell.seed}" if save else None
        fit = _fit(
            comparison, bench, data, chosen.candidate, cell, store, learn=parts.whole, measured=parts.test, memory=True,
            peek=comparison.recipe.peek, save=kept,
        )  # fmt: skip
        if fit is None:
            return DIVERGED
        path = logits_path(folder, task, cell)
        sweep(path)
        write_logits(path, logits=fit.logits, labels=fit.labels, class_names=list(data.classes))
        return {
            "test": fit.accuracy,
            "classes": float(class_accuracies(fit.logits.argmax(axis=1), fit.labels).accuracy_C.mean()),
            "trained": fit.trained,
            "head": fit.head,
            "update_bytes": fit.update_bytes,
            "training_seconds": fit.seconds,
            "updates": fit.updates,
            "unreadable": fit.unreadable,
            "kept": float(fit.kept != "nothing"),
            **({"best": max(fit.epochs), "best_epoch": 1.0 + int(np.argmax(fit.epochs))} if fit.epochs else {}),
        }

    _work(store, comparison.final(task, chosen.candidate), work, meter)


def logits_path(folder: Path, task: CompareTask, cell: Cell) -> Path:
    """Where a final training's logits of test images are."""
    return folder / "logits" / task.key / f"{cell.variant.partition('.')[0]}-seed{cell.seed}.npz"


def _work(store: CellStore, cells: Sequence[Cell], work: Callable[[Cell], dict[str, float]], meter: Meter) -> None:
    for cell in run_cells(store, cells, work):
        meter.advance(note=cell.name)


def _fit(
    comparison: Comparison,
    bench: Bench,
    data: Labeled,
    candidate: Candidate,
    cell: Cell,
    store: CellStore,
    *,
    learn: np.ndarray,
    measured: np.ndarray,
    memory: bool = False,
    peek: bool = False,
    save: Path | None = None,
) -> Fit | None:
    """A training; None where its loss was no finite number."""
    recipe = comparison.recipe
    training = recipe.trained_with(comparison.grid.training, candidate.training, seed=cell.seed)
    folder = store.work_folder(cell) / "training"
    try:
        return bench.fit(
            data, learn, candidate.method, training, folder=folder, measured=measured, memory=memory, peek=peek,
            save=save,
        )  # fmt: skip
    except TrainingError:
        return None


def _result(comparison: Comparison, store: CellStore, folder: Path) -> dict[str, Any]:
    choices: dict[tuple[str, str], Chosen] = {}
    done: dict[tuple[str, str], list[tuple[Cell, CellResult]]] = {}
    paths: dict[tuple[str, str, int], Path] = {}
    for task in comparison.recipe.tasks:
        for variant in comparison.plan.candidates:
            chosen = comparison.chosen(store, task, variant)
            assert chosen is not None
            choices[task.key, variant] = chosen
            cells = comparison.final(task, chosen.candidate)
            finished = [(cell, found) for cell in cells if (found := store.done(cell)) is not None]
            done[task.key, variant] = finished
            for cell, found in finished:
                if "test" in found.values:
                    paths[task.key, variant, cell.seed] = logits_path(folder, task, cell)
    return summarize(comparison, choices, done, paths)
