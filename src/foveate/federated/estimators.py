"""scikit-learn estimators of the federated wing: `fit([client_1, client_2, ...])` in one process."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClusterMixin, TransformerMixin
from sklearn.utils.validation import (
    check_array,
    check_is_fitted,
    validate_data,  # pyrefly: ignore[missing-module-attribute]
)

from foveate.core.errors import UserError
from foveate.federated.clustering.distances import distances, nearest
from foveate.federated.clustering.fit import Clustered, cluster, cluster_pooled
from foveate.federated.clustering.methods import METHOD_OPTIONS, load_method, resolve
from foveate.federated.clustering.options import ClusteringOptions
from foveate.federated.clustering.protocol import HANDLERS, as_points
from foveate.federated.rounds import Client, InProcess, Log
from foveate.federated.validation import count_rows, draw_seed, is_list_of_clients, remember_columns

# Options that are parameters under the same name.
_OPTIONS = tuple(
    name for name in ClusteringOptions.model_fields if name not in ("clusters", "method", "seed", "changed")
)


class FederatedKMeans(ClusterMixin, TransformerMixin, BaseEstimator):
    """K groups of data that stay at their clients, from one exchange of centroids (and rounds of sums, where asked).

    The default method `consensus` is Foveate's own. `paper_reconstruction` is what can be known of FeCA (arXiv
    2407.12764), whose body was not available and whose code was never published; it reproduces no number of the paper.
    Baselines: `kfed`, `weighted_kmeans`, `naive`, and `central`, which pools all points and is not federated.

    Parameters:
        n_clusters: K, the number of groups of all clients together.
        method: method that merges centroids into K centers; an unknown name prints the list.
        local_clusters: clusters that each client looks for: one number, one per client, or K by default.
        client_init: start of a client's k-means. None: awasthi_sheffet with kfed; random with naive or
            paper_reconstruction; else kmeans++.
        n_init: runs of a client's k-means; the best one counts. None: 20 with central; 1 with kfed, naive or
            paper_reconstruction; else 5.
        scale: standard: columns in units of their common standard deviation, from sums that clients send; rows are not
            sent.
        spherical: cluster directions: rows are scaled to length 1.
        eliminate: centroids that a client doubts are sent and marked, are not sent, or are not looked for. None: none
            with central, kfed, naive or weighted_kmeans; drop with paper_reconstruction; else flags; none with noise.
        radius: grouping radius: a number, or half_min_distance, max_over_clients, quantile, fused, k_aware. None:
            half_min_distance with paper_reconstruction; else k_aware.
        quantile: of the radius rule 'quantile'.
        seeds: order in which groups are formed: largest_radius, most_neighbors, most_mass. None: largest_radius with
            paper_reconstruction; else most_mass.
        restarts: weighted k-means++ starts of the server. None: 20 with weighted_kmeans; else 10.
        refine_rounds: number of refinement rounds with sums and counts; 0 = one-shot. None: 0 with central, kfed,
            naive, paper_reconstruction or weighted_kmeans; else 1.
        min_count: merge clusters with fewer points before sending; suggested for sensitive data: 10.
        winsorize: each client clips columns to the 5th and 95th percentile, widened by so many times their distance.
        noise: standard deviation z of the noise on counts, and of that on sums in units of the clip.
        clip: norm to which rows are clipped where there is noise.
        noise_steps: steps of a client's k-means with noise.
        kfed_seeds: centroids of the first client that k-FED starts from.
        kfed_steps: steps of Lloyd in k-FED.
        on_few_groups: error, or fewer centers with a warning, where there are fewer groups than clusters.
        suspects: auto: clients with a column that is certainly in another unit are left out, and other anomalous ones
            are reported; report: all stay in; exclude: all are left out.
        min_clients: minimum number of clients that must respond.
        timeout: seconds to wait for a client before it is left out.
        answers_folder: stores the answers, so that a fit of the same data that was killed resumes.
        random_state: as in scikit-learn.

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

    # <signature>: made from the options by tools/write_signatures.py
    def __init__(
        self,
        n_clusters: int = 8,
        *,
        method: str = "consensus",
        local_clusters: int | Sequence[int] | None = None,
        client_init: Literal["kmeans++", "random", "awasthi_sheffet"] | None = None,
        n_init: int | None = None,
        scale: Literal["none", "standard"] = "none",
        spherical: bool = False,
        eliminate: Literal["flags", "drop", "none"] | None = None,
        radius: float | str | None = None,
        quantile: float = 0.75,
        seeds: str | None = None,
        restarts: int | None = None,
        refine_rounds: int | None = None,
        min_count: int = 1,
        winsorize: float | None = None,
        noise: float = 0.0,
        clip: float | None = None,
        noise_steps: int = 5,
        kfed_seeds: Literal["all", "one"] = "all",
        kfed_steps: Literal["converged", "one"] = "converged",
        on_few_groups: Literal["raise", "return"] = "raise",
        suspects: Literal["auto", "report", "exclude"] = "auto",
        min_clients: int = 1,
        timeout: float | None = None,
        answers_folder: str | Path | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.method = method
        self.local_clusters = local_clusters
        self.client_init = client_init
        self.n_init = n_init
        self.scale = scale
        self.spherical = spherical
        self.eliminate = eliminate
        self.radius = radius
        self.quantile = quantile
        self.seeds = seeds
        self.restarts = restarts
        self.refine_rounds = refine_rounds
        self.min_count = min_count
        self.winsorize = winsorize
        self.noise = noise
        self.clip = clip
        self.noise_steps = noise_steps
        self.kfed_seeds = kfed_seeds
        self.kfed_steps = kfed_steps
        self.on_few_groups = on_few_groups
        self.suspects = suspects
        self.min_clients = min_clients
        self.timeout = timeout
        self.answers_folder = answers_folder
        self.random_state = random_state

    # </signature>

    def _options(self) -> ClusteringOptions:
        # What is left alone is not given: methods have defaults of their own, and warn of options without effect.
        options = {name: getattr(self, name) for name in _OPTIONS if not self._is_default(name)}
        seed = draw_seed(self.random_state)
        return resolve(self.n_clusters, method=self.method, seed=seed, where=type(self).__name__, **options)

    def _is_default(self, name: str) -> bool:
        value, default = getattr(self, name), ClusteringOptions.model_fields[name].default
        # Types first: values of other types, such as arrays, may not compare to one truth value.
        return value is None or (name not in METHOD_OPTIONS and type(value) is type(default) and value == default)

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
