"""scikit-learn estimators of the federated wing: `fit([client_1, client_2, ...])` in one process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClusterMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import (
    check_array,
    check_is_fitted,
    validate_data,  # pyrefly: ignore[missing-module-attribute]
)

from foveate.core.errors import UserError
from foveate.federated.clients import Client
from foveate.federated.clustering.distances import distances, nearest
from foveate.federated.clustering.fit import Clustered, cluster, pooled
from foveate.federated.clustering.options import Settings, method, resolve
from foveate.federated.clustering.protocol import HANDLERS, as_points, unit_rows
from foveate.federated.rounds import InProcess, Log
from foveate.federated.validation import common_columns, is_list_of_clients, rows_of


class FederatedKMeans(ClusterMixin, TransformerMixin, BaseEstimator):
    """K groups of data that stay at their clients, from one exchange of centroids (and rounds of sums, where asked).

    The default method `consensus` is Foveate's own. `paper_reconstruction` is what can be known of FeCA (arXiv
    2407.12764), whose body was not available and whose code was never published; it reproduces no number of the paper.
    Baselines: `kfed`, `weighted_kmeans`, `naive`, and `central`, which pools all points and is not federated.

    Parameters:
        n_clusters: K, of all clients together.
        method: name of the server method.
        client_init, n_init: start ("kmeans++", "random", "awasthi_sheffet") and number of runs of a client's k-means.
        local_clusters: how many clusters each client looks for: a number, one a client, or None for K.
        eliminate: "flags", "drop" or "none": what becomes of centroids that a client doubts.
        radius, quantile, seeds: of `paper_reconstruction` and its variants, see docs/methods/feca.md.
        restarts: weighted k-means++ starts of the server.
        refine_rounds: exchanges of sums and counts after the first; 0 = one shot.
        min_count: clusters of fewer points are merged at the client; 10 is a good number for sensitive data.
        spherical: cluster directions; rows are scaled to length 1.
        kfed_seeds, kfed_steps: of `kfed`.
        on_few_groups: "raise", or "return" fewer centers with a warning.
        suspects: "report" odd clients, or "exclude" them.
        min_clients: clients that must answer; others are left out with their reason.
        timeout: seconds after which a client is left out.
        keep: folder of the answers, so that a killed fit of the same data goes on.
        random_state: as in scikit-learn.

        Options that are None take the method's default.

    Attributes:
        cluster_centers_: [K, D]. labels_: one array a client; a plain array where one array was given. Clients that
            were left out are labeled, too, where their data allow it; else with -1.
        inertia_: summed squared distance of all labeled points.
        n_features_in_: D. method_: what was done, in words; 'one shot' only with refine_rounds=0.
        client_reports_: what each client sent. server_report_: how the centers were found.
        excluded_: by client why it was left out. suspects_: by client what is odd about it.
        exchanged_: the table of all that was sent: kind, direction, arrays, shapes, bytes. bytes_up_, bytes_down_.

    >>> import numpy as np
    >>> clients = [np.array([[0.0, 0.0], [0.2, 0.0], [9.0, 9.0]]), np.array([[0.1, 0.0], [9.1, 9.0]])]
    >>> found = FederatedKMeans(2, random_state=0).fit(clients)
    >>> sorted(found.cluster_centers_.round(3).tolist())
    [[0.1, 0.0], [9.05, 9.0]]
    >>> found.method_
    'consensus, 1 round of refinement'
    >>> found.predict([[8.0, 8.0]]) == found.labels_[1][1]
    array([ True])
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        method: str = "consensus",
        client_init: str | None = None,
        n_init: int | None = None,
        local_clusters: int | Sequence[int] | None = None,
        eliminate: str | None = None,
        radius: str | float | None = None,
        quantile: float | None = None,
        seeds: str | None = None,
        restarts: int | None = None,
        refine_rounds: int | None = None,
        min_count: int | None = None,
        spherical: bool | None = None,
        kfed_seeds: str | None = None,
        kfed_steps: str | None = None,
        on_few_groups: str = "raise",
        suspects: str = "report",
        min_clients: int = 1,
        timeout: float | None = None,
        keep: str | Path | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.method = method
        self.client_init = client_init
        self.n_init = n_init
        self.local_clusters = local_clusters
        self.eliminate = eliminate
        self.radius = radius
        self.quantile = quantile
        self.seeds = seeds
        self.restarts = restarts
        self.refine_rounds = refine_rounds
        self.min_count = min_count
        self.spherical = spherical
        self.kfed_seeds = kfed_seeds
        self.kfed_steps = kfed_steps
        self.on_few_groups = on_few_groups
        self.suspects = suspects
        self.min_clients = min_clients
        self.timeout = timeout
        self.keep = keep
        self.random_state = random_state

    def _settings(self) -> Settings:
        given = self.random_state
        seed = int(given) if isinstance(given, int | np.integer) else int(check_random_state(given).randint(2**31 - 1))
        options = {name: getattr(self, name) for name in _OPTIONS}
        return resolve(self.n_clusters, method_name=self.method, seed=seed, **options)

    def fit(self, X: Any, y: None = None, *, clients: ArrayLike | None = None) -> FederatedKMeans:
        """Finds the centers.

        Args:
            X: one array [N, D] a client, in a list; or one array, which is one client.
            y: has no effect.
            clients: for one array: the client of each row, any names (`cluster` by hospital, camera, user).

        Raises:
            UserError: options or data that do not fit. TooFewClientsError, TooFewGroupsError: see `cluster`.
        """
        settings = self._settings()
        several = is_list_of_clients(X) or clients is not None
        parts = self._parts(X, clients)
        if not method(settings.method).federated:
            self._fit_pooled(parts, settings)
        else:
            log = Log()
            members = [Client(number, part, HANDLERS) for number, part in enumerate(parts)]
            keep = None if self.keep is None else Path(self.keep)
            exchange = InProcess(members, timeout=self.timeout, keep=keep, log=log)
            self._take(cluster(exchange, settings, at_least=self.min_clients), log)
        self.n_features_in_ = int(self.cluster_centers_.shape[1])
        labels, self.inertia_ = [], 0.0
        for part in parts:
            found, inertia = self._labels_of(part)
            labels.append(found)
            self.inertia_ += inertia
        self.labels_ = labels if several else labels[0]
        if clients is not None:
            self.clients_ = np.unique(np.asarray(clients))
        return self

    def _parts(self, X: Any, clients: ArrayLike | None) -> list[Any]:
        if is_list_of_clients(X):
            if clients is not None:
                raise UserError("clients names the client of each row of one array; a list of arrays says it already")
            columns = common_columns(X)
            if columns is not None:
                self.feature_names_in_ = np.array(columns, dtype=object)
            elif hasattr(self, "feature_names_in_"):
                del self.feature_names_in_
            return list(X)
        array = validate_data(self, X, dtype=[np.float64, np.float32], ensure_all_finite=True)
        if clients is None:
            return [array]
        _, number_N = np.unique(np.asarray(clients), return_inverse=True)
        if number_N.shape != (len(array),):
            raise UserError(f"clients names {number_N.size} rows; the array has {len(array)}")
        return [array[number_N == number] for number in range(number_N.max() + 1)]

    def _take(self, found: Clustered, log: Log) -> None:
        self.cluster_centers_ = found.centers
        self.method_ = found.title
        self.client_reports_, self.server_report_ = found.client_reports, found.server
        self.excluded_, self.suspects_ = found.excluded, found.suspects
        self.exchanged_ = log.table()
        self.bytes_up_, self.bytes_down_ = log.bytes(up=True), log.bytes(up=False)
        self._spherical = found.settings.spherical

    def _fit_pooled(self, parts: list[Any], settings: Settings) -> None:
        points = np.concatenate([as_points(part) for part in parts])
        merged = pooled(unit_rows(points) if settings.spherical else points, settings)
        nothing: dict[int, Any] = {}
        self._take(Clustered(merged.centers, settings, nothing, merged.report, {}, {}, {}), Log())

    def _labels_of(self, part: Any) -> tuple[NDArray[np.int64], float]:
        try:
            points = self._prepared(as_points(part))
        except UserError:
            return np.full(rows_of(part), -1, dtype=np.int64), 0.0
        labels, squared = nearest(points, self.cluster_centers_)
        return labels, float(squared.sum())

    def _prepared(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        if points.shape[1] != self.cluster_centers_.shape[1]:
            raise UserError(
                f"X has {points.shape[1]} features, but FederatedKMeans is expecting "
                f"{self.cluster_centers_.shape[1]} features as input"
            )
        return unit_rows(points) if self._spherical else points

    def _checked(self, X: Any) -> NDArray[np.float64]:
        check_is_fitted(self, "cluster_centers_")
        if hasattr(self, "feature_names_in_"):
            return self._prepared(validate_data(self, X, dtype=np.float64, reset=False))
        return self._prepared(check_array(X, dtype=np.float64))

    def predict(self, X: Any) -> Any:
        """The nearest center of each point, ties to the lower number: [N], or a list of these for a list of arrays."""
        if is_list_of_clients(X):
            return [self.predict(part) for part in X]
        return nearest(self._checked(X), self.cluster_centers_)[0]

    def transform(self, X: Any) -> Any:
        """Distances to the centers, [N, K]; a list of these for a list of arrays."""
        if is_list_of_clients(X):
            return [self.transform(part) for part in X]
        return distances(self._checked(X), self.cluster_centers_)

    def fit_predict(self, X: Any, y: None = None, **kwargs: Any) -> Any:
        """`fit(X).labels_`."""
        return self.fit(X, **kwargs).labels_

    @property
    def _n_features_out(self) -> int:
        return len(self.cluster_centers_)


_OPTIONS = (
    "client_init",
    "n_init",
    "local_clusters",
    "eliminate",
    "radius",
    "quantile",
    "seeds",
    "restarts",
    "refine_rounds",
    "min_count",
    "spherical",
    "kfed_seeds",
    "kfed_steps",
    "on_few_groups",
    "suspects",
)
