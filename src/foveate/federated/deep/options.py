"""Options of DeepFeCA and its baselines (names, bounds, defaults), and the kinds of its messages; loads no torch."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import Field

from foveate.core.errors import UserError, choose
from foveate.core.recipes import Settings, validate
from foveate.federated.clustering.methods import load_method, method_names, resolve
from foveate.federated.clustering.options import ClusteringOptions
from foveate.federated.messages import Message, MessageError
from foveate.federated.secure_sums import WEIGHTS, SumFormat

DEEPFECA, LOCAL, POOLED, UNTRAINED = "deepfeca", "local", "central", "untrained"
METHODS = {
    DEEPFECA: "one encoder averaged over clients, which train towards common centers",
    LOCAL: "the same, but each client trains towards its own centroids: only weights are shared",
    POOLED: "all data in one place: not federated, an upper bound",
    UNTRAINED: "the initial weights: one clustering, no training",
}


class DeepOptions(Settings):
    """All that decides a run, besides the data and the number of clients."""

    clusters: int = Field(ge=1, description="K, the number of groups of all clients together")
    method: Literal["deepfeca", "local", "central", "untrained"] = Field(
        DEEPFECA, description="DeepFeCA or one of its baselines"
    )
    clustering: str = Field("consensus", description="server method that makes K centers of the clients' centroids")
    encoder: Literal["none", "small_resnet", "small_vit"] = Field(
        "none", description="network before the head; none: the data are features, and only the head is trained"
    )
    shape: tuple[int, int, int] | None = Field(
        None, description="channels, height, width of the images in the rows; a square of 1 or 3 channels by default"
    )
    scale: Literal["none", "standard"] = Field(
        "none",
        description="standard: columns in units of their common standard deviation, from sums that clients send; "
        "rows are not sent",
    )
    # 128 as in DeepCluster-v2, whose hidden layer, unlike the one below, is 2048 wide.
    width: int = Field(128, ge=2, le=4096, description="width of the embedding")
    hidden: int = Field(256, ge=1, le=65536, description="width of the head's hidden layer")
    rounds: int = Field(20, ge=1, le=100_000, description="rounds of clustering, training and averaging")
    local_epochs: int = Field(1, ge=1, le=100, description="passes of a client over its points per round")
    batch_size: int = Field(64, ge=2, description="points per step of a client")
    learning_rate: float = Field(0.05, gt=0, le=10, description="of the clients' SGD with momentum 0.9")
    # The value of DeepCluster-v2.
    weight_decay: float = Field(1e-6, ge=0, le=1, description="of the clients' SGD")
    # The published value.
    temperature: float = Field(0.1, gt=0, le=10, description="divisor of the cosines in the loss")
    augment: Literal["none", "noise", "shift"] = Field(
        "none", description="augmentation: noise for features, shift for images"
    )
    n_init: int | None = Field(
        None, ge=1, le=100, description="runs of a client's k-means; the clustering's default if not given"
    )
    min_count: int = Field(1, ge=1, description="clusters of fewer points are merged before anything is sent")
    eliminate: Literal["flags", "drop", "none"] | None = Field(
        None, description="what becomes of doubted centroids; the clustering's default if not given"
    )
    seed: int = Field(0, ge=0, description="seed of all random numbers")

    def clustering_options(self) -> ClusteringOptions:
        """Options of each round's clustering: spherical, one shot (the rounds of training refine instead)."""
        return resolve(
            self.clusters,
            method=self.clustering,
            seed=self.seed,
            refine_rounds=0,
            spherical=True,
            n_init=self.n_init,
            min_count=self.min_count,
            eliminate=self.eliminate,
        )

    @property
    def reads_images(self) -> bool:
        """Whether rows are images."""
        return self.encoder != "none"


def read_options(content: dict[str, Any], *, where: str = "DeepFeCA") -> DeepOptions:
    """Check options.

    Raises:
        UserError: an unknown name, a value that is not allowed, or options that do not fit one another.
    """
    options = validate(DeepOptions, content, where=where)
    choose(options.clustering, method_names(), "clustering")
    if not load_method(options.clustering).federated:
        raise UserError(f"{where}: the clustering '{options.clustering}' pools raw points; no client sends them")
    if options.shape is not None and not options.reads_images:
        raise UserError(f"{where}: field 'shape' has no effect without an encoder of images, such as small_resnet")
    if options.augment == "shift" and not options.reads_images:
        raise UserError(f"{where}: field 'augment': shift moves images; without an encoder of images use noise or none")
    if options.scale != "none" and options.reads_images:
        raise UserError(f"{where}: field 'scale': pixels have one unit; leave it out with an encoder of images")
    if options.augment == "noise" and options.reads_images:
        raise UserError(f"{where}: field 'augment': noise is for features; with an encoder of images use shift or none")
    return options


def request_options(request: Message) -> DeepOptions:
    """Read the options that a request carries, within their bounds.

    Raises:
        MessageError: it carries none that can be read, unknown fields, or values out of bounds.
    """
    text = request.options_text()
    try:
        content = json.loads(text)
    # RecursionError: nested brackets within the allowed length can still exhaust the parser's stack.
    except (ValueError, RecursionError):
        raise MessageError("field 'options' is not JSON") from None
    if not isinstance(content, dict):
        raise MessageError("field 'options' must be a mapping of names to values")
    try:
        options = read_options(content, where="the request's options")
    except UserError as problem:
        raise MessageError(str(problem)) from None
    if options.method == POOLED:
        raise MessageError(f"method '{POOLED}' pools raw points; no client sends them")
    return options


def image_shape(options: DeepOptions, features: int) -> tuple[int, int, int]:
    """Channels, height and width of the images in rows of `features` values.

    Raises:
        UserError: `shape` does not match the rows, or it is unset and the rows are no square images.
    """
    if options.shape is not None:
        channels, height, width = options.shape
        if min(options.shape) < 1 or channels * height * width != features:
            raise UserError(
                f"shape: channels x height x width must be the {features} values of a row (got {list(options.shape)})"
            )
        return options.shape
    # No row fits both: a number cannot be a square and three times a square.
    for channels in (1, 3):
        side = round((features / channels) ** 0.5)
        if channels * side * side == features:
            return channels, side, side
    raise UserError(
        f"rows of {features} values are not square images of one or three channels: "
        "pass channels, height and width, such as --set shape=[1,8,8]"
    )


SIZE = "query.size"
EMBEDDED = "query.embedded"
TRAIN = "train.prototypes"
TRAIN_SUMS = SumFormat({"weights": WEIGHTS}, is_weighted=True, means=("loss",))
"""Format in which the answers to a training are added up."""

REMOTE_KINDS = (SIZE, EMBEDDED, TRAIN)
"""Requests that a client answers over a network. In one process the server knows the size of the data."""
