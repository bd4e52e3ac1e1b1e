"""`AbsentClassCalibrator`: gamma for a fitted scikit-learn classifier that was fine-tuned on some of its classes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.exceptions import NotFittedError
from sklearn.utils import get_tags  # pyrefly: ignore[missing-module-attribute]  # the stubs are of 1.5
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d

from foveate.calibrate.estimator import Calibrator
from foveate.calibrate.method_choice import choose_method
from foveate.core.errors import UserError, choose, nearest
from foveate.core.labels import as_class_labels

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
        shifted = self._shifted(X)
        return self.classes_[shifted.argmax(axis=1)]

    @available_if(_has_probabilities)
    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the softmax of the calibrated logits, [N, C]; it ranks classes, and is not calibrated confidence."""
        shifted = self._shifted(X)
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
        order = np.argsort(self.classes_)
        return order[np.searchsorted(self.classes_, labels, sorter=order)].astype(np.int64)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()  # pyrefly: ignore[missing-attribute]
        inner = get_tags(self.estimator)
        tags.input_tags = inner.input_tags
        tags.classifier_tags.multi_class = getattr(inner.classifier_tags, "multi_class", True)
        tags.classifier_tags.multi_label = False
        return tags
