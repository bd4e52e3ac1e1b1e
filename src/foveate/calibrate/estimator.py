"""`Calibrator`: one number for the logits of absent classes, with scikit-learn's conventions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from foveate.calibrate.pseudo import PseudoRun, estimate
from foveate.core.errors import UserError, choose
from foveate.metrics.calibration import average_best_gap, average_logit_gap
from foveate.metrics.class_groups import ClassGroups, as_labels, as_logits, chunks
from foveate.metrics.tradeoff import select_gamma, su_curve

PEEKING = "oracle_that_peeks"


class Calibrator(ClassifierMixin, BaseEstimator):
    """Adds gamma to the logits of the classes that fine-tuning did not see.

    Source: "Fine-Tuning is Fine, if Calibrated" (NeurIPS 2024, arXiv 2409.16223). gamma depends on the scale of the
    logits: estimate it anew for every checkpoint.

    Parameters:
        method: how gamma is found.
            "alg": average logit gap on the fine-tuning data; no further training.
            "pcv": pseudo cross-validation, from logits of pseudo runs (`foveate.calibrate.pseudo`).
            "best_gap": mean gap of the best logits instead of the mean ones; not of the paper, and free as ALG.
            "oracle_that_peeks": the best gamma for the very data and labels that are given. For analysis only.
        variant: of "alg": "training", or "official", which takes any labels, absent ones too.
        threshold: of "pcv": what the pseudo-absent classes must reach, the pre-trained model's accuracy over
            "all_columns" or "seen_columns", or "none".
        tie: among equally good gammas the "smallest", or the largest, "official".

    Attributes:
        gamma_: the number.
        gammas_: per pseudo run, NaN where it was not feasible; with other methods gamma_ alone.
        feasible_: per pseudo run, whether any gamma kept the threshold.
        spread_: standard deviation of the feasible gammas_ (n - 1); NaN with fewer than two.
        groups_: seen, absent and other classes. classes_, n_features_in_: as in scikit-learn.

    >>> logits = [[5.0, 3.0, 0.0, 1.0], [3.0, 6.0, 1.0, 0.0]]  # of fine-tuning data, classes 0 and 1
    >>> calibrator = Calibrator().fit(logits, [0, 1], seen_classes=[0, 1])
    >>> calibrator.gamma_
    2.5
    >>> calibrator.predict([[3.0, 0.0, 0.0, 2.0]])
    array([3])
    >>> calibrator.decision_function([[3.0, 0.0, 0.0, 2.0]]).tolist()
    [[3.0, 0.0, 2.5, 4.5]]
    """

    def __init__(
        self,
        method: str = "alg",
        *,
        variant: str = "training",
        threshold: str = "all_columns",
        tie: str = "smallest",
    ) -> None:
        # Stored as given and checked in `fit`: scikit-learn's `clone` requires the very objects that were passed.
        self.method = method
        self.variant = variant
        self.threshold = threshold
        self.tie = tie

    def fit(
        self,
        logits: ArrayLike,
        labels: ArrayLike,
        seen_classes: ArrayLike | None = None,
        *,
        absent_classes: ArrayLike | None = None,
        pseudo_runs: Sequence[PseudoRun] | None = None,
    ) -> Calibrator:
        """Estimate gamma.

        Args:
            logits: [N, C] of the fine-tuned model: of the fine-tuning data for "alg", of labeled test data for the
                oracle; for "pcv" they only say how many classes there are.
            labels: [N], class numbers.
            seen_classes: S; the classes that occur in `labels` where None.
            absent_classes: U; all others where None.
            pseudo_runs: for "pcv": each of C columns, its halves together S.

        Raises:
            UserError: an unknown method or option, NaN or infinite logits, labels, classes or pseudo runs that do not
                fit, no absent class, one seen class only ("alg"), no feasible run ("pcv").
        """
        choose(self.method, sorted(_METHODS), "method of Calibrator")
        # Not checked for NaN twice: the methods read the logits in chunks and name the first bad row.
        array = as_logits(logits, finite=False)
        class_numbers = as_labels(labels, rows=len(array), classes=array.shape[1])
        seen = np.unique(class_numbers) if seen_classes is None else seen_classes
        groups = ClassGroups.of(seen, absent=absent_classes, classes=array.shape[1])
        groups.need_absent("calibration")
        if pseudo_runs is not None and self.method != "pcv":
            raise UserError(f"pseudo_runs have no effect with the method '{self.method}': choose method='pcv'")
        gammas = _METHODS[self.method](self, array, class_numbers, groups, pseudo_runs)
        self.groups_ = groups
        self.gammas_ = np.array([np.nan if gamma is None else gamma for gamma in gammas], dtype=np.float64)
        # A run without a feasible gamma is NaN: it is left out of the mean, but stays visible.
        self.feasible_ = np.isfinite(self.gammas_)
        feasible = self.gammas_[self.feasible_]
        self.gamma_ = float(feasible.mean())
        self.spread_ = float(feasible.std(ddof=1)) if len(feasible) > 1 else float("nan")
        self.classes_ = np.arange(groups.classes)
        self.n_features_in_ = groups.classes
        return self

    def decision_function(self, logits: ArrayLike) -> NDArray[np.float64]:
        """Return the logits with gamma on the absent classes, [N, C] float64; the input is not changed."""
        check_is_fitted(self, "gamma_")
        array = as_logits(logits, finite=False)
        if array.shape[1] != self.n_features_in_:
            raise UserError(
                f"logits must have {self.n_features_in_} columns, the classes of gamma (got {array.shape[1]})"
            )
        shifted = np.empty(array.shape, dtype=np.float64)
        # In chunks, which refuse NaN and name its row.
        for rows, part in chunks(array):
            part[:, self.groups_.absent] += self.gamma_
            shifted[rows] = part
        return shifted

    def predict(self, logits: ArrayLike) -> NDArray[np.int64]:
        """Return the class of the largest calibrated logit, [N]; ties go to the lowest class."""
        best = self.decision_function(logits).argmax(1)
        return self.classes_[best]


Gammas = Sequence[float | None]
_Runs = Sequence[PseudoRun] | None


def _alg(calibrator: Any, logits: NDArray[Any], labels: NDArray[np.int64], groups: ClassGroups, runs: _Runs) -> Gammas:
    return [average_logit_gap(logits, labels, groups, variant=calibrator.variant)]


def _best_gap(
    calibrator: Any, logits: NDArray[Any], labels: NDArray[np.int64], groups: ClassGroups, runs: _Runs
) -> Gammas:
    return [average_best_gap(logits, labels, groups)]


def _pcv(calibrator: Any, logits: NDArray[Any], labels: NDArray[np.int64], groups: ClassGroups, runs: _Runs) -> Gammas:
    if not runs:
        raise UserError("method 'pcv' needs pseudo_runs: logits of models fine-tuned on half of the seen classes each")
    for run in runs:
        _check_run(run, groups)
    result = estimate(runs, threshold=calibrator.threshold, tie=calibrator.tie)
    return [None if choice is None else choice.gamma for choice in result.choices]


def _check_run(run: PseudoRun, groups: ClassGroups) -> None:
    """Raise UserError for a pseudo run of other columns, or whose halves are not together the seen classes."""
    array = as_logits(run.logits, what=f"{run.name}: logits", finite=False)
    if array.shape[1] != groups.classes:
        raise UserError(f"{run.name}: expected {groups.classes} columns, one for each class (got {array.shape[1]})")
    # A truly absent class in a run would let the estimate see what it has to predict.
    halves = np.union1d(run.seen, run.absent)
    for wrong in np.setdiff1d(halves, groups.seen)[:1]:
        raise UserError(f"{run.name}: class {wrong} is not a seen class; pseudo runs split the seen classes only")
    for lacking in np.setdiff1d(groups.seen, halves)[:1]:
        raise UserError(f"{run.name}: seen class {lacking} is in neither half; pseudo runs split all seen classes")


def _peek(calibrator: Any, logits: NDArray[Any], labels: NDArray[np.int64], groups: ClassGroups, runs: _Runs) -> Gammas:
    choice = select_gamma(su_curve(logits, labels, groups), tie=calibrator.tie)
    assert choice is not None, "without a threshold some interval is best"
    return [choice.gamma]


_METHODS: dict[str, Callable[..., Gammas]] = {"alg": _alg, "pcv": _pcv, "best_gap": _best_gap, PEEKING: _peek}
