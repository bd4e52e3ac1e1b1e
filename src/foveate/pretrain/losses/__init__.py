"""The losses of CLIP, SigLIP and CLOC on the batch of all processes.

Each process compares its own images and regions with the texts of all processes: texts are gathered with gradient,
column sums are joined as one number per column, so images and regions are never gathered and each process computes
1/world of the matrices. Every process returns the loss of the whole batch. One process is the case world = 1 of the
same code.

Shapes: B images of this process, N images of all; R regions of all (ragged, flat), E width of the joint embedding.

Source: Contrastive Localized Language-Image Pre-Training (arXiv 2410.02746 v2), equations 1 to 4; Sigmoid Loss for
Language Image Pre-Training (arXiv 2303.15343), algorithm 1.
"""

from foveate.pretrain.losses.blocks import FILTERS, NORMALIZATIONS, RegionLoss, duplicate_mask
from foveate.pretrain.losses.sigmoid import sigmoid_loss, sigmoid_region_loss
from foveate.pretrain.losses.softmax import clip_loss, region_text_loss
from foveate.pretrain.losses.total import grounding_loss, labeled_fraction, total_loss

__all__ = [
    "FILTERS",
    "NORMALIZATIONS",
    "RegionLoss",
    "clip_loss",
    "duplicate_mask",
    "grounding_loss",
    "labeled_fraction",
    "region_text_loss",
    "sigmoid_loss",
    "sigmoid_region_loss",
    "total_loss",
]
