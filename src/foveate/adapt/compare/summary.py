"""The numbers of a comparison: accuracy, size, time and memory of methods, how alike they are, what ensembles give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from foveate.adapt.calibration.logit_files import read_logits
from foveate.adapt.registry import method
from foveate.core.experiment_grid import Cell, CellResult
from foveate.metrics.agreement import (
    agreement,
    compare_ensembles,
    confident_regions,
    ensemble,
    error_consistency,
    mean_disagreement,
)
from foveate.metrics.comparison import group_means, pareto_mask, relative_spread
from foveate.metrics.intervals import bootstrap_interval, seed_interval

if TYPE_CHECKING:
    from foveate.adapt.compare.run import Chosen, Comparison

# The two ends that methods with few parameters lie between; they take no part in ensembles where others can.
ENDS = ("linear", "full")


def summarize(
    comparison: Comparison,
    choices: Mapping[tuple[str, str], Chosen],
    done: Mapping[tuple[str, str], Sequence[tuple[Cell, CellResult]]],
    paths: Mapping[tuple[str, str, int], Path],
) -> dict[str, Any]:
    """The result's tasks, lines of methods, and what was left out."""
    recipe, variants = comparison.recipe, list(comparison.plan.candidates)
    lines = [_line(comparison, variant, choices, done, paths) for variant in variants]
    whole = [line for line in lines if "mean" in line["means"]]
    flags = pareto_mask([line["trained"] for line in whole], [line["means"]["mean"] for line in whole]) if whole else []
    for line, flag in zip(whole, flags, strict=True):
        line["unbeaten"] = flag
    between = [line["means"]["mean"] for line in whole if line["method"] not in ENDS]
    tasks = []
    for task in recipe.tasks:
        logits: dict[str, list[NDArray[Any]]] = {}
        labels: NDArray[np.int64] | None = None
        for (key, variant, _), path in sorted(paths.items()):
            if key == task.key:
                found = read_logits(path)
                logits.setdefault(variant, []).append(found.logits)
                labels = found.labels
        methods = {line["variant"]: line["method"] for line in lines}
        ordered = {variant: logits[variant] for variant in variants if variant in logits}
        said = comparison.about[task.key]
        tasks.append({**said, **({} if labels is None else task_summary(ordered, labels, methods=methods))})
    return {
        "backbone": {"settings": comparison.opened.settings, "numbers": comparison.plan.backbone},
        "grid": {
            "name": comparison.grid.name,
            "what": comparison.grid.what,
            "candidates": {variant: len(found) for variant, found in comparison.plan.candidates.items()},
            "training": comparison.grid.training,
            "left_out": comparison.plan.left_out,
        },
        "seeds": recipe.seeds,
        "tasks": tasks,
        "lines": lines,
        "spread": relative_spread(between) if len(between) > 1 else None,
        "seconds": round(sum(found.seconds for finished in done.values() for _, found in finished), 1),
    }


def _line(
    comparison: Comparison,
    variant: str,
    choices: Mapping[tuple[str, str], Chosen],
    done: Mapping[tuple[str, str], Sequence[tuple[Cell, CellResult]]],
    paths: Mapping[tuple[str, str, int], Path],
) -> dict[str, Any]:
    known = method(comparison.grid.methods[variant])
    tasks: dict[str, dict[str, Any]] = {}
    held: dict[str, list[float]] = {name: [] for name in ("trained", "head", "update_bytes", "training_seconds")}
    groups: dict[str, list[str]] = {}
    for task in comparison.recipe.tasks:
        chosen, finished = choices[task.key, variant], done[task.key, variant]
        good = [(cell, found.values) for cell, found in finished if "test" in found.values]
        entry: dict[str, Any] = {
            "chosen": chosen.candidate.said,
            "options": {"method": chosen.candidate.method, "training": chosen.candidate.training},
            "validation": chosen.validation,
            "tried": chosen.tried,
            "tied": chosen.tied,
            "diverged": chosen.diverged,
            "seeds": [values["test"] for _, values in good],
            "failed": len(finished) - len(good),
        }
        if good:
            entry |= _accuracy([values["test"] for _, values in good], paths, task.key, variant)
            entry["classes"] = float(np.mean([values["classes"] for _, values in good]))
            if all("best" in values for _, values in good):
                entry["best_epoch"] = float(np.mean([values["best"] for _, values in good]))
            for name, values in held.items():
                values.append(float(np.mean([one[name] for _, one in good])))
            if task.group:
                groups.setdefault(task.group, []).append(task.key)
        tasks[task.key] = entry
    means = {name: float(np.mean(values)) if values else None for name, values in held.items()}
    measured = {key: entry["value"] for key, entry in tasks.items() if "value" in entry}
    complete = len(measured) == len(tasks)
    return {
        "variant": variant,
        "method": known.name,
        "place": known.place,
        "mergeable": known.mergeable,
        "tasks": tasks,
        "means": group_means(measured, groups) if complete else {},
        **means,
        "unbeaten": False,
    }


def _accuracy(
    values: Sequence[float], paths: Mapping[tuple[str, str, int], Path], task: str, variant: str
) -> dict[str, Any]:
    """The mean over seeds with its t-interval; of one seed an interval over test images.

    Seeds that agree to the image give none: an interval of no width would claim a certainty that equal counts of few
    images do not give.
    """
    if len(set(values)) == 1 < len(values):
        return {"value": values[0], "low": None, "high": None, "n": len(values)}
    if len(values) > 1:
        found = seed_interval(list(values))
    else:
        path = next(path for (key, name, _), path in paths.items() if (key, name) == (task, variant))
        stored = read_logits(path)
        right = stored.logits.argmax(axis=1) == stored.labels
        found = bootstrap_interval(right.astype(float), seed=("compare", task))
    # A t-interval of few seeds may reach beyond what an accuracy can be.
    low, high = (None if end is None else min(1.0, max(0.0, end)) for end in (found.low, found.high))
    return {"value": found.value, "low": low, "high": high, "n": found.n}


def task_summary(
    logits: Mapping[str, Sequence[NDArray[Any]]], labels_N: NDArray[np.int64], *, methods: Mapping[str, str]
) -> dict[str, Any]:
    """How alike the methods' answers to one task's test images are, and what ensembles of them give.

    Args:
        logits: by variant, [N, K] of each seed. methods: variant to method; linear and full take no part in the
            ensemble where two others are there.

    Returns:
        agreement: names, matrix, kappa, mean disagreement of the first seeds. regions: of the three most accurate ones,
        counts of confident right and unconfident wrong answers by who has them ("101": the first and the third).
        ensembles: of the first seeds, with the
        gain over the mean member and its interval. seeds: for each variant with several seeds, the same of these: what
        different first values alone do.
    """
    if not logits:
        return {}
    names = list(logits)
    first = np.stack([logits[name][0] for name in names])
    found: dict[str, Any] = {
        "agreement": {
            "names": names,
            "matrix": np.round(agreement(first), 6).tolist(),
            "kappa": np.round(error_consistency(first, labels_N), 6).tolist(),
            "disagreement": mean_disagreement(first) if len(names) > 1 else None,
        }
    }
    members = [name for name in names if methods.get(name, name) not in ENDS]
    members = members if len(members) > 1 else names
    if len(members) > 1:
        found["regions"] = _regions({name: logits[name][0] for name in members}, labels_N)
        found["ensembles"] = {"members": members, **_ensemble(np.stack([logits[n][0] for n in members]), labels_N)}
    found["seeds"] = {
        name: _ensemble(np.stack(several), labels_N) for name, several in logits.items() if len(several) > 1
    }
    return found


def _regions(logits: Mapping[str, NDArray[Any]], labels_N: NDArray[np.int64]) -> dict[str, Any]:
    """Of the three most accurate methods: which confident answers are right, and which unconfident ones wrong, of whom
    (the study's figure; confident is the more confident half of the images)."""
    accuracy = {name: float((values.argmax(axis=1) == labels_N).mean()) for name, values in logits.items()}
    names = sorted(logits, key=lambda name: -accuracy[name])[:3]
    stacked, most = np.stack([logits[name] for name in names]), max(1, len(labels_N) // 2)
    return {
        "names": names,
        "most": most,
        "right": confident_regions(stacked, labels_N, num_samples=most, right=True),
        "wrong": confident_regions(stacked, labels_N, num_samples=most, right=False),
    }


def _ensemble(logits_MNK: NDArray[Any], labels_N: NDArray[np.int64]) -> dict[str, Any]:
    found = compare_ensembles(logits_MNK, labels_N)
    right = (logits_MNK.argmax(axis=2) == labels_N).mean(axis=0)
    gain = (ensemble(logits_MNK).argmax(axis=1) == labels_N) - right
    interval = bootstrap_interval(gain, seed=("ensemble", len(labels_N)))
    return {
        "count": len(logits_MNK),
        "member": {
            "worst": min(found["single"]),
            "mean": float(np.mean(found["single"])),
            "best": max(found["single"]),
        },
        "ensemble": found["ensemble"],
        "any_right": found["any_right"],
        "gain": {**found["gain"], "low": interval.low, "high": interval.high},
        "disagreement": mean_disagreement(logits_MNK),
    }
