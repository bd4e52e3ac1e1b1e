"""Results of the three verbs, declared once: the wing builds result.json from these models, the pages read them."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from foveate.core.results import ResultModel, RunResult

CLUSTER, EMBED, FEATURES = "federated_cluster", "federated_embed", "federated_features"
"""Kinds of result.json; each is the name of its page."""
_SUSPECTS = "anomalous clients in the result and what to do: the first lines of page and terminal"


class Traffic(ResultModel):
    """One row of the traffic table: messages of one kind in one direction, and one array (or the values) in them."""

    kind: str
    up: bool = Field(description="from a client to the server")
    name: str = Field(description="of the array; all names where it is single values")
    dtype: str
    messages: int
    bytes: int
    smallest: list[int] = Field([], description="smallest shape")
    largest: list[int] = Field([], description="largest shape")


class GroupMap(ResultModel):
    """Plane positions of a sample of points, each with its client (index), group and label, and of all centers."""

    positions: list[list[float]] = []
    owners: list[int] = []
    groups: list[int] = []
    labels: list[str] | None = None
    centers: list[list[float]] = []
    sent: list[list[float]] = Field([], description="centroids that clients sent")
    projected: bool = Field(False, description="the data have more than two features")


class ClusterClient(ResultModel):
    """One client of a clustering; `None` and "" where nothing is known or nothing is wrong."""

    name: str
    points: int
    sent: int = Field(0, description="number of centroids sent")
    trusted: int | None = None
    smallest: int | None = Field(None, description="points of the smallest cluster it sent")
    groups: int = 0
    classes: int | None = None
    distance: float | None = None
    nmi: float | None = None
    ari: float | None = None
    purity: float | None = None
    bytes_up: int = Field(0, description="bytes that it sent")
    excluded: str = ""
    suspect: str = ""


class ClusterMethod(ResultModel):
    """One method's quality and cost."""

    method: str
    federated: bool = True
    clusters: int
    quality: dict[str, float] = {}
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0


class PrivacyCost(ResultModel):
    """Privacy of one kind of message; rho and epsilon are None without noise, or if only the clients know it."""

    name: str
    unit: str = Field(description="what is protected: a client, a point, or nothing")
    messages: int
    delta: float
    rho: float | None = None
    epsilon: float | None = None


class ClusterResult(RunResult):
    """result.json of `foveate federated cluster`; the first of `methods` is the run's own."""

    kind: str = CLUSTER
    method: str
    note: str = ""
    clusters: int
    features: int
    split: str = ""
    points: int
    clients: list[ClusterClient]
    methods: list[ClusterMethod]
    exchanged: list[Traffic] = []
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0
    server: dict[str, Any] = Field({}, description="report of the server step")
    suspects: list[str] = Field([], description=_SUSPECTS)
    privacy: list[PrivacyCost] = Field([], description="account of the noise; empty without noise")
    notes: list[str] = []
    map: GroupMap
    options: dict[str, Any] = {}


class EmbedMap(ResultModel):
    """Positions of a sample of points on one method's map, each with its client (index) and label."""

    positions: list[list[float]] = []
    owners: list[int] = []
    labels: list[str] | None = None


class EmbedClient(ResultModel):
    """One client's part of a map."""

    name: str
    points: int
    classes: int | None = None
    trustworthiness: float | None = None
    bytes_up: int = Field(0, description="bytes that it sent")


class EmbedRound(ResultModel):
    """One round; losses are None where noise hides the training."""

    round: int
    rate: float | None = None
    attraction: float | None = None
    repulsion: float | None = None
    foreign: float | None = None
    outside: int | None = None
    r2: dict[str, float] = Field({}, description="of the surrogates, between their queries, by client")
    gradient_cosine: dict[str, float] = Field({}, description="of the surrogates' gradients with the true ones")
    gradient_ratio: dict[str, float] = Field({}, description="length of those gradients, in units of the true ones'")


class EmbedMethod(ResultModel):
    """One method's map, quality, rounds and cost."""

    method: str
    description: str = ""
    quality: dict[str, float] = {}
    clients: list[EmbedClient] = []
    notes: dict[str, int] = Field({}, description="warnings and how often each occurred")
    exchanged: list[Traffic] = []
    privacy: list[PrivacyCost] = []
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0
    history: list[EmbedRound] = []
    map: EmbedMap


class EmbedResult(RunResult):
    """result.json of `foveate federated embed`; the first of `maps` is the run's own."""

    kind: str = EMBED
    method: str
    split: str = ""
    features: int | None = None
    clients: dict[str, int] = Field(description="points by client")
    held_out: int = 0
    neighbors: int = 7
    maps: list[EmbedMethod]
    suspects: list[str] = Field([], description=_SUSPECTS)
    payoff: str = Field("", description="whether surrogates pay against federated averaging on these data")
    options: dict[str, Any] = {}


class FeaturesClient(ResultModel):
    """One client of a trained encoder."""

    name: str
    points: int
    groups: int | None = None
    rounds: int = Field(0, description="rounds in which it trained")
    distance: float | None = None
    classes: int | None = None
    nmi: float | None = None
    ari: float | None = None
    purity: float | None = None
    excluded: str = ""


class FeaturesMethod(ResultModel):
    """One method's quality and cost."""

    method: str
    description: str = ""
    federated: bool = True
    rounds: int = 0
    quality: dict[str, float] = {}
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0


class FeaturesRound(ResultModel):
    """One round: loss over clients, None where noise hides it, and how far the centers moved (1 - cosine)."""

    round: int
    loss: float | None = None
    clients: list[int] = []
    moved: float | None = None


class FeaturesResult(RunResult):
    """result.json of `foveate federated features`; the first of `methods` is the run's own."""

    kind: str = FEATURES
    method: str
    description: str = ""
    clustering: str = ""
    encoder: str = "none"
    clusters: int
    features: int
    width: int
    split: str = ""
    points: int
    clients: list[FeaturesClient]
    methods: list[FeaturesMethod]
    exchanged: list[Traffic] = []
    history: list[FeaturesRound] = []
    suspects: list[str] = Field([], description=_SUSPECTS)
    notes: list[str] = []
    map: GroupMap
    options: dict[str, Any] = {}
