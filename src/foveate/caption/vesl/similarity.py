"""Cosine similarity of boxes and phrases: from one pass over each image, or by crops with a pretrained CLIP."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from foveate.caption.vesl.detection import DetectorInput
from foveate.core.errors import UserError
from foveate.core.files import sha256_file
from foveate.records.boxes import Box
from foveate.records.geometry import Placement, View
from foveate.vision.encoder import ImageFeatures
from foveate.vision.localizer.folder import WEIGHTS
from foveate.vision.localizer.inference import embed_phrases
from foveate.vision.localizer.sources import find_model
from foveate.vision.preprocess import move_boxes, place_image, render_image

# Embeddings that are cached; 16,384 of 512 floats are 32 MB.
_MAX_CACHED_PHRASES = 16_384


class RegionScorer:
    """A model that compares boxes with phrases: CLOC, Foveate's CLIP by RoI-pooled tokens, a pretrained CLIP by crops.

    Raises:
        UserError: there is no such model, see `foveate.vision.localizer.sources.find_model`.
    """

    def __init__(self, name: str, device: str | None) -> None:
        source = find_model(name)
        self.network = source.load(device=device)
        # Patch tokens of a CLIP that was trained on whole images say little of where they lie.
        self._crops = source.settings is not None
        weights = None if source.folder is None or self._crops else source.folder / WEIGHTS
        self.version = (source.fingerprint() if weights is None else sha256_file(weights))[:12]
        self.input_px = self.network.image_encoder.preprocess.side
        self._images: Sequence[DetectorInput] = ()
        self._cache: dict[str, Tensor] = {}

    def encode_images(self, images: Sequence[DetectorInput]) -> tuple[ImageFeatures, list[Placement]]:
        """Encode images in one pass; return their tokens, and how each lies in the model input."""
        preprocess = self.network.image_encoder.preprocess
        self._images = images
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
        if self._crops:
            for row, box_4 in enumerate(boxes_K4):
                z_1E = self._embed_crop(self._images[index].pixels, box_4)
                if z_1E is not None:
                    result_KQ[row] = (z_1E @ F.normalize(texts_QE.float(), dim=-1).T).double().cpu().numpy()[0]
            return result_KQ
        inside_J4, visible_K = move_boxes(placement, boxes_K4, min_visible=0)
        if len(inside_J4):
            index_J = torch.full((len(inside_J4),), index, device=self.network.device)
            z_JE = self.network.encode_regions(tokens, torch.from_numpy(inside_J4).to(self.network.device), index_J)
            unit_QE = F.normalize(texts_QE.float(), dim=-1)
            result_KQ[visible_K] = (F.normalize(z_JE.float(), dim=-1) @ unit_QE.T).double().cpu().numpy()
        return result_KQ

    def _embed_crop(self, image: Image.Image, box_4: NDArray[np.float64]) -> Tensor | None:
        """Embed a box as an image of its own [1, E]; None where it is too thin to show anything."""
        preprocess = self.network.image_encoder.preprocess
        try:
            placement = place_image(preprocess, image.size, View(crop=Box.from_array(box_4, clipped=True)))
        except UserError:
            return None
        return self.network.encode_image(render_image(preprocess, image, placement)[None])
