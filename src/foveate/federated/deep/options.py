"""The settings of DeepFeCA and its baselines: names, bounds, defaults."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from foveate.core.errors import UserError, choose
from foveate.core.recipes import Settings, validate
from foveate.federated.clustering.options import Settings as Clustering
from foveate.federated.clustering.options import method, methods, resolve

DEEPFECA, LOCAL, POOLED, UNTRAINED = "deepfeca", "local", "central", "untrained"
METHODS = {
    DEEPFECA: "one encoder averaged over clients, which train towards common centers",
    LOCAL: "the same, and each client trains towards centroids of its own: only weights are common",
    POOLED: "all data in one place: not federated, the upper end",
    UNTRAINED: "the start weights: one clustering, nothing is trained",
}


class DeepOptions(Settings):
    """All that decides a run, besides the data and the number of clients."""

    clusters: int = Field(ge=1, description="K, of all clients together")
    method: Literal["deepfeca", "local", "central", "untrained"] = Field(
        DEEPFECA, description="how the encoder is trained"
    )
    clustering: str = Field("consensus", description="how the server makes K centers of centroids")
    encoder: Literal["none", "small_resnet", "small_vit"] = Field(
        "none", description="what stands before the head; none: the data are features, and the head alone is trained"
    )
    shape: tuple[int, int, int] | None = Field(
        None, description="channels, height, width of the images in the rows; a square of one or three by default"
    )
    width: int = Field(128, ge=2, le=4096, description="of the embedding")
    hidden: int = Field(256, ge=1, le=65536, description="of the head")
    rounds: int = Field(
        20, ge=1, le=100_000, description="rounds of grouping, training and averaging, two exchanges each"
    )
    local_epochs: int = Field(1, ge=1, le=100)
    batch_size: int = Field(64, ge=2)
    learning_rate: float = Field(0.05, gt=0, le=10)
    weight_decay: float = Field(1e-6, ge=0, le=1)
    temperature: float = Field(0.1, gt=0, le=10)
    augment: Literal["none", "noise", "shift"] = "none"
    n_init: int | None = Field(
        None, ge=1, le=100, description="runs of a client's k-means; the clustering's by default"
    )
    min_count: int = Field(1, ge=1, description="clusters of fewer points are merged before anything is sent")
    eliminate: Literal["flags", "drop", "none"] | None = Field(None, description="what becomes of doubted centroids")
    seed: int = Field(0, ge=0)

    def plan(self) -> Clustering:
        """The settings of each round's clustering: spherical, one shot."""
        given = {"n_init": self.n_init, "min_count": self.min_count, "eliminate": self.eliminate}
        return resolve(
            self.clusters, method_name=self.clustering, seed=self.seed, refine_rounds=0, spherical=True, **given
        )

    @property
    def reads_images(self) -> bool:
        """Whether rows are images."""
        return self.encoder != "none"


def options_of(content: dict[str, Any], *, where: str = "DeepFeCA") -> DeepOptions:
    """Checked options.

    Raises:
        UserError: for an unknown name, a value that is not allowed, or options that do not fit one another.
    """
    options = validate(DeepOptions, content, where=where)
    choose(options.clustering, methods(), "clustering")
    if not method(options.clustering).federated:
        raise UserError(f"{where}: the clustering '{options.clustering}' pools raw points; no client sends them")
    if options.shape is not None and not options.reads_images:
        raise UserError(f"{where}: field 'shape' has no effect without an encoder of images, such as small_resnet")
    if options.augment == "shift" and not options.reads_images:
        raise UserError(f"{where}: field 'augment': shift moves images; without an encoder of them use noise or none")
    if options.augment == "noise" and options.reads_images:
        raise UserError(f"{where}: field 'augment': noise is for features; with an encoder of images use shift or none")
    return options


def image_shape(options: DeepOptions, features: int) -> tuple[int, int, int]:
    """Channels, height and width of the images that rows of so many numbers hold.

    Raises:
        UserError: no such images; says how to give the shape.
    """
    if options.shape is not None:
        channels, height, width = options.shape
        if min(options.shape) < 1 or channels * height * width != features:
            raise UserError(f"shape {list(options.shape)}: rows have {features} numbers; channels x height x width")
        return options.shape
    for channels in (1, 3):
        side = round((features / channels) ** 0.5)
        if channels * side * side == features:
            return channels, side, side
    raise UserError(
        f"rows of {features} numbers are no square images of one or three channels: "
        "give channels, height and width, such as --set shape=[1,8,8]"
    )
