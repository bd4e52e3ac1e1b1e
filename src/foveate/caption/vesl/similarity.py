"""Cosine similarity of boxes and phrases by a model folder, from one pass over each image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from foveate.caption.vesl.detection import DetectorInput
from foveate.core.files import sha256_file
from foveate.records.geometry import Placement, View
from foveate.vision.encoder import ImageFeatures
from foveate.vision.localizer.folder import WEIGHTS, load_model
from foveate.vision.localizer.inference import embed_phrases
from foveate.vision.preprocess import move_boxes, place_image, render_image

# Embeddings that are cached; 16,384 of 512 floats are 32 MB.
_MAX_CACHED_PHRASES = 16_384


class RegionScorer:
    """A localizing model (CLOC, or a CLIP with RoI-pooled tokens) that compares boxes with phrases.

    Raises:
        UserError: the folder is no model folder.
    """

    def __init__(self, folder: str, device: str | None) -> None:
        self.network = load_model(Path(folder), device=device)
        self.version = sha256_file(Path(folder) / WEIGHTS)[:12]
        self.input_px = self.network.image_encoder.preprocess.side
        self._cache: dict[str, Tensor] = {}

    def encode_images(self, images: Sequence[DetectorInput]) -> tuple[ImageFeatures, list[Placement]]:
        """Encode images in one pass; return their tokens, and how each lies in the model input."""
        preprocess = self.network.image_encoder.preprocess
        placements = [place_image(preprocess, image.pixels.size, View()) for image in images]
        pixels = [
            render_image(preprocess, image.pixels, placement)
            for image, placement in zip(images, placements, strict=True)
        ]
        return self.network.encode_image_tokens(torch.stack(pixels)), placements

    def embed(self, phrases: Sequence[str]) -> Tensor:
        """Embed phrases; return [Q, E], not normalized, on the model's device. Recent phrases are cached."""
        new = sorted({phrase for phrase in phrases if phrase not in self._cache})
        if len(self._cache) + len(new) > _MAX_CACHED_PHRASES:
            # Emptied as a whole: phrases of a collection follow Zipf's law, so the frequent ones are back at once.
            self._cache, new = {}, sorted(set(phrases))
        self._cache.update(zip(new, embed_phrases(self.network, new), strict=True))
        return torch.stack([self._cache[phrase] for phrase in phrases]).to(self.network.device)

    def cosines(
        self, tokens: ImageFeatures, placement: Placement, index: int, boxes_K4: NDArray[np.float64], texts_QE: Tensor
    ) -> NDArray[np.float64]:
        """Compute cosines [K, Q] of boxes with phrases; -1 for boxes that lie outside of what the model sees.

        Args:
            index: of the image in the pass that gave `tokens`.
            boxes_K4: in [0, 1] of the image.
            texts_QE: of `embed`.
        """
        # No cosine is smaller, so an unseen box loses every comparison.
        result_KQ = np.full((len(boxes_K4), len(texts_QE)), -1.0)
        inside_J4, visible_K = move_boxes(placement, boxes_K4, min_visible=0)
        if len(inside_J4):
            index_J = torch.full((len(inside_J4),), index, device=self.network.device)
            z_JE = self.network.encode_regions(tokens, torch.from_numpy(inside_J4).to(self.network.device), index_J)
            unit_QE = F.normalize(texts_QE.float(), dim=-1)
            result_KQ[visible_K] = (F.normalize(z_JE.float(), dim=-1) @ unit_QE.T).double().cpu().numpy()
        return result_KQ
