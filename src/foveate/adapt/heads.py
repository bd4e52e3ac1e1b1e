"""Heads of an adapted backbone: a linear classifier, or a classifier made of text embeddings (zero-shot)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.core.errors import UserError
from foveate.vision.registry import seeded


def zero_shot_weights(prompts_KPE: Tensor, *, logit_scale: float) -> Tensor:
    """Return weights [K, E] of a classifier from the embeddings of P prompts of each of K classes.

    Each embedding is normalized, those of a class are averaged, normalized again, and multiplied by exp(logit_scale)
    (CLIP, arXiv 2103.00020, section 3.1.4).
    """
    # Normalized before the mean, so that every prompt counts the same, and after it, so that every class does.
    unit = F.normalize(prompts_KPE, dim=-1)
    return F.normalize(unit.mean(dim=1), dim=-1) * math.exp(logit_scale)


class ZeroShotHead(nn.Module):
    """Features [B, D], a projection without bias where there is one, unit length, then a linear layer.

    Args:
        weights_KE: of `zero_shot_weights`.
        projection_ED: None where the features are projected already.
    """

    def __init__(self, weights_KE: Tensor, projection_ED: Tensor | None = None) -> None:
        super().__init__()
        classes, width = weights_KE.shape
        self.projection = None if projection_ED is None else nn.Parameter(projection_ED.detach().clone())
        self.linear = nn.Linear(width, classes, device=weights_KE.device, dtype=weights_KE.dtype)
        with torch.no_grad():
            self.linear.weight.copy_(weights_KE)
            self.linear.bias.zero_()

    def forward(self, features_BD: Tensor) -> Tensor:
        """Map features [B, D] to logits [B, K]."""
        if self.projection is not None:
            features_BD = features_BD @ self.projection.T
        # Unit length as in CLIP's pre-training, so that logits are cosines times the learned scale.
        return self.linear(F.normalize(features_BD, dim=-1))


def new_head(inputs: int, classes: int) -> nn.Linear:
    """Return an untrained classifier: truncated normal of standard deviation 0.02, bias 0."""
    head = nn.Linear(inputs, classes)
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head


def describe_head(head: nn.Module) -> dict[str, Any]:
    """Return what `build_head` needs to build a head of the same shapes.

    Raises:
        UserError: a head of another kind.
    """
    if isinstance(head, nn.Linear):
        return {"kind": "linear", "inputs": head.in_features, "classes": head.out_features}
    if isinstance(head, ZeroShotHead):
        projection = None if head.projection is None else list(head.projection.shape)
        return {
            "kind": "zero_shot",
            "inputs": head.linear.in_features,
            "classes": head.linear.out_features,
            "projection": projection,
        }
    raise UserError(f"head must be an nn.Linear or ZeroShotHead (got {type(head).__name__})")


def build_head(config: dict[str, Any]) -> nn.Module:
    """Build a head of the shapes in a description; its values are to be loaded."""
    if config["kind"] == "linear":
        # Seeded, so that building a head that is filled anyway does not move the caller's generator.
        with seeded(0):
            return nn.Linear(config["inputs"], config["classes"])
    projection = None if config["projection"] is None else torch.zeros(config["projection"])
    return ZeroShotHead(torch.zeros(config["classes"], config["inputs"]), projection)


def head_width(head: nn.Module) -> int:
    """Return how many features a head reads."""
    if isinstance(head, ZeroShotHead):
        return head.linear.in_features if head.projection is None else head.projection.shape[1]
    assert isinstance(head, nn.Linear)
    return head.in_features


def num_classes(head: nn.Module) -> int:
    """Return how many classes a head tells apart."""
    return int(describe_head(head)["classes"])
