"""`FederatedDeepClustering`: DeepFeCA with scikit-learn's conventions."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClusterMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from foveate.core.errors import UserError, choose
from foveate.federated.clustering.distances import nearest
from foveate.federated.clustering.protocol import unit_rows
from foveate.federated.deep.encoder import build_embedder, set_weights
from foveate.federated.deep.job import DeepJob
from foveate.federated.deep.options import DEEPFECA, UNTRAINED, DeepOptions, read_options
from foveate.federated.deep.protocol import AUGMENTS, Augment, embed, handlers
from foveate.federated.job import run_rounds
from foveate.federated.rounds import Client, InProcess, Log
from foveate.federated.validation import check_columns, common_columns, draw_seed, is_list_of_clients


def as_samples(data: ArrayLike) -> Tensor:
    """Read a client's features [N, D] or images [N, C, H, W] as float32.

    Raises:
        UserError: no sample, not numbers, NaN, or another shape.
    """
    array = np.asarray(data)
    if array.dtype.kind not in "biuf" or array.ndim not in (2, 4) or array.size == 0:
        raise UserError(
            f"samples must be numbers [N, D] or [N, channels, height, width] (got {array.dtype} {list(array.shape)})"
        )
    # Written with `not`, so that NaN fails, too.
    if not float(np.abs(array).max()) <= float(np.finfo(np.float32).max):
        raise UserError("samples have NaN, infinite or huge values")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


_OPTIONS = ("width", "local_epochs", "batch_size", "learning_rate", "temperature", "n_init", "min_count", "eliminate")


class FederatedDeepClustering(ClusterMixin, TransformerMixin, BaseEstimator):
    """Clients train one encoder; each round a server merges their centroids into K centers, the targets of training.

    A reconstruction of DeepFeCA (arXiv 2407.12764, whose body was not available) on the form of DeepCluster-v2; the
    server's step is `consensus`, not the paper's. It reproduces no number of the paper.

    Parameters:
        n_clusters: K, the number of groups of all clients together.
        encoder: a torch module from a batch to [B, inner]; it is copied. None: the data are features and only a head is
            trained. `foveate.federated.small_resnet` is one for small images.
        n_rounds: rounds of clustering, training and averaging.
        width: width of the embedding.
        local_epochs: passes of a client over its points per round.
        batch_size: points per step of a client.
        learning_rate: of the clients' SGD with momentum 0.9.
        temperature: divisor of the cosines in the loss.
        augment: augmentation: "none", "noise" (features), "shift" (images), or a function of (batch, torch.Generator).
        method: server method that makes K centers of the clients' centroids.
        n_init: runs of a client's k-means; the best one counts.
        min_count: clusters of fewer points are merged before anything is sent.
        eliminate: what becomes of doubted centroids; the clustering's default if not given.
        min_clients: minimum number of clients that must respond.
        answers_folder: stores the answers, so that a fit that was killed resumes with the same data and options. Of an
            `augment` that is a function the name is compared, of `encoder` its layers and initial weights.
        random_state: as in scikit-learn.

    Attributes:
        encoder_: the trained `Embedder`.
        cluster_centers_: [K, width], unit vectors.
        labels_: one array per client.
        history_: one entry per round: loss, clients, how far the centers moved, bytes.
        excluded_: by client why it was left out.
        suspects_: for each suspicious client the anomaly of its centroids or weights.
        exchanged_, bytes_up_, bytes_down_: all that was sent.
        method_, n_features_in_: as in `FederatedKMeans`.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> clients = [rng.normal(size=(30, 4)) + 5 * np.eye(4)[i] for i in (0, 1)]
        >>> model = FederatedDeepClustering(2, n_rounds=1, width=4, random_state=0).fit(clients)
        >>> model.predict(clients[0]).shape
        (30,)
    """

    # <signature>: made from the options by tools/write_signatures.py
    def __init__(
        self,
        n_clusters: int = 8,
        *,
        encoder: nn.Module | None = None,
        n_rounds: int = 20,
        width: int = 128,
        local_epochs: int = 1,
        batch_size: int = 64,
        learning_rate: float = 0.05,
        temperature: float = 0.1,
        augment: Literal["none", "noise", "shift"] | Augment = "none",
        method: str = "consensus",
        n_init: int = 5,
        min_count: int = 1,
        eliminate: Literal["flags", "drop", "none"] | None = None,
        min_clients: int = 1,
        answers_folder: str | Path | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.encoder = encoder
        self.n_rounds = n_rounds
        self.width = width
        self.local_epochs = local_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.temperature = temperature
        self.augment = augment
        self.method = method
        self.n_init = n_init
        self.min_count = min_count
        self.eliminate = eliminate
        self.min_clients = min_clients
        self.answers_folder = answers_folder
        self.random_state = random_state

    # </signature>

    def fit(self, X: Any, y: None = None) -> FederatedDeepClustering:
        """Train on a list with one array of features or images per client.

        Raises:
            UserError: data or options that do not fit.
        """
        if not isinstance(X, list | tuple) or not X:
            raise UserError("fit needs a list with one array per client")
        seed = draw_seed(self.random_state)
        options = self._options(seed)
        self._columns = common_columns(X)
        samples = [as_samples(data) for data in X]
        shapes = {tuple(data.shape[1:]) for data in samples}
        if len(shapes) > 1:
            raise UserError(f"clients have samples of different shapes: {sorted(shapes)}")
        custom: dict[str, Augment] = {}
        if isinstance(self.augment, str):
            augment = choose(self.augment, AUGMENTS, "augment")
        else:
            # Requests carry names only; the name of a custom function is part of what stored answers belong to.
            named = self.augment if hasattr(self.augment, "__qualname__") else type(self.augment)
            augment = f"{named.__module__}.{named.__qualname__}"
            custom[augment] = self.augment
        network = build_embedder(self.encoder, samples[0][:1], seed=seed, width=self.width)
        job = DeepJob(options, network=network)
        job.rounds = replace(job.rounds, training=replace(job.rounds.training, augment=augment))
        log = Log()
        answering = handlers(network, custom)
        clients = [Client(number, data, answering, about=str(network)) for number, data in enumerate(samples)]
        folder = None if self.answers_folder is None else Path(self.answers_folder)
        transport = InProcess(clients, answers_folder=folder, log=log)
        state = job.begin(transport)
        # Answers of finished rounds stay in the folder: there is no snapshot that could take their place.
        run_rounds(job, transport, state, min_clients=self.min_clients, forget=False)
        assert state.centers is not None
        set_weights(network, state.weights)
        self.encoder_ = network
        self.cluster_centers_ = state.centers
        for client, reason in state.excluded.items():
            warnings.warn(f"client {client} was left out: {reason}", UserWarning, stacklevel=2)
        for warning in state.warnings(lambda client: f"client {client}", len(clients)):
            warnings.warn(warning, UserWarning, stacklevel=2)
        self.history_, self.excluded_, self.suspects_ = state.history, state.excluded, state.describe_suspects()
        self.exchanged_, self.bytes_up_, self.bytes_down_ = log.table(), log.bytes(up=True), log.bytes(up=False)
        rounds = f"{self.n_rounds} round{'s' * (self.n_rounds != 1)}"
        self.method_ = f"DeepFeCA, reconstructed, with {job.rounds.clustering.method_title}, {rounds}"
        self.n_features_in_ = int(np.prod(samples[0].shape[1:]))
        self._shape = tuple(samples[0].shape[1:])
        self.labels_ = [self.predict(data) for data in X]
        return self

    def _options(self, seed: int) -> DeepOptions:
        """Options of the training, checked by the bounds of `DeepOptions`."""
        # Check this here: 0 rounds is allowed for an estimator (the untrained encoder), and `DeepOptions` starts at 1.
        if isinstance(self.n_rounds, bool) or not isinstance(self.n_rounds, int) or self.n_rounds < 0:
            raise UserError(f"n_rounds must be a whole number from 0 (got {self.n_rounds!r})")
        content = {name: getattr(self, name) for name in _OPTIONS}
        content |= {
            "clusters": self.n_clusters,
            "clustering": self.method,
            "method": DEEPFECA if self.n_rounds else UNTRAINED,
            "rounds": self.n_rounds or 1,
            "seed": seed,
        }
        # NumPy's numbers come from grid searches; strict fields would refuse them.
        plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in content.items()}
        return read_options(plain, where=type(self).__name__)

    def _samples(self, X: ArrayLike) -> Tensor:
        check_is_fitted(self, "cluster_centers_")
        if self._columns is not None:
            check_columns(X, self._columns)
        samples = as_samples(X)
        if tuple(samples.shape[1:]) != self._shape:
            raise UserError(f"samples must have shape {list(self._shape)}, as in fit (got {list(samples.shape[1:])})")
        return samples

    def transform(self, X: Any) -> Any:
        """Embed samples as vectors of length 1, [N, width]; a list of these for a list of clients, as everywhere."""
        if is_list_of_clients(X):
            return [self.transform(data) for data in X]
        return unit_rows(embed(self.encoder_, self._samples(X)))

    def features(self, X: Any) -> Any:
        """Return the encoder's output before the head, [N, inner]."""
        if is_list_of_clients(X):
            return [self.features(data) for data in X]
        return embed(self.encoder_, self._samples(X), head=False)

    def predict(self, X: Any) -> Any:
        """Return the index of the nearest center of each sample, [N]."""
        if is_list_of_clients(X):
            return [self.predict(data) for data in X]
        return nearest(self.transform(X), self.cluster_centers_)[0]
