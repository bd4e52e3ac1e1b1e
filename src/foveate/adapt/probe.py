"""The linear probe of an adapted model: a head solved on features of the network as it came, and where it is used."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from foveate.adapt.load_backbone import LoadedBackbone
from foveate.adapt.model import AdaptedModel
from foveate.adapt.recipe import AdaptTraining
from foveate.adapt.results import ProbeResult
from foveate.core.errors import UserError
from foveate.core.progress import say
from foveate.training.classification import LabeledImages, Rows, readable_batches
from foveate.training.linear_probe import SolvedHead, solve_head


def starts_solved(adapted: AdaptedModel, training: AdaptTraining) -> bool:
    """Whether the head starts from the linear probe: by default, unless it was trained before."""
    return training.head_init == "solved" and adapted.active not in adapted.first_heads


def start_head(adapted: AdaptedModel, probe: SolvedHead) -> None:
    """Set the new head of `adapted` to a probe; before any step, an unchanged network answers as the probe does."""
    assert isinstance(adapted.head, nn.Linear), "a new head is linear"
    probe.copy_to(adapted.head)
    # As of any head that was trained before: `adapt wise` needs it for the model at alpha 0.
    adapted.first_heads[adapted.active] = copy.deepcopy(adapted.head).requires_grad_(False)


def is_solved(
    adapted: AdaptedModel,
    method: Mapping[str, Any],
    training: AdaptTraining,
    *,
    missing: Sequence[str] = (),
    cached: bool = True,
) -> bool:
    """Whether the head is solved: of method linear, on cached features, if it is new and every class has an image."""
    if method["method"] != "linear" or training.head_solver != "lbfgs":
        return False
    if adapted.active in adapted.first_heads or missing:
        # A solved head would forget what the given one knows, of classes without an image above all.
        say("linear: the head was trained before, so it is trained on by steps instead of solved")
        return False
    if training.balanced or training.label_smoothing:
        say("linear: balanced and label_smoothing belong to steps, so the head is trained by steps instead of solved")
        return False
    if not cached:
        say("linear: features are not cached, so the head is trained by steps instead of solved")
    return cached


def solve_cached_head(
    adapted: AdaptedModel, cache: Mapping[int, Tensor], images: LabeledImages, training: AdaptTraining
) -> tuple[SolvedHead, float]:
    """Solve the head of `adapted` on cached features (row -> [D]); return it, and the seconds it took."""
    began = time.monotonic()
    # Sorted, because the cross-validation folds depend on row order, and the cache has the order it was filled in.
    rows = sorted(cache)
    features_ND = torch.stack([cache[row] for row in rows]).float().numpy()
    solved = solve_head(
        features_ND,
        images.labels_N[rows],
        num_classes=len(images.classes),
        C=training.head_c,
        seed=training.seed,
    )
    assert isinstance(adapted.head, nn.Linear), "a new head is linear"
    solved.copy_to(adapted.head)
    return solved, time.monotonic() - began


def probe_features(
    adapted: AdaptedModel, network: LoadedBackbone, images: LabeledImages, rows: Rows, training: AdaptTraining
) -> SolvedHead:
    """Solve a head on the features of the network as it came: what any tuning has to beat.

    Raises:
        UserError: no image of a class can be read, or a feature is not finite.
    """
    features_ND, labels_N = original_features(adapted, network, images, rows, "features alone")
    missing = sorted(set(range(len(images.classes))) - set(labels_N.tolist()))
    if missing:
        raise UserError(f"{images.name}: no training image of class '{images.classes[missing[0]]}' can be read")
    return solve_head(features_ND, labels_N, num_classes=len(images.classes), C=training.head_c, seed=training.seed)


@torch.no_grad()
def original_features(
    adapted: AdaptedModel, network: LoadedBackbone, images: LabeledImages, rows: Rows, description: str
) -> tuple[NDArray[np.float32], Rows]:
    """Return features [N, D] of the network without the adapter, and labels, of the rows that can be read."""
    device, readable, features = adapted.backbone.device, list[int](), list[NDArray[np.float32]]()
    adapted.eval()
    with adapted.disable():
        for part, pixels in readable_batches(images, rows, {}, description=description):
            readable += part
            features.append(adapted.backbone.features(network.normalize(pixels.to(device))).float().cpu().numpy())
    if not features:
        raise UserError(f"{images.name}: none of {len(rows)} images can be read")
    return np.concatenate(features), images.labels_N[readable]


def describe_probe(probe: SolvedHead) -> ProbeResult:
    """Return what result.json says of a probe."""
    accuracies = {f"{C:g}": accuracy for C, accuracy in probe.accuracies.items()}
    return ProbeResult(C=probe.C, folds=probe.folds, accuracies=accuracies)
