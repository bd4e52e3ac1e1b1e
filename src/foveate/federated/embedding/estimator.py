"""`FederatedNeighborEmbedding`: one map of data at several clients, with scikit-learn's conventions."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import (
    check_is_fitted,
    validate_data,  # pyrefly: ignore[missing-module-attribute]
)
from torch import nn

from foveate.core.errors import UserError
from foveate.federated.anomaly import warn_of_suspects
from foveate.federated.embedding.job import MapJob
from foveate.federated.embedding.networks import encoder_config, frozen_rows, load_encoder, save_encoder
from foveate.federated.embedding.options import ESTIMATOR_NAMES, LOCAL, EmbeddingOptions, read_options
from foveate.federated.embedding.state import MapState
from foveate.federated.job import fit_in_process, load_snapshot, save_snapshot
from foveate.federated.rounds import Log
from foveate.federated.scaling import Scaling
from foveate.federated.validation import draw_seed, is_list_of_clients, read_clients, remember_columns
from foveate.metrics.neighbors import as_points

_NO_OPTIONS = ("random_state", "encoder", "device", "checkpoint", "options")


def _are_clients(data: Any) -> bool:
    """Whether data are several clients' matrices: a list of them, an empty list, or an array of three axes."""
    if isinstance(data, list | tuple):
        return not data or is_list_of_clients(data)
    return isinstance(data, np.ndarray) and data.ndim == 3


class FederatedNeighborEmbedding(TransformerMixin, BaseEstimator):
    """FedNE: several clients train one encoder that draws one map of all their data, which stay where they are.

    Source: FedNE (NeurIPS 2024, arXiv 2409.11509). Deviations are listed in `docs/methods/fedne.md`.
    The learning rate falls to a tenth after 60 % of the rounds. The method "fedne_exact" is not private.

    Parameters:
        n_components: dimensions of the map; surrogates of more would need too many queries.
        n_neighbors: edges per point.
        method: FedNE or one of its baselines.
        n_rounds: rounds of training and averaging.
        learning_rate: of the clients' Adam.
        hidden_layer_sizes: widths of the encoder's hidden layers.
        encoder: a torch module to use instead; it is copied.
        surrogate: what a client sends of its repulsion: a table of values, or a network. None: grid; network with
            another `grid` in `options` than union.
        surrogate_start: share of the rounds before clients repel one another.
        refresh: rounds between new surrogates.
        mixing: train on mixtures of neighboring points, too.
        participation: share of the clients that train in a round.
        dtype: of points, weights and map positions.
        device: device of PyTorch.
        options: any other option of `foveate federated embed`, by the name of its field.
        checkpoint: a file that stores the state after every round; the same call with the same data resumes from it.
        random_state: as in scikit-learn.

    Attributes:
        embedding_: a list with the map positions of every client, [n, n_components] each; a plain array if one matrix
            was passed.
        encoder_: the common network (with "local" that of the first client).
        encoders_: by client, with "local" only.
        history_: one entry per round: losses, R2 of surrogates and how their gradients compare, bytes, seconds.
        notes_: warnings and their counts.
        log_: every message.
        scaling_: common offset and divisor of the columns with options={"scale": "standard"}; else None.
        options_: all options.
        n_features_in_, random_state_: as in scikit-learn.

    >>> import numpy as np
    >>> random = np.random.default_rng(0)
    >>> clients = [random.normal(size=(40, 5)) + 4 * client for client in range(3)]
    >>> model = FederatedNeighborEmbedding(n_rounds=4, random_state=0).fit(clients)
    >>> [positions.shape for positions in model.embedding_], model.transform(clients[0][:2]).shape
    ([(40, 2), (40, 2), (40, 2)], (2, 2))
    """

    # <signature>: made from the options by tools/write_signatures.py
    def __init__(
        self,
        n_components: int = 2,
        *,
        n_neighbors: int = 7,
        method: Literal["fedne", "fedavg", "fedprox", "local", "global", "fedne_exact"] = "fedne",
        n_rounds: int = 150,
        learning_rate: float = 0.001,
        hidden_layer_sizes: Sequence[int] = (100, 100, 100),
        encoder: nn.Module | None = None,
        surrogate: Literal["network", "network64", "grid"] | None = None,
        surrogate_start: float = 0.3,
        refresh: int = 1,
        mixing: bool = False,
        participation: float = 1.0,
        dtype: Literal["float32", "float64"] = "float32",
        device: str = "cpu",
        options: Mapping[str, Any] | None = None,
        checkpoint: str | Path | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_components = n_components
        self.n_neighbors = n_neighbors
        self.method = method
        self.n_rounds = n_rounds
        self.learning_rate = learning_rate
        self.hidden_layer_sizes = hidden_layer_sizes
        self.encoder = encoder
        self.surrogate = surrogate
        self.surrogate_start = surrogate_start
        self.refresh = refresh
        self.mixing = mixing
        self.participation = participation
        self.dtype = dtype
        self.device = device
        self.options = options
        self.checkpoint = checkpoint
        self.random_state = random_state

    # </signature>

    def fit(self, X: Any, y: Any = None, *, names: Sequence[str] = ()) -> FederatedNeighborEmbedding:
        """Train on the points of all clients.

        Args:
            X: a list with one matrix of points per client; a single matrix is one client.
            y: ignored.
            names: of the clients, for messages.

        Raises:
            UserError: points or options that do not fit one another or the checkpoint; names the client or option.
        """
        several = _are_clients(X)
        # Matrices of a list are checked by `fit_in_process`, whose errors name the client.
        clients = list(X) if several else [validate_data(self, X, dtype=[np.float64, np.float32])]
        if several:
            remember_columns(self, clients)
        options = self._read_options()
        job = MapJob(options, self.encoder)
        path = None if self.checkpoint is None else Path(self.checkpoint)
        state = None if path is None else load_snapshot(path, job)

        def after(current: MapState) -> None:
            if path is not None:
                save_snapshot(path, job, current)

        log = Log()
        state = fit_in_process(job, clients, names=names, device=self.device, state=state, after=after, log=log)
        fitted = job.finished(state, log)
        self.options_ = options
        self.encoder_ = fitted.encoder
        self.history_ = state.history
        self.notes_ = state.notes
        remedy = "options={'suspects': 'exclude'} leaves it out"
        suspects = warn_of_suspects(state.notes, len(clients), remedy=remedy)
        others = [
            f"{note} ({count} times)"
            for note, count in state.notes.items()
            if not any(suspect.startswith(note) for suspect in suspects)
        ]
        for warning in suspects + others:
            warnings.warn(warning, UserWarning, stacklevel=2)
        self.log_ = log
        self.n_features_in_ = state.features
        if options.method == LOCAL:
            self.encoders_ = fitted.encoders
        self.scaling_ = state.scaling
        positions = [fitted.transform(part, client=number) for number, part in enumerate(read_clients(clients))]
        self.embedding_ = positions if several else positions[0]
        self._clients = len(clients)
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()  # pyrefly: ignore[missing-attribute]
        tags.transformer_tags.preserves_dtype = []  # `dtype` decides, not the input
        return tags

    def _read_options(self) -> EmbeddingOptions:
        fields = {parameter: field for field, parameter in ESTIMATOR_NAMES.items()}
        content = {
            # A `surrogate` of None is left out: the options choose it by dimensions and grid.
            fields.get(name, name): value
            for name, value in self.get_params(deep=False).items()
            if name not in _NO_OPTIONS and not (name == "surrogate" and value is None)
        }
        content["hidden"] = tuple(self.hidden_layer_sizes)
        more = dict(self.options or {})
        twice = sorted(set(more) & (set(content) | {"seed"}))
        if twice:
            raise UserError(f"options: '{twice[0]}' is a parameter of its own")
        if self.encoder is not None:
            # A passed encoder brings its precision along; weights are averaged in it.
            content["precision"] = str(next(self.encoder.parameters()).dtype).removeprefix("torch.")
        self.random_state_ = draw_seed(self.random_state)
        return read_options(content | more | {"seed": self.random_state_}, where="FederatedNeighborEmbedding")

    def transform(self, X: Any, *, client: int | None = None) -> Any:
        """Map positions of any points, [N, n_components]; a list of these for a list of matrices.

        Args:
            client: whose encoder; with "local" only, whose encoders have nothing to do with one another.
        """
        check_is_fitted(self, "encoder_")
        if _are_clients(X):
            return [self.transform(matrix, client=client) for matrix in X]
        points = as_points(validate_data(self, X, dtype=[np.float64, np.float32], reset=False, ensure_min_samples=0))
        network = self.encoder_
        if client is not None:
            if not hasattr(self, "encoders_"):
                raise UserError("transform(client=...) has no meaning here: all clients share one encoder")
            network = self.encoders_[client]
        if self.scaling_ is not None:
            points = self.scaling_.apply(points)
        first = next(network.parameters())
        return frozen_rows(network, first.new_tensor(points)).cpu().numpy()

    def fit_transform(self, X: Any, y: Any = None, **fit_params: Any) -> Any:
        """Train, and return `embedding_`."""
        return self.fit(X, y, **fit_params).embedding_

    def save(self, folder: str | Path, *, metrics: dict[str, Any] | None = None) -> Path:
        """Write the common encoder as a model folder, which `load` opens.

        Raises:
            UserError: an `encoder` was passed, whose architecture a folder could not rebuild.
        """
        check_is_fitted(self, "encoder_")
        if self.encoder is not None:
            raise UserError(
                "an encoder of another architecture cannot be saved as a model folder; save its state itself"
            )
        config = encoder_config(self.options_, self.n_features_in_, self._clients, self.scaling_)
        return save_encoder(self.encoder_, Path(folder), config, metrics=metrics)

    @classmethod
    def load(cls, folder: str | Path) -> FederatedNeighborEmbedding:
        """Open a model folder as an estimator that can `transform`."""
        network, config = load_encoder(Path(folder))
        options = read_options(config["options"], where=f"{folder}/config.json")
        known = set(cls().get_params()) - set(_NO_OPTIONS)
        values = {ESTIMATOR_NAMES.get(name, name): value for name, value in options.model_dump().items()}
        model = cls(**{name: value for name, value in values.items() if name in known}, random_state=options.seed)
        rest = {name: value for name, value in values.items() if name not in known and name != "seed"}
        # Keep only values that differ from the defaults: the estimator then prints as a user would have written it.
        default = EmbeddingOptions().model_dump()
        model.set_params(options={name: value for name, value in rest.items() if value != default[name]} or None)
        model.options_, model.encoder_, model.n_features_in_ = options, network, int(config["widths"][0])
        model.scaling_ = Scaling.read(config.get("scaling"), model.n_features_in_, where=f"{folder}/config.json")
        model.random_state_, model.history_, model.notes_ = options.seed, [], {}
        model._clients = int(config.get("clients", 1))
        return model
