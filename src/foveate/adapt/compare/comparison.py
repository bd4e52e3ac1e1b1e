"""The state of one comparison: its data, its plan, and which candidate of each method is selected so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from foveate.adapt.backbones import map_backbone
from foveate.adapt.compare.grids import Candidate, VariantGrid, load_grid
from foveate.adapt.compare.pricing import (
    ComparisonPlan,
    ForwardSpeed,
    PlannedTraining,
    measure_speed,
    plan,
    price_trainings,
)
from foveate.adapt.compare.recipe import CompareRecipe, CompareTask, max_parameters
from foveate.adapt.data import load_images
from foveate.adapt.load_backbone import LoadedBackbone, load_backbone
from foveate.adapt.recipe import AdaptData
from foveate.adapt.results import ComparedTask
from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.core.experiment_grid import Cell, CellStore
from foveate.metrics.agreement import argmax_last
from foveate.training.classification import LabeledImages, Rows
from foveate.training.price import Price

# Split images for a comparison: to learn from, to select by, and to test on; the last take no part before that.


@dataclass(frozen=True)
class RowSplit:
    """Rows of one task.

    Attributes:
        folds: pairs of rows to learn from and rows to select by; one pair, or one a fold.
        whole: all of both together: the selected candidate learns from these.
        test: measured once.
        selection: how the rows to select by were drawn, for tables.
    """

    folds: list[tuple[Rows, Rows]]
    whole: Rows
    test: Rows
    selection: str


def split_rows(
    images: LabeledImages,
    *,
    train: Sequence[str],
    validation: str,
    test: str,
    shots: int | None = None,
    share: float = 0.2,
    folds: int = 0,
    seed: int = 0,
) -> RowSplit:
    """Split the rows of a task.

    With `shots`, so many images of each class are drawn from training and validation splits together, and are all
    there is. With `folds`, the mean over folds selects. Else a validation split selects where there is one, else a
    share of each class that the seed draws.

    Args:
        train, validation, test: names of splits.
        shots: images of each class to learn and to select from.
        share: of each class that selects, where nothing else does; a fifth leaves most images to learn from.
        folds: 0 for none.
        seed: of what is drawn.

    Raises:
        UserError: a split is missing, a class has no image to learn from or to be tested on, or so few images that
            nothing is left to select by.
    """
    test_rows = images.rows(test)
    _check_classes(images, test_rows, "test")
    has_validation = images.has_split(validation) and validation not in train
    learn = images.rows(*train)
    # The selected candidate learns from both parts again; only the test images stay apart.
    pool = np.sort(np.concatenate([learn, images.rows(validation)])) if has_validation else learn
    if not (shots or folds) and has_validation:
        images.draw_shots(learn, None, seed=seed)  # raises where a class has no image
        held_out = images.rows(validation)
        return RowSplit([(learn, held_out)], pool, test_rows, f"the split {validation}, {len(held_out)} images")
    pool = images.draw_shots(pool, shots, seed=seed)
    if folds:
        pairs = _split_folds(images, pool, folds, seed)
        return RowSplit(pairs, pool, test_rows, f"{folds} folds of {len(pool)} images")
    held_out = _draw_share(images, pool, share, seed)
    selection = f"{len(held_out)} of {len(pool)} images, drawn by class"
    return RowSplit([(np.setdiff1d(pool, held_out), held_out)], pool, test_rows, selection)


def _check_classes(images: LabeledImages, rows: Rows, what: str) -> None:
    missing = images.missing_classes(rows)
    if missing:
        more = f" ({len(missing)} such classes)" if len(missing) > 1 else ""
        raise UserError(
            f"{images.name}: class '{missing[0]}' has no {what} image{more}; add some, or leave the class out of the "
            "data"
        )


def _shuffle_by_class(images: LabeledImages, rows: Rows, seed: int) -> list[Rows]:
    return [
        seeds.generator("choosing", seed, number).permutation(rows[images.labels_N[rows] == number])
        for number in range(len(images.classes))
    ]


def _draw_share(images: LabeledImages, pool: Rows, share: float, seed: int) -> Rows:
    """Draw a share of each class, at least one image and at most all but one."""
    parts = [
        rows[: max(1, round(share * len(rows)))][: len(rows) - 1] for rows in _shuffle_by_class(images, pool, seed)
    ]
    # Ascending, whatever order the classes were drawn in: batches depend on the order of rows.
    drawn = np.sort(np.concatenate(parts))
    if not len(drawn):
        raise UserError(f"{images.name}: one image of each class leaves none to select by; give at least two")
    return drawn


def _split_folds(images: LabeledImages, pool: Rows, folds: int, seed: int) -> list[tuple[Rows, Rows]]:
    smallest = min(int((images.labels_N[pool] == number).sum()) for number in range(len(images.classes)))
    if smallest < 2 or folds > len(pool):
        raise UserError(
            f"{images.name}: {folds} folds need at least two images of each class and as many as folds; the smallest "
            f"class has {smallest} of {len(pool)}"
        )
    # Dealt out class after class, so that folds are equally large and each class spreads as evenly as it can.
    dealt = np.concatenate(_shuffle_by_class(images, pool, seed))
    pairs = []
    for number in range(folds):
        held_out = np.sort(dealt[number::folds])
        learn = np.setdiff1d(pool, held_out)
        missing = images.missing_classes(learn)
        if missing:
            raise UserError(f"{images.name}: class '{missing[0]}' would be missing from a fold; use fewer folds")
        pairs.append((learn, held_out))
    return pairs


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
        self.grid: VariantGrid = load_grid(recipe.grid)
        self.network = network or load_backbone(recipe.backbone, seed=recipe.seed)
        self._in_memory = dict(data or {})
        self._speeds: dict[str, ForwardSpeed] = {}
        self._open: tuple[str, LabeledImages, RowSplit] | None = None
        self.tasks: dict[str, ComparedTask] = {}
        for task in recipe.tasks:  # fail early: a mistake in the last task shows before the first training
            self.open_task(task)
        backbone = map_backbone(self.network.model, self.network.modules)
        # The budget may be a share of the network, so the network comes first.
        max_trained = max_parameters(recipe.budget, backbone.num_parameters())
        self.plan: ComparisonPlan = plan(self.network, self.grid, recipe.methods, max_trained=max_trained)

    def open_task(self, task: CompareTask) -> tuple[LabeledImages, RowSplit]:
        """Return the images and rows of a task; those of one task at a time are in memory."""
        # One task at a time: the pixels of several may not fit into memory.
        if self._open is None or self._open[0] != task.key:
            recipe = self.recipe
            images = self._in_memory.get(task.key) or self._in_memory.get(task.name)
            if images is None:
                images = load_images(
                    task.path,
                    AdaptData(field=task.field),
                    self.network.preprocess,
                    single_label_for="foveate adapt compare",
                )
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

    def estimate(self, *, device: str = "auto", store: CellStore | None = None) -> Price:
        """Return what is still to be done, with its time."""
        if device not in self._speeds:
            self._speeds[device] = measure_speed(self.network, device=device)
        tasks = [task.to_json() for task in self.tasks.values()]
        trainings = self.list_trainings(store)
        return price_trainings(self.plan, trainings, self._speeds[device], grid=self.grid.name, tasks=tasks)
