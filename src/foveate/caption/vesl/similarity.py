"""A model folder as judge of boxes and phrases: embeddings of both, from one pass over each image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from foveate.caption.vesl.detection import Shown
from foveate.core.files import sha256_file
from foveate.records.geometry import Placement, View
from foveate.vision.encoder import ImageTokens
from foveate.vision.localizer.asking import embed_phrases
from foveate.vision.localizer.folder import WEIGHTS, load_model
from foveate.vision.views import input_boxes, placed, render

_REMEMBERED = 16_384


class Judge:
    """A localizing model (CLOC, or a CLIP with RoI-pooled tokens), opened for use.

    Raises:
        UserError: when the folder is no model folder.
    """

    def __init__(self, folder: str, device: str | None) -> None:
        self.network = load_model(Path(folder), device=device)
        self.version = sha256_file(Path(folder) / WEIGHTS)[:12]
        self.input_px = self.network.image_encoder.preprocess.size
        self._known: dict[str, Tensor] = {}

    def look(self, images: Sequence[Shown]) -> tuple[ImageTokens, list[Placement]]:
        """One pass over images: their tokens, and how each lies in the model input."""
        preprocess = self.network.image_encoder.preprocess
        placements = [placed(preprocess, one.pixels.size, View()) for one in images]
        pixels = [render(preprocess, one.pixels, place) for one, place in zip(images, placements, strict=True)]
        return self.network.encode_image_tokens(torch.stack(pixels)), placements

    def phrases(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [Q, E] before normalization, on the model's device; known phrases are remembered."""
        new = sorted({text for text in texts if text not in self._known})
        if len(self._known) + len(new) > _REMEMBERED:
            self._known, new = {}, sorted(set(texts))
        self._known.update(zip(new, embed_phrases(self.network, new), strict=True))
        return torch.stack([self._known[text] for text in texts]).to(self.network.device)

    def cosines(
        self, tokens: ImageTokens, placement: Placement, number: int, boxes_K4: NDArray[np.float64], texts_QE: Tensor
    ) -> NDArray[np.float64]:
        """Cosines [K, Q] of boxes of image `number` of a pass with phrases; -1 where the model sees nothing of one.

        Args:
            boxes_K4: in [0, 1] of the image. texts_QE: of `phrases`.
        """
        found = np.full((len(boxes_K4), len(texts_QE)), -1.0)
        inside_J4, seen_K = input_boxes(placement, boxes_K4, min_visible=0)
        if len(inside_J4):
            index = torch.full((len(inside_J4),), number, device=self.network.device)
            z_JE = self.network.encode_regions(tokens, torch.from_numpy(inside_J4).to(self.network.device), index)
            unit_QE = F.normalize(texts_QE.float(), dim=-1)
            found[seen_K] = (F.normalize(z_JE.float(), dim=-1) @ unit_QE.T).double().cpu().numpy()
        return found
