"""Self-labeling: a trained CLOC locates the phrases of a caption.

Each phrase gets one box: of the grounding head, or the candidate box whose embedding is nearest to the phrase's. The
score is the cosine of that box's embedding with the phrase, 0 where it is negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from foveate.caption.vesl.detection import Detections, Detector, DetectorInput, DetectorKind
from foveate.caption.vesl.similarity import RegionScorer
from foveate.core.errors import UserError
from foveate.core.recipes import Settings
from foveate.vision.detectors import MIN_SIDE_PX
from foveate.vision.localizer.inference import find


class ClocSettings(Settings):
    """Model folder, rule, and minimum cosine."""

    model: str = Field(description="model folder of `foveate pretrain`")
    rule: Literal["auto", "head", "candidates"] = Field(
        "auto", description="auto = the better one on the model's validation split"
    )
    threshold: float = Field(0.0, ge=0, lt=1, description="minimum cosine of the box with its phrase, strict")


class ClocDetector(Detector):
    """Locates each phrase with a model folder of `foveate pretrain`.

    Raises:
        UserError: rule "head" with a model that has no Prompter.
    """

    name = "cloc"

    def __init__(self, settings: ClocSettings, device: str | None) -> None:
        self.settings, self.model = settings, settings.model
        self._scorer = RegionScorer(settings.model, device)
        network = self._scorer.network
        self.rule = network.locate_rule if settings.rule == "auto" else settings.rule
        if self.rule == "head" and network.prompter is None:
            raise UserError(
                f"field 'rule': 'head' needs a grounding head, which '{settings.model}' lacks (regions.method "
                f"'{network.recipe.regions.method}'); expected candidates"
            )
        # The rule decides which box a phrase gets, so it belongs to the version of the labels.
        self.version = f"{self._scorer.version} {self.rule}"
        self.input_px = self._scorer.input_px

    @torch.inference_mode()
    def detect(self, images: Sequence[DetectorInput], phrases: Sequence[Sequence[str]]) -> list[Detections]:
        scorer = self._scorer
        tokens, placements = scorer.encode_images(images)
        texts = [scorer.embed(queries) for queries in phrases]
        owners = [index for index, queries in enumerate(phrases) for _ in queries]
        owner_R = torch.tensor(owners, device=scorer.network.device)
        inside_R4 = find(scorer.network, tokens, placements, torch.cat(texts), owner_R, rule=self.rule)
        results, start = [], 0
        # One row per phrase, images one after another: as the texts were concatenated.
        for index, (image, queries) in enumerate(zip(images, phrases, strict=True)):
            boxes_Q4 = placements[index].to_original(inside_R4[start : start + len(queries)])
            start += len(queries)
            wide_Q = ((boxes_Q4[:, 2:] - boxes_Q4[:, :2]) * (image.width, image.height) >= MIN_SIDE_PX).all(axis=1)
            boxes_K4, phrase_K = boxes_Q4[wide_Q], np.flatnonzero(wide_Q)
            # The box comes from the grounding head, the score from the region embedding: the head gives none.
            cosine_KQ = scorer.cosines(tokens, placements[index], index, boxes_K4, texts[index])
            cosine_K = cosine_KQ[np.arange(len(phrase_K)), phrase_K]
            keep_K = cosine_K > self.settings.threshold
            results.append(
                Detections(
                    boxes_K4[keep_K],
                    cosine_K[keep_K].clip(0, 1),
                    phrase_K[keep_K],
                    similarity_K=cosine_K[keep_K],
                    thin=int((~wide_Q).sum()),
                )
            )
        return results


DETECTOR = DetectorKind(
    settings=ClocSettings,
    open=lambda settings, _, device: ClocDetector(settings, device),
    note="self-labeling by a model of our own",
)
