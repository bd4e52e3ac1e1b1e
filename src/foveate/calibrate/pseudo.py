"""Pseudo cross-validation (PCV): gamma from fine-tunings that lack half of the seen classes, whose answers are known.

Honest: the truly absent classes take no part, neither their data nor their columns. The public code sweeps gamma on
labeled data of the absent classes instead; what else differs stands in docs/methods/calibration.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foveate.core.errors import UserError, choose
from foveate.core.seeds import generator
from foveate.metrics.calibration import group_accuracies
from foveate.metrics.class_groups import ClassGroups, as_labels, as_logits
from foveate.metrics.tradeoff import Choice, select_gamma, su_curve
from foveate.training.logit_files import LogitFile

Threshold = Literal["all_columns", "seen_columns", "none"]
THRESHOLDS = ("all_columns", "seen_columns", "none")


class InfeasibleError(UserError):
    """In no pseudo run any gamma keeps the threshold."""


@dataclass(frozen=True)
class PseudoRun:
    """Logits of one model that was fine-tuned, from the pre-trained weights, on the pseudo-seen half of S only.

    Attributes:
        logits: [N, C] over all columns, of the fine-tuning images of all seen classes. labels: [N], in S.
        seen, absent: the pseudo-seen and pseudo-absent half of S.
        source_logits: [N, C] of the pre-trained model on the same images; wanted by thresholds other than "none".
        name: what messages call it.
    """

    logits: NDArray[Any]
    labels: NDArray[Any]
    seen: NDArray[Any]
    absent: NDArray[Any]
    source_logits: NDArray[Any] | None = None
    name: str = "pseudo run"

    @classmethod
    def from_file(cls, file: LogitFile) -> Self:
        """Return a file of logits as a pseudo run.

        Raises:
            UserError: the file does not name its halves.
        """
        if file.seen is None or file.absent is None:
            raise UserError(f"{file.path}: a pseudo run needs the arrays 'seen' and 'absent': its halves of S")
        return cls(file.logits, file.labels, file.seen, file.absent, file.source_logits, str(file.path))


@dataclass(frozen=True)
class PseudoEstimate:
    """Gamma from pseudo runs.

    Attributes:
        gamma: mean over the feasible runs. choices: one per run, None where none was feasible.
        thresholds: least accuracy on the pseudo-absent classes in percent, one per run.
    """

    gamma: float
    choices: tuple[Choice | None, ...]
    thresholds: tuple[float | None, ...] = field(default=())


def split_classes(seen: ArrayLike, *, number: int, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the `number`-th random split of the seen classes into halves: pseudo-seen (never the larger) and absent.

    Raises:
        UserError: with fewer than two seen classes.
    """
    classes = np.sort(np.asarray(seen, dtype=np.int64))
    if len(classes) < 2:
        raise UserError(
            f"pseudo cross-validation splits the seen classes in halves: it needs at least two, not {len(classes)}"
        )
    # Sorted first: the split does not depend on the order in which classes were named.
    order = generator("pseudo split", seed, number).permutation(classes)
    half = len(classes) // 2
    return np.sort(order[:half]), np.sort(order[half:])


def run_threshold(run: PseudoRun, rule: Threshold) -> float | None:
    """Return the pre-trained model's accuracy in percent on pseudo-absent images, over all columns or those of S."""
    choose(rule, THRESHOLDS, "threshold of pseudo cross-validation")
    if rule == "none":
        return None
    if run.source_logits is None:
        raise UserError(
            f"{run.name}: the threshold '{rule}' needs the pre-trained model's logits of the same images "
            "(source_logits); give them, or choose the threshold 'none'"
        )
    groups = _groups(run)
    # Columns of truly absent classes are dropped below under "seen_columns" and may hold NaN.
    source = as_logits(run.source_logits, what=f"{run.name}: source_logits", finite=False)
    if source.shape != np.shape(run.logits):
        raise UserError(
            f"{run.name}: source_logits must have the shape of logits, {list(np.shape(run.logits))} "
            f"(got {list(source.shape)})"
        )
    labels = as_labels(run.labels, rows=len(source), classes=groups.classes, what=f"{run.name}: labels")
    # Fewer columns make the pre-trained model's task easier. Measured, the threshold rises by 8 to 17 points, gamma in
    # one split from 6 to 8, and in another a run has no feasible gamma left.
    if rule == "seen_columns":
        source, labels, groups = _restricted(source, labels, groups, name=run.name)
    return group_accuracies(source, labels, groups)["U/Y"]


def estimate(
    runs: Sequence[PseudoRun],
    *,
    threshold: Threshold = "all_columns",
    tie: Literal["smallest", "official"] = "smallest",
) -> PseudoEstimate:
    """Estimate gamma: the mean over runs of the best feasible gamma on the curve of the pseudo-absent classes.

    In each run the columns are restricted to S; among gammas that give the pseudo-absent images at least the
    threshold's accuracy, the one of best overall accuracy is taken. Runs without such a gamma are skipped.

    Raises:
        InfeasibleError: no run has a feasible gamma.
        UserError: no runs, labels or groups that do not fit.
    """
    if not runs:
        raise UserError("pseudo cross-validation needs at least one pseudo run (three are usual)")
    choices: list[Choice | None] = []
    thresholds: list[float | None] = []
    for run in runs:
        # Without a threshold, gammas would win that give the absent classes up for the seen ones.
        threshold_of_run = run_threshold(run, threshold)
        logits, labels, groups = _restricted(
            as_logits(run.logits, what=f"{run.name}: logits", finite=False),
            np.asarray(run.labels),
            _groups(run),
            name=run.name,
        )
        curve = su_curve(logits, labels, groups, what=f"{run.name}: logits")
        # A curve is accuracy on one half against accuracy on the other: without images of both there is none.
        for count, what in ((curve.seen_count, "pseudo-seen"), (curve.absent_count, "pseudo-absent")):
            if count == 0:
                raise UserError(f"{run.name}: no image has a {what} class as its label")
        choices.append(select_gamma(curve, threshold=threshold_of_run, tie=tie))
        thresholds.append(threshold_of_run)
    feasible = [choice.gamma for choice in choices if choice is not None]
    if not feasible:
        worst = ", ".join("none" if value is None else f"{value:.1f} %" for value in thresholds)
        raise InfeasibleError(
            f"no gamma is feasible in any of the {len(runs)} pseudo runs: the pseudo-absent classes never reach the "
            f"pre-trained model's accuracy ({worst}). The fine-tuning damages the features (try a smaller learning "
            "rate), or use the threshold 'none'"
        )
    return PseudoEstimate(float(np.mean(feasible)), tuple(choices), tuple(thresholds))


def _groups(run: PseudoRun) -> ClassGroups:
    shape = np.shape(run.logits)
    if len(shape) != 2:
        raise UserError(f"{run.name}: logits must be [samples, classes] (got {list(shape)})")
    try:
        groups = ClassGroups.of(run.seen, absent=run.absent, classes=shape[1])
        groups.need_absent("a pseudo run")
    except UserError as error:
        raise UserError(f"{run.name}: {error}") from error
    return groups


def _restricted(
    logits: NDArray[Any], labels: NDArray[Any], groups: ClassGroups, *, name: str
) -> tuple[NDArray[Any], NDArray[np.int64], ClassGroups]:
    """Restrict logits to the columns of S, labels and groups renumbered: what is truly absent is not even looked at."""
    # Sorted, so that the position of a class among them is its new number.
    columns = np.union1d(groups.seen, groups.absent)
    labels = as_labels(labels, rows=len(logits), classes=groups.classes, what=f"{name}: labels")
    outside = np.flatnonzero(~np.isin(labels, columns))
    if len(outside):
        raise UserError(
            f"{name}: {len(outside)} labels are neither pseudo-seen nor pseudo-absent, first {labels[outside[0]]} in "
            f"row {outside[0]}: pseudo runs are judged on images of seen classes only"
        )
    inner = ClassGroups.of(
        np.searchsorted(columns, groups.seen), absent=np.searchsorted(columns, groups.absent), classes=len(columns)
    )
    return logits[:, columns], np.searchsorted(columns, labels), inner
