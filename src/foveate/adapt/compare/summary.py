"""Summarize a comparison: accuracy, size, time and memory of methods, how alike they are, and their ensembles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.adapt.compare.comparison import Comparison, SelectedCandidate
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
from foveate.core.experiment_grid import Cell, CellResult
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
from foveate.metrics.intervals import bootstrap_interval, seed_interval
from foveate.training.logit_files import read_logits

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
        correct = file.logits.argmax(axis=1) == file.labels
        interval = bootstrap_interval(correct.astype(float), seed=("compare", task))
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
