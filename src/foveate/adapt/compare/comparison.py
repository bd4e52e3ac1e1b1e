"""The state of one comparison: its data, its plan, and which candidate of each method is selected so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from foveate.adapt.compare.grids import Candidate, Grid, load_grid
from foveate.adapt.compare.plan import Plan, plan
from foveate.adapt.compare.pricing import PlannedTraining, Speed, estimate_cost, measure_speed
from foveate.adapt.compare.recipe import CompareRecipe, CompareTask, max_parameters
from foveate.adapt.compare.splits import RowSplit, split_rows
from foveate.adapt.data import load_images
from foveate.adapt.find_backbone import map_backbone
from foveate.adapt.load_backbone import LoadedBackbone, load_backbone
from foveate.adapt.recipe import AdaptData
from foveate.adapt.results import ComparedTask
from foveate.core.experiment_grid import Cell, CellStore
from foveate.metrics.agreement import argmax_last
from foveate.training.classification import LabeledImages


@dataclass(frozen=True)
class SelectedCandidate:
    """Selected candidate of a method on a task.

    Attributes:
        candidate: the selected one.
        validation: its accuracy on validation images; None where it is the only one, or all diverged.
        tried: number of candidates.
        tied: how many were equally good; 0 where all diverged.
        diverged: how many had a loss that was not finite.
    """

    candidate: Candidate
    validation: float | None
    tried: int
    tied: int
    diverged: int


class Comparison:
    """State that all trainings of a comparison share; `foveate.adapt.compare.run.compare` runs them.

    Attributes:
        tasks: description of each task by its key.
        plan: candidates that fit the network and the budget.
    """

    def __init__(
        self,
        recipe: CompareRecipe,
        *,
        network: LoadedBackbone | None = None,
        data: Mapping[str, LabeledImages] | None = None,
    ) -> None:
        self.recipe = recipe
        self.grid: Grid = load_grid(recipe.grid)
        self.network = network or load_backbone(recipe.backbone, seed=recipe.seed)
        self._in_memory = dict(data or {})
        self._speeds: dict[str, Speed] = {}
        self._open: tuple[str, LabeledImages, RowSplit] | None = None
        self.tasks: dict[str, ComparedTask] = {}
        for task in recipe.tasks:  # fail early: a mistake in the last task shows before the first training
            self.open_task(task)
        backbone = map_backbone(self.network.model, self.network.modules)
        # The budget may be a share of the network, so the network comes first.
        max_trained = max_parameters(recipe.budget, backbone.num_parameters())
        self.plan: Plan = plan(self.network, self.grid, recipe.methods, max_trained=max_trained)

    def open_task(self, task: CompareTask) -> tuple[LabeledImages, RowSplit]:
        """Return the images and rows of a task; those of one task at a time are in memory."""
        # One task at a time: the pixels of several may not fit into memory.
        if self._open is None or self._open[0] != task.key:
            recipe = self.recipe
            images = self._in_memory.get(task.key) or self._in_memory.get(task.name)
            if images is None:
                images = load_images(task.path, AdaptData(field=task.field), self.network.preprocess)
            rows = split_rows(
                images,
                train=recipe.train,
                validation=recipe.validation,
                test=recipe.test,
                shots=task.shots,
                share=recipe.share,
                folds=recipe.folds,
                seed=recipe.seed,
            )
            self._open = (task.key, images, rows)
            # Chance is the largest class of the test images: what a constant answer would reach.
            labels = images.labels_N[rows.test]
            self.tasks[task.key] = ComparedTask(
                key=task.key,
                title=task.title,
                group=task.group,
                data=images.name,
                classes=len(images.classes),
                images=len(rows.whole),
                folds=len(rows.folds),
                tested=len(rows.test),
                chance=float(np.bincount(labels).max() / len(labels)),
                selection=rows.selection,
            )
        return self._open[1], self._open[2]

    def selection_cells(self, task: CompareTask, variant: str) -> list[tuple[Cell, Candidate, int]]:
        """Return the trainings by which a candidate is selected, with their fold; none where there is only one."""
        candidates = self.plan.candidates[variant]
        if len(candidates) == 1:
            return []
        return [
            (Cell(self.recipe.seed, task.key, f"{variant}.{candidate.number}.{fold}"), candidate, fold)
            for candidate in candidates
            for fold in range(self.tasks[task.key].folds)
        ]

    def final_cells(self, task: CompareTask, candidate: Candidate) -> list[Cell]:
        """Return the final trainings, one a seed."""
        name = f"{candidate.variant}.{candidate.number}.final"
        return [Cell(self.recipe.seed + number, task.key, name) for number in range(self.recipe.seeds)]

    def select(self, store: CellStore, task: CompareTask, variant: str) -> SelectedCandidate | None:
        """Return the best candidate by the mean over folds, of equal ones the last; None if trainings are missing."""
        candidates = self.plan.candidates[variant]
        if len(candidates) == 1:
            return SelectedCandidate(candidates[0], None, tried=1, tied=1, diverged=0)
        values: dict[int, list[float]] = {}
        diverged: set[int] = set()
        for cell, candidate, _ in self.selection_cells(task, variant):
            done = store.done(cell)
            if done is None:
                return None
            if "diverged" in done.values:
                diverged.add(candidate.number)
            else:
                values.setdefault(candidate.number, []).append(done.values["validation"])
        # A candidate that diverged in one fold is out: its mean over the others would flatter it.
        whole = [candidate for candidate in candidates if candidate.number not in diverged]
        if not whole:
            return SelectedCandidate(candidates[-1], None, tried=len(candidates), tied=0, diverged=len(diverged))
        means = [float(np.mean(values[candidate.number])) for candidate in whole]
        best = argmax_last(means)
        return SelectedCandidate(
            whole[best], means[best], tried=len(candidates), tied=means.count(means[best]), diverged=len(diverged)
        )

    def list_trainings(self, store: CellStore | None = None) -> list[PlannedTraining]:
        """List all trainings that are not finished; where a candidate is not selected yet, its first one stands in."""
        trainings = []
        for task in self.recipe.tasks:
            _, rows = self.open_task(task)
            for variant, candidates in self.plan.candidates.items():
                for cell, candidate, fold in self.selection_cells(task, variant):
                    if store is None or store.done(cell) is None:
                        learn, held_out = rows.folds[fold]
                        trainings.append(self._plan_training(candidate, len(learn), len(held_out)))
                selected = None if store is None else self.select(store, task, variant)
                candidate = candidates[0] if selected is None else selected.candidate
                for cell in self.final_cells(task, candidate):
                    if store is None or store.done(cell) is None:
                        trainings.append(self._plan_training(candidate, len(rows.whole), len(rows.test)))
        return trainings

    def _plan_training(self, candidate: Candidate, images: int, tested: int) -> PlannedTraining:
        settings = self.recipe.resolve_training(self.grid.training, candidate.training, seed=self.recipe.seed)
        return PlannedTraining(candidate, settings, images, tested)

    def estimate(self, *, device: str = "auto", store: CellStore | None = None) -> dict[str, Any]:
        """Return what is still to be done, with its time."""
        if device not in self._speeds:
            self._speeds[device] = measure_speed(self.network, device=device)
        cost = estimate_cost(self.plan, self.list_trainings(store), self._speeds[device])
        return {
            "grid": self.grid.name,
            "tasks": [task.to_json() for task in self.tasks.values()],
            **cost,
            "refused": [row.to_json() for row in self.plan.refused],
        }
