"""Build what a training of a link model needs: the network for the links at hand, its task and its batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from foveate.core.errors import UserError
from foveate.core.progress import say
from foveate.metrics.classification import count_classes
from foveate.metrics.confidence import fit_temperature
from foveate.records.images import BadImage
from foveate.species.link_data import LinkData, link_arrays
from foveate.species.links import (
    ImageNetwork,
    LinearBaseline,
    LinkModel,
    SpeciesNetwork,
    build_score,
    scale_hours,
    scale_places,
)
from foveate.species.passes import FeatureBatches, ImageBatches, LinkTask, PassOrder, class_offsets
from foveate.species.recipe import GraphSettings, LinkTraining, SpeciesRecipe
from foveate.species.score import Score
from foveate.training.distributed import world
from foveate.training.loader import BatchSource
from foveate.training.settings import TrainingSettings
from foveate.vision.registry import build_image_encoder, seeded

_BATCH = 256
_IMAGE_BATCH = 32  # images in a batch of pixels
Rows = NDArray[np.int64]


def build_link_model(
    data: LinkData, settings: GraphSettings, image: Callable[[], nn.Module], *, seed: int
) -> LinkModel:
    """Build the untrained model of a set of links; the same seed gives the same initial values.

    Args:
        image: builds the network of images.
    """
    contexts = data.present_contexts
    # Standardize with training places only: those of test images must not move the scale.
    places = scale_places(
        data.candidate_places_P2, settings.place_input, reference_N2=data.places_N2[data.links_of_places()]
    )
    with seeded(seed):
        return LinkModel(
            image(),
            num_entities=len(data.entity_taxa),
            targets=data.targets_K.tolist(),
            dim=settings.dim,
            score=build_score(settings.score, settings.dim, rows=settings.conve_rows),
            places_NF=places if "place" in contexts else None,
            hours_NF=scale_hours(data.candidate_hours_H, settings.hour_input) if "time" in contexts else None,
            start=settings.start,
        )


def build_recipe_model(recipe: SpeciesRecipe) -> LinkModel:
    """Build the untrained networks of a recipe before any data, for two classes, a place and an hour."""
    # The empty label is an image without one; two classes are the fewest that a model has.
    data = link_arrays(["", "human", "vehicle"], places=np.zeros((3, 2)), hours=np.zeros(3))
    settings = dict(recipe.encoder)
    if settings["kind"] == "timm" and "source" in settings:
        # The part of a name before its tag is the architecture, which needs no download.
        settings |= {"model": settings.pop("source").partition(".")[0]}

    def build_image() -> nn.Module:
        encoder = build_image_encoder(settings)
        return ImageNetwork(encoder.vector_width, recipe.graph.dim, encoder)

    return build_link_model(data, recipe.graph, build_image, seed=recipe.training.seed)


class Inputs(ABC):
    """Inputs of the image network, by row of the images."""

    @abstractmethod
    def batches(self, order: PassOrder, *, workers: int) -> BatchSource:
        """Return the batches of a training."""

    @abstractmethod
    def apply(self, network: Callable[[Tensor], Tensor], rows: Rows, device: torch.device) -> tuple[Tensor, Rows]:
        """Return outputs [n, ...] of a network on the CPU, and the rows that could be read."""


class FeatureInputs(Inputs):
    """Features in memory, [N, F] of all images; rows that are never requested may have any values."""

    def __init__(self, features_NF: Tensor) -> None:
        self.features_NF = features_NF

    def batches(self, order: PassOrder, *, workers: int) -> BatchSource:
        """See `Inputs.batches`; nothing is loaded, so no worker has anything to do."""
        return FeatureBatches(order, self.features_NF)

    def apply(self, network: Callable[[Tensor], Tensor], rows: Rows, device: torch.device) -> tuple[Tensor, Rows]:
        """See `Inputs.apply`."""
        # In parts and moved to the CPU, because the outputs of all validation images need not fit on a GPU.
        parts = [network(self.features_NF[part].to(device)).cpu() for part in torch.from_numpy(rows).split(_BATCH)]
        return torch.cat(parts), rows


class PixelInputs(Inputs):
    """Images that are decoded whenever they are needed.

    Args:
        load: row to uint8 pixels [3, H, W]; raises BadImage. keys: of the images, for errors.
    """

    def __init__(self, load: Callable[[int], Tensor], keys: Sequence[str]) -> None:
        self.load, self.keys = load, keys

    def batches(self, order: PassOrder, *, workers: int) -> BatchSource:
        """See `Inputs.batches`."""
        return ImageBatches(order, self.load, self.keys, workers=workers)

    def apply(self, network: Callable[[Tensor], Tensor], rows: Rows, device: torch.device) -> tuple[Tensor, Rows]:
        """See `Inputs.apply`."""
        outputs, readable = list[Tensor](), list[int]()
        for start in range(0, len(rows), _IMAGE_BATCH):
            pixels = []
            for row in rows[start : start + _IMAGE_BATCH].tolist():
                try:
                    pixels.append(self.load(row))
                except BadImage:
                    continue
                readable.append(row)
            if pixels:
                outputs.append(network(torch.stack(pixels).to(device)).cpu())
        # `torch.cat` of an empty list would raise an error that names no file.
        if not readable:
            raise UserError(f"none of {len(rows)} images can be read, first '{self.keys[rows[0]]}'")
        return torch.cat(outputs), np.array(readable, dtype=np.int64)


def order_passes(
    model: SpeciesNetwork | Score | type[LinearBaseline], data: LinkData, training: LinkTraining
) -> PassOrder:
    """Return the batches of every epoch of a training.

    Args:
        model: decides whether the last, smaller batch of a pass is left out.
    """
    # Shared by training and report, so that a page never counts other steps than were trained.
    return PassOrder(
        data.passes(training),
        batch_size=training.batch_size,
        seed=training.seed,
        drop_last=model.drops_last,
        schedule=training.schedule,
    )


def build_task(
    model: SpeciesNetwork,
    data: LinkData,
    inputs: Inputs,
    training: LinkTraining,
    *,
    image_learning_rate: float,
) -> tuple[LinkTask, BatchSource, TrainingSettings]:
    """Build the task of a link model, its batches and the settings of the training loop.

    Raises:
        UserError: several processes, or too few labeled images.
    """
    if world().size > 1:
        raise UserError(
            f"species train: runs in one process (got WORLD_SIZE {world().size}); start it without torchrun"
        )
    order = order_passes(model, data, training)
    labels_N, selects = data.labels_N[data.train_rows], len(data.validation_rows) > 0
    settings = training.resolve(order.steps_per_epoch, selects=selects)
    offsets_K = None
    if training.balance == "logit_adjustment":
        offsets_K = class_offsets(labels_N, len(data.classes), training.tau)
    # Without validation images nothing selects an epoch, so that evaluating each would be work for nothing.
    steps_per_epoch = order.steps_per_epoch if selects else None
    if not selects:
        say("no labeled validation images: the last epoch is taken")
    task = LinkTask(
        model,
        # The training loop has one learning rate, so that of the image network is given as a multiple of it.
        image_rate_scale=image_learning_rate / training.learning_rate,
        offsets_K=offsets_K,
        steps_per_epoch=steps_per_epoch,
        evaluation=lambda: measure(model, data, inputs),
    )
    return task, inputs.batches(order, workers=settings.workers), settings


@torch.no_grad()
def measure(model: nn.Module, data: LinkData, inputs: Inputs) -> Mapping[str, float]:
    """Return accuracy and macro-F1 (WILDS: over classes present in the truth) of the validation images."""
    device = next(model.parameters()).device
    # Images that cannot be read have no logits, so the labels are taken for the rows that were returned.
    logits, rows = inputs.apply(model, data.validation_rows, device)
    predicted_N, truth_N = logits.argmax(dim=1).numpy(), data.labels_N[rows]
    counts = count_classes(predicted_N, truth_N, len(data.classes))
    return {"accuracy": float((predicted_N == truth_N).mean()), "macro_f1": counts.macro_f1("present")}


@torch.no_grad()
def fit_validation_temperature(model: nn.Module, data: LinkData, inputs: Inputs) -> float | None:
    """Return the temperature of the validation images, see `foveate.metrics.confidence.fit_temperature`."""
    logits, rows = inputs.apply(model, data.validation_rows, next(model.parameters()).device)
    return fit_temperature(logits.float().numpy(), data.labels_N[rows])
