"""`LinkClassifier`: COSMO on features in memory, with scikit-learn's conventions."""

from __future__ import annotations

import copy
import inspect
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data  # pyrefly: ignore[missing-module-attribute]

from foveate.core.errors import UserError, choose
from foveate.core.progress import silent
from foveate.core.recipes import validate
from foveate.core.runs import RunFolder
from foveate.species.fit import FeatureInputs, build_link_model, build_task, order_passes
from foveate.species.link_data import link_arrays
from foveate.species.links import RELATIONS, ImageNetwork, Relation, fold_head
from foveate.species.recipe import CONTEXTS, Context, GraphSettings, LinkTraining
from foveate.survey.taxa import Taxa
from foveate.training.distributed import start
from foveate.training.loop import train
from foveate.vision.encoder import ImageEncoder


class LinkClassifier(ClassifierMixin, BaseEstimator):
    """Species from features of images, trained with places, hours and the taxonomy as further links.

    Source: Pahuja et al. 2024, "Bringing Back the Context" (COSMO), arXiv 2401.00608. Places and hours are supervision:
    `predict` takes only features.

    Parameters:
        score: "distmult", "conve" or "complex".
        contexts: links beside the species, of "taxonomy", "place", "time"; those without data are left out.
        dim, start, place_input, hour_input: see `graph` of `SpeciesRecipe`.
        epochs, batch_size, learning_rate, image_learning_rate, schedule, taxonomy_passes, balance, tau, patience: see
            `training` of `SpeciesRecipe`.
        encoder: an encoder with a frozen part, whose copy is trained along with the graph at `image_learning_rate`; X
            are its `frozen_features` then. None: X are final.
        random_state: seed, generator or None.

    Attributes:
        classes_: labels, sorted. n_features_in_: as in scikit-learn.
        coef_, intercept_: the folded linear head [K, F] and [K]; None with "conve" or an encoder.
        entity_vectors_: [E, D] of classes and their ancestors. class_entities_: row of each class.
        entities_: their taxa as indices of `taxa_`, -1 for a label without one.
        places_, hours_: candidates of `predict_links`, in the order of its columns.
        contexts_: contexts that had links. n_iter_: epochs. taxa_: as passed to `fit`.
        model_: the torch module.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> y = np.repeat(["deer", "fox"], 40)
    >>> X = rng.normal(size=(80, 4)) + 3 * (y == "fox")[:, None]
    >>> places = np.where((y == "fox")[:, None], [10.0, 20.0], [-5.0, 40.0])
    >>> classifier = LinkClassifier(dim=32, epochs=40, random_state=0).fit(X, y, places=places)
    >>> classifier.predict([[3.0, 3, 3, 3], [0, 0, 0, 0]])
    array(['fox', 'deer'], dtype='<U4')
    >>> classifier.contexts_, classifier.predict_links([[3.0, 3, 3, 3]], "place").shape
    (('place',), (1, 2))
    """

    def __init__(
        self,
        score: str = "distmult",
        *,
        contexts: Sequence[Context] = CONTEXTS,
        dim: int = 128,
        start: str = "sane",
        place_input: str = "standardized",
        hour_input: str = "scaled",
        epochs: int = 12,
        batch_size: int = 16,
        learning_rate: float = 1e-3,
        image_learning_rate: float = 1e-3,
        schedule: str = "official",
        taxonomy_passes: int = 1,
        extra_species_pass: bool = True,
        balance: str = "none",
        tau: float = 1.0,
        patience: int | None = 5,
        encoder: ImageEncoder | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.score = score
        self.contexts = contexts
        self.dim = dim
        self.start = start
        self.place_input = place_input
        self.hour_input = hour_input
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.image_learning_rate = image_learning_rate
        self.schedule = schedule
        self.taxonomy_passes = taxonomy_passes
        self.extra_species_pass = extra_species_pass
        self.balance = balance
        self.tau = tau
        self.patience = patience
        self.encoder = encoder
        self.random_state = random_state

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        *,
        places: ArrayLike | None = None,
        hours: ArrayLike | None = None,
        taxa: Taxa | None = None,
        validation: ArrayLike | None = None,
    ) -> LinkClassifier:
        """Train on features and labels.

        Args:
            X: [N, F] finite features.
            y: [N] labels; those that are ids or unambiguous names of `taxa` take part in the taxonomy.
            places: [N, 2] latitude and longitude in degrees, NaN where unknown.
            hours: [N] clock hours, 0 to 23, NaN where unknown.
            taxa: taxonomy of the labels.
            validation: [N] of bool, images that select the best epoch instead of being trained on; none by default.

        Raises:
            UserError: an unknown option, or places, hours or a taxonomy that do not fit.
        """
        X, y = validate_data(self, X, y, dtype=np.float32)
        check_classification_targets(y)
        self.classes_, numbers_N = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y: classifier needs at least two classes (got 1 class: {self.classes_[0]!r})")
        # Drawn from the random state, as in scikit-learn: a shared generator gives each fit another seed.
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        graph, training = self._settings(seed)
        labels = [str(label) for label in self.classes_]
        # Classes are matched to taxa as text, so two labels with the same text would become one column.
        if len(set(labels)) < len(labels):
            raise UserError("y: two labels have the same text; expected labels that differ as text")
        is_validation = None if validation is None else _rows(validation, len(X), "validation", np.bool_)
        data = link_arrays(
            [labels[number] for number in numbers_N.tolist()],
            order=labels,
            taxa=taxa,
            places=None if places is None else _rows(places, len(X), "places", np.float64, columns=2),
            hours=None if hours is None else _rows(hours, len(X), "hours", np.float64),
            contexts=tuple(self.contexts),
            validation=is_validation,
        )
        # A copy: `fit` must not change its parameters.
        encoder = copy.deepcopy(self.encoder)
        width = X.shape[1] if encoder is None else encoder.vector_width
        model = build_link_model(data, graph, lambda: ImageNetwork(width, self.dim, encoder), seed=seed)
        # The training loop keeps the best epoch as a checkpoint on disk, so a run folder is needed even here.
        with tempfile.TemporaryDirectory() as folder, silent(), start("cpu"):
            inputs = FeatureInputs(torch.from_numpy(X))
            task = build_task(model, data, inputs, training, image_learning_rate=self.image_learning_rate)
            outcome = train(*task, RunFolder(Path(folder)))
        if outcome.status == "stopped":
            # The loop ends at a signal with what it has; a caller would take half a training for a whole one.
            raise KeyboardInterrupt
        self.model_ = model.eval()
        self.n_iter_ = outcome.step // order_passes(model, data, training).steps_per_epoch
        self.contexts_, self.taxa_ = data.present_contexts, data.taxa
        self.entities_, self.class_entities_ = data.entity_taxa, data.targets_K
        # A copy, because the array would otherwise share memory with `model_` and change if that is trained further.
        self.entity_vectors_ = model.entities.weight.detach().numpy().copy()
        self.places_, self.hours_ = data.candidate_places_P2, data.candidate_hours_H
        self.coef_, self.intercept_ = None, None
        if graph.score != "conve" and encoder is None:
            head = fold_head(model)
            self.coef_, self.intercept_ = head.weight_KF.numpy(), head.bias_K.numpy()
        return self

    @property
    def score(self) -> Callable[..., float]:  # pyrefly: ignore[bad-override-mutable-attribute]
        """Return the accuracy on features and labels: scikit-learn's method."""
        return super().score

    @score.setter
    def score(self, name: str) -> None:
        # The parameter and scikit-learn's method share a name: access gives the method, the dictionary has the name.
        vars(self)["score"] = name

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters of the constructor."""
        # scikit-learn reads attributes with `getattr`, which would give the method `score` instead of the parameter.
        return {name: vars(self)[name] for name in inspect.signature(type(self)).parameters}

    def _settings(self, seed: int) -> tuple[GraphSettings, LinkTraining]:
        names = ("score", "dim", "start", "place_input", "hour_input")
        graph = {name: vars(self)[name] for name in names} | {"contexts": tuple(self.contexts)}
        names = ("epochs", "batch_size", "learning_rate", "schedule", "taxonomy_passes", "extra_species_pass")
        training = {name: getattr(self, name) for name in (*names, "balance", "tau", "patience")} | {"seed": seed}
        where = type(self).__name__
        # Checkpoints within an epoch are for runs on disk: this one ends with its folder.
        training |= {"checkpoint_every": 10**9, "log_every": 10**9}
        return validate(GraphSettings, graph, where=where), validate(LinkTraining, training, where=where)

    @torch.no_grad()
    def decision_function(self, X: ArrayLike) -> NDArray[np.float32]:
        """Return the species scores [N, K], or [N] of the second class where there are two."""
        scores_NK = self._scores(X, Relation.SPECIES)
        return scores_NK[:, 1] - scores_NK[:, 0] if len(self.classes_) == 2 else scores_NK

    def _scores(self, X: ArrayLike, relation: Relation) -> NDArray[np.float32]:
        check_is_fitted(self, "model_")
        X = validate_data(self, X, dtype=np.float32, reset=False)
        with torch.no_grad():
            return self.model_(torch.from_numpy(X), relation).numpy()

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float32]:
        """Return the probability of each class, [N, K]."""
        return torch.from_numpy(self._scores(X, Relation.SPECIES)).softmax(dim=1).numpy()

    def predict(self, X: ArrayLike) -> NDArray:
        """Return the class of largest score, [N]."""
        best_N = self._scores(X, Relation.SPECIES).argmax(axis=1)
        return self.classes_[best_N]

    def predict_links(self, X: ArrayLike, relation: str = "place") -> NDArray[np.float32]:
        """Return the scores of all candidates of a relation.

        Args:
            relation: "species", "place" (columns `places_`) or "time" (columns `hours_`).

        Raises:
            UserError: an unknown relation, or one that was not trained.
        """
        choose(relation, list(RELATIONS), "relation")
        return self._scores(X, RELATIONS[relation])


def _rows(values: ArrayLike, count: int, name: str, dtype: type, *, columns: int | None = None) -> NDArray:
    array = np.asarray(values, dtype=dtype)
    shape = (count,) if columns is None else (count, columns)
    if array.shape != shape:
        raise UserError(f"{name}: wrong shape (got {list(array.shape)}); expected {list(shape)}, a row for each image")
    return array
