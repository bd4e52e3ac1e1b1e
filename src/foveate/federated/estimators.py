"""scikit-learn estimators of the federated wing: `fit([client_1, client_2, ...])` in one process."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClusterMixin, TransformerMixin
from sklearn.utils.validation import (
    check_array,
    check_is_fitted,
    validate_data,  # pyrefly: ignore[missing-module-attribute]
)

from foveate.core.errors import UserError
from foveate.core.parameters import FromParameters, Parameter, field_parameters
from foveate.federated.clustering.distances import distances, nearest
from foveate.federated.clustering.fit import Clustered, cluster, cluster_pooled
from foveate.federated.clustering.methods import load_method, resolve
from foveate.federated.clustering.options import ClusteringOptions
from foveate.federated.clustering.protocol import HANDLERS, as_points
from foveate.federated.rounds import Client, InProcess, Log
from foveate.federated.run_options import ClusterRun
from foveate.federated.validation import RANDOM_STATE, count_rows, draw_seed, is_list_of_clients, remember_columns

# Fields of `ClusteringOptions` that are parameters under the same name; a default of None is that of the method.
_OPTIONS = tuple(
    name
    for name in ClusteringOptions.model_fields
    if name not in ("clusters", "method", "seed", "on_few_groups", "suspects", "changed")
)
_PARAMETERS = {
    "n_clusters": Parameter("int", 8, str(ClusteringOptions.model_fields["clusters"].description)),
    **field_parameters(ClusteringOptions, ["method"]),
    **field_parameters(ClusteringOptions, _OPTIONS, optional=True),
    **field_parameters(ClusteringOptions, ["on_few_groups", "suspects"]),
    **field_parameters(ClusterRun, ["min_clients", "timeout"]),
    "answers_folder": Parameter(
        "str | Path | None", None, "stores the answers, so that a fit of the same data that was killed resumes"
    ),
    "random_state": RANDOM_STATE,
}


class FederatedKMeans(FromParameters, ClusterMixin, TransformerMixin, BaseEstimator, parameters=_PARAMETERS):
    """K groups of data that stay at their clients, from one exchange of centroids (and rounds of sums, where asked).

    The default method `consensus` is Foveate's own. `paper_reconstruction` is what can be known of FeCA (arXiv
    2407.12764), whose body was not available and whose code was never published; it reproduces no number of the paper.
    Baselines: `kfed`, `weighted_kmeans`, `naive`, and `central`, which pools all points and is not federated.
    Options of None have the method's default.

    Attributes:
        cluster_centers_: [K, D], in the units of the data.
        scaling_: common offset and scale of the columns with scale="standard", in which points are assigned; else None.
        labels_: one array per client; a plain array if one array was passed. Clients that were left out are labeled,
            too, if their data allow it; else with -1.
        inertia_: summed squared distance of all labeled points.
        n_features_in_: D.
        method_: method as text; 'one shot' only with refine_rounds=0.
        client_reports_: the answer of each client.
        server_report_: how the centers were found.
        excluded_: by client why it was left out.
        suspects_: for each suspicious client the anomaly.
        exchanged_: table of all that was sent: kind, direction, arrays, shapes, bytes.
        bytes_up_, bytes_down_: totals of it.

    >>> import numpy as np
    >>> clients = [np.array([[0.0, 0.0], [0.2, 0.0], [9.0, 9.0]]), np.array([[0.1, 0.0], [9.1, 9.0]])]
    >>> model = FederatedKMeans(2, random_state=0).fit(clients)
    >>> sorted(model.cluster_centers_.round(3).tolist())
    [[0.1, 0.0], [9.05, 9.0]]
    >>> model.method_
    'consensus, 1 round of refinement'
    >>> model.predict([[8.0, 8.0]]) == model.labels_[1][1]
    array([ True])
    """

    def _options(self) -> ClusteringOptions:
        # Parameters bear the names of the options, so that bounds and defaults are declared once.
        options = {name: getattr(self, name) for name in (*_OPTIONS, "on_few_groups", "suspects")}
        seed = draw_seed(self.random_state)
        return resolve(self.n_clusters, method=self.method, seed=seed, where=type(self).__name__, **options)

    def fit(self, X: Any, y: None = None, *, clients: ArrayLike | None = None) -> FederatedKMeans:
        """Find the centers.

        Args:
            X: one array [N, D] per client, in a list; or one array, which is one client.
            y: ignored.
            clients: for one array: the client of each row, any names (`cluster` by hospital, camera, user).

        Raises:
            UserError: options or data that do not fit. TooFewClientsError, TooFewGroupsError: see `cluster`.
        """
        options = self._options()
        # A single array in gives a single array out, as scikit-learn's users expect.
        several = is_list_of_clients(X) or clients is not None
        parts = self._split(X, clients)
        if not load_method(options.method).federated:
            self._fit_pooled(parts, options)
        else:
            log = Log()
            members = [Client(number, part, HANDLERS) for number, part in enumerate(parts)]
            folder = None if self.answers_folder is None else Path(self.answers_folder)
            transport = InProcess(members, timeout=self.timeout, answers_folder=folder, log=log)
            result = cluster(transport, options, min_clients=self.min_clients)
            self._set_result(result, log)
            sentences = result.warnings(
                lambda client: f"client {client}",
                len(parts),
                remedy="suspects='exclude' leaves it out",
                keep="suspects='report' keeps it",
            )
            for warning in sentences:
                warnings.warn(warning, UserWarning, stacklevel=2)
        self.n_features_in_ = int(self.cluster_centers_.shape[1])
        labels, self.inertia_ = [], 0.0
        for part in parts:
            part_labels, inertia = self._assign(part)
            labels.append(part_labels)
            self.inertia_ += inertia
        self.labels_ = labels if several else labels[0]
        if clients is not None:
            self.clients_ = np.unique(np.asarray(clients))
        return self

    def _split(self, X: Any, clients: ArrayLike | None) -> list[Any]:
        if is_list_of_clients(X):
            if clients is not None:
                raise UserError(
                    "clients names the client of each row of one array; it has no meaning with a list of arrays"
                )
            remember_columns(self, X)
            return list(X)
        array = validate_data(self, X, dtype=[np.float64, np.float32], ensure_all_finite=True)
        if clients is None:
            return [array]
        # `return_inverse` numbers the clients by their sorted names, so that their order in the rows does not matter.
        _, number_N = np.unique(np.asarray(clients), return_inverse=True)
        if number_N.shape != (len(array),):
            raise UserError(f"clients names {number_N.size} rows; the array has {len(array)}")
        return [array[number_N == number] for number in range(number_N.max() + 1)]

    def _set_result(self, result: Clustered, log: Log) -> None:
        self.cluster_centers_, self.scaling_ = result.original_centers, result.scaling
        self._centers, self._prepare_points = result.centers, result.prepare
        for client, reason in result.excluded.items():
            # These have a sentence of their own, with what to do.
            if client in result.in_other_units:
                continue
            warnings.warn(f"client {client} was left out: {reason}", UserWarning, stacklevel=3)
        self.method_ = result.title
        self.client_reports_, self.server_report_ = result.client_reports, result.server
        self.excluded_, self.suspects_ = result.excluded, result.suspects
        self.exchanged_ = log.table()
        self.bytes_up_, self.bytes_down_ = log.bytes(up=True), log.bytes(up=False)

    def _fit_pooled(self, parts: list[Any], options: ClusteringOptions) -> None:
        points = np.concatenate([as_points(part) for part in parts])
        # Without clients there are no reports, no exclusions and an empty log.
        self._set_result(cluster_pooled(points, options), Log())

    def _assign(self, part: Any) -> tuple[NDArray[np.int64], float]:
        try:
            points = self._prepare(as_points(part))
        # A client that was left out of the fit may have data that cannot be labeled either.
        except UserError:
            return np.full(count_rows(part), -1, dtype=np.int64), 0.0
        labels, squared = nearest(points, self._centers)
        return labels, float(squared.sum())

    def _prepare(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        if points.shape[1] != self.cluster_centers_.shape[1]:
            raise UserError(
                f"X has {points.shape[1]} features, but FederatedKMeans is expecting "
                f"{self.cluster_centers_.shape[1]} features as input"
            )
        return self._prepare_points(points)

    def _check(self, X: Any) -> NDArray[np.float64]:
        check_is_fitted(self, "cluster_centers_")
        if hasattr(self, "feature_names_in_"):
            return self._prepare(validate_data(self, X, dtype=np.float64, reset=False))
        return self._prepare(check_array(X, dtype=np.float64))

    def predict(self, X: Any) -> Any:
        """Return the nearest center of each point, ties to the lower index: [N]; for a list of arrays, a list."""
        if is_list_of_clients(X):
            return [self.predict(part) for part in X]
        return nearest(self._check(X), self._centers)[0]

    def transform(self, X: Any) -> Any:
        """Distances to the centers, [N, K]; a list of these for a list of arrays."""
        if is_list_of_clients(X):
            return [self.transform(part) for part in X]
        return distances(self._check(X), self._centers)

    def fit_predict(self, X: Any, y: None = None, **kwargs: Any) -> Any:
        """Find the centers and return `labels_`."""
        return self.fit(X, **kwargs).labels_

    @property
    def _n_features_out(self) -> int:
        return len(self.cluster_centers_)
