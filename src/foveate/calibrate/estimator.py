"""Estimate one number for the logits of absent classes, with scikit-learn's conventions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.exceptions import NotFittedError
from sklearn.utils import get_tags  # pyrefly: ignore[missing-module-attribute]  # the stubs are of 1.5
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d

from foveate.calibrate.pseudo import PseudoRun, estimate
from foveate.core.errors import UserError, choose, nearest
from foveate.core.labels import as_class_labels
from foveate.metrics.calibration import average_best_gap, average_logit_gap
from foveate.metrics.class_groups import ClassGroups, as_labels, as_logits, chunks
from foveate.metrics.tradeoff import select_gamma, su_curve

# Choose how gamma is estimated where the user does not say: by the numbers of classes and by what is at hand.


# The share of seen among seen and absent classes at which the order of the methods changes, measured in 26 cases
# (docs/studies/calibration.md). Below it the best of few seen logits says little beside the best of many absent ones,
# so that the best gap is too small; above it PCV, whose models saw half as many classes, goes too far.
FEW_SEEN = 1 / 3


def choose_method(num_seen: int, num_absent: int, available: Collection[str]) -> tuple[str, str]:
    """Return the method to use and the reason for it.

    Args:
        num_seen: number of classes of the fine-tuning data.
        num_absent: number of classes that gamma shifts.
        available: methods for which there are data, of "alg", "best_gap" and "pcv"; at least one.
    """
    if len(available) == 1:
        return next(iter(available)), "the data allow no other method"
    few = num_seen < FEW_SEEN * (num_seen + num_absent)
    counts = f"{num_seen} of {num_seen + num_absent} classes are seen"
    if few and "pcv" in available:
        return "pcv", f"{counts}: below a third PCV gained most in the study"
    if few:
        return "alg", f"{counts}: below a third ALG is the safest without trainings; in the study PCV gained more"
    if "best_gap" in available:
        return (
            "best_gap",
            f"{counts}: from a third on the best gap gained more than ALG in the study, and was safer than PCV",
        )
    return next(method for method in ("alg", "pcv") if method in available), f"{counts}, and there is no best gap"


PEEKING = "oracle_that_peeks"


class Calibrator(ClassifierMixin, BaseEstimator):
    """Adds gamma to the logits of the classes that fine-tuning did not see.

    Source: "Fine-Tuning is Fine, if Calibrated" (NeurIPS 2024, arXiv 2409.16223). gamma depends on the scale of the
    logits: estimate it anew for every checkpoint.

    Parameters:
        method: how gamma is found.
            "alg": average logit gap on the fine-tuning data; no further training.
            "pcv": pseudo cross-validation, from logits of pseudo runs.
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
    # NaN is not refused here: columns of truly absent classes must have no influence, not even as an error. The columns
    # of S are checked where the curve is built.
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


# `AbsentClassCalibrator`: gamma for a fitted scikit-learn classifier that was fine-tuned on some of its classes.


METHODS = ("auto", "alg", "best_gap")


def _has_probabilities(calibrator: AbsentClassCalibrator) -> bool:
    estimator = getattr(calibrator, "estimator_", calibrator.estimator)
    return hasattr(estimator, "predict_proba")


class AbsentClassCalibrator(ClassifierMixin, MetaEstimatorMixin, BaseEstimator):
    """Raises the classes of a fitted classifier that its last training data did not have.

    A classifier that knew all of its `classes_` and was then trained on with data of some, for example by `partial_fit`
    or `warm_start`, hardly answers the others any more. `fit` takes these training data: classes without a label in `y`
    are the absent ones, and gamma is added to their logits. Logits are the logarithms of `predict_proba` where the
    estimator has it, else its `decision_function`.

    An estimator that is not fitted is cloned and fitted on X and y; then no class is absent and gamma is 0. As with
    every meta-estimator, `clone` forgets a fit: wrap the classifier in `sklearn.frozen.FrozenEstimator` for
    cross-validation.

    Source: "Fine-Tuning is Fine, if Calibrated" (NeurIPS 2024, arXiv 2409.16223). Labels of absent classes are not
    needed.

    Parameters:
        estimator: the classifier.
        method: "alg", "best_gap", or "auto" by the number of seen classes (`choose_method`).

    Attributes:
        estimator_: the classifier that is asked: the one given, or its fitted clone.
        classes_: those of the classifier, in its order. absent_classes_: those without a label in y.
        gamma_: what is added to their logits; 0 where there are none. method_: how it was found, "" where there are
            none.
        n_features_in_, feature_names_in_: of the classifier, where it has them.

    >>> import numpy as np
    >>> from sklearn.linear_model import SGDClassifier
    >>> X = np.array([[0.0, 0.0], [0.0, 4.0], [4.0, 0.0], [4.0, 4.0]])
    >>> classifier = SGDClassifier(loss="log_loss", random_state=0).fit(X, ["a", "b", "c", "d"])
    >>> seen = X[:3] + 0.5, ["a", "b", "c"]
    >>> for _ in range(50):
    ...     _ = classifier.partial_fit(*seen)
    >>> calibrator = AbsentClassCalibrator(classifier).fit(*seen)
    >>> calibrator.absent_classes_.tolist(), bool(calibrator.gamma_ > 0)
    (['d'], True)
    >>> calibrator.predict([[4.5, 4.5]]).tolist()
    ['d']
    """

    def __init__(self, estimator: Any, *, method: str = "auto") -> None:
        self.estimator = estimator
        self.method = method

    def fit(self, X: ArrayLike, y: ArrayLike) -> AbsentClassCalibrator:
        """Estimate gamma from the data that the classifier was last trained on.

        Args:
            X: as the classifier takes them.
            y: [N], labels; each one of the classifier's classes.

        Raises:
            UserError: an unknown method, a label that the classifier does not know, absent classes with one seen class.
        """
        choose(self.method, METHODS, "method of AbsentClassCalibrator")
        # scikit-learn's estimator checks expect a ValueError with these words.
        if y is None:
            raise ValueError("requires y to be passed, but the target y is None")
        check_classification_targets(y)
        # scikit-learn's conventions decide what a label is, whole floats included; a column [N, 1] only warns below.
        shape = np.asarray(y).shape
        if len(shape) > 1 and shape[1] > 1:
            as_class_labels(y, what="y")
        # Not cloned: a clone forgets the very fit whose logits are to be calibrated.
        self.estimator_ = self.estimator
        try:
            check_is_fitted(self.estimator)
        except NotFittedError:
            self.estimator_ = clone(self.estimator).fit(X, y)
        self.classes_ = self.estimator_.classes_
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(self.estimator_, name):
                setattr(self, name, getattr(self.estimator_, name))
        labels = column_or_1d(y, warn=True)
        strange = np.setdiff1d(labels, self.classes_)
        if len(strange):
            known = [str(name) for name in self.classes_.tolist()]
            raise UserError(
                f"y: label '{strange[0]}' is none of the classifier's {len(known)} classes"
                f"{nearest(str(strange[0]), known)}"
            )
        positions = self._positions(labels)
        seen = np.unique(positions)
        absent = np.setdiff1d(np.arange(len(self.classes_)), seen)
        self.absent_classes_ = self.classes_[absent]
        self.gamma_, self.method_ = 0.0, ""
        self._absent = absent
        if len(absent):
            self.method_ = self.method
            if self.method == "auto":
                self.method_, _ = choose_method(len(seen), len(absent), ("alg", "best_gap"))
            self.gamma_ = Calibrator(self.method_).fit(self._logits(X), positions, seen).gamma_
        return self

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the logits with gamma on the absent classes, [N, C]; with two classes their difference, [N]."""
        shifted = self._shifted(X)
        # scikit-learn's scorers take one column for two classes.
        return shifted[:, 1] - shifted[:, 0] if shifted.shape[1] == 2 else shifted

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the classes of the largest calibrated logits, [N]."""
        # This does not call `decision_function`, which has a single column for two classes.
        shifted = self._shifted(X)
        return self.classes_[shifted.argmax(axis=1)]

    @available_if(_has_probabilities)
    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the softmax of the calibrated logits, [N, C]; it ranks classes, and is not calibrated confidence."""
        shifted = self._shifted(X)
        # The maximum of a row is subtracted so that `exp` cannot overflow; the softmax stays the same.
        weights = np.exp(shifted - shifted.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)

    def _shifted(self, X: ArrayLike) -> NDArray[np.float64]:
        check_is_fitted(self, "gamma_")
        logits = self._logits(X)
        logits[:, self._absent] += self.gamma_
        return logits

    def _logits(self, X: ArrayLike) -> NDArray[np.float64]:
        if hasattr(self.estimator_, "predict_proba"):
            probabilities = np.asarray(self.estimator_.predict_proba(X), dtype=np.float64)
            # A probability that underflows to 0 has no logarithm; the smallest number keeps its class the last.
            return np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
        scores = np.array(self.estimator_.decision_function(X), dtype=np.float64)
        # Two classes have one score; its halves differ by it.
        return scores if scores.ndim == 2 else np.stack([-scores / 2, scores / 2], axis=1)

    def _positions(self, labels: NDArray[Any]) -> NDArray[np.int64]:
        # A classifier may list its classes in any order, but `searchsorted` needs a sorted array.
        order = np.argsort(self.classes_)
        return order[np.searchsorted(self.classes_, labels, sorter=order)].astype(np.int64)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()  # pyrefly: ignore[missing-attribute]
        inner = get_tags(self.estimator)
        tags.input_tags = inner.input_tags
        tags.classifier_tags.multi_class = getattr(inner.classifier_tags, "multi_class", True)
        # `fit` refuses several labels per sample, because gamma is a gap between one label and the other classes.
        tags.classifier_tags.multi_label = False
        return tags
