"""Self-labeling: a trained CLOC says where the phrases of a caption are.

Each phrase gets one box: where the grounding head says it is, or the candidate box whose embedding is nearest to it.
The score is the cosine of that box's embedding with the phrase, 0 where it is negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from foveate.caption.vesl.detection import Detector, DetectorKind, Found, Shown
from foveate.caption.vesl.geometry import LEAST_PX
from foveate.caption.vesl.similarity import Judge
from foveate.core.errors import UserError
from foveate.core.recipes import Settings
from foveate.records.collection import Collection
from foveate.vision.localizer.asking import find


class ClocSettings(Settings):
    """Which model, which of its rules, and what is kept."""

    model: str = Field(description="model folder of `foveate pretrain`")
    rule: Literal["auto", "head", "candidates"] = Field(
        "auto", description="auto = the better one on the model's validation split"
    )
    threshold: float = Field(0.0, ge=0, lt=1, description="least cosine of the box with its phrase, strict")


class ClocDetector(Detector):
    """See the module's text.

    Raises:
        UserError: for the rule "head" of a model without a Prompter.
    """

    name = "cloc"

    def __init__(self, settings: ClocSettings, device: str | None) -> None:
        self.settings, self.model = settings, settings.model
        self._judge = Judge(settings.model, device)
        network = self._judge.network
        self.rule = network.locate_rule if settings.rule == "auto" else settings.rule
        if self.rule == "head" and network.prompter is None:
            raise UserError(
                f"field rule: '{settings.model}' has no grounding head (regions.method "
                f"'{network.recipe.regions.method}'); allowed for it: candidates"
            )
        self.version = f"{self._judge.version} {self.rule}"
        self.input_px = self._judge.input_px

    @torch.inference_mode()
    def detect(self, images: Sequence[Shown], phrases: Sequence[Sequence[str]]) -> list[Found]:
        judge = self._judge
        tokens, placements = judge.look(images)
        texts = [judge.phrases(some) for some in phrases]
        owners = [number for number, some in enumerate(phrases) for _ in some]
        index_R = torch.tensor(owners, device=judge.network.device)
        inside_R4 = find(judge.network, tokens, placements, torch.cat(texts), index_R, rule=self.rule)
        answers, start = [], 0
        for number, (one, some) in enumerate(zip(images, phrases, strict=True)):
            boxes_Q4 = placements[number].to_original(inside_R4[start : start + len(some)])
            start += len(some)
            wide_Q = ((boxes_Q4[:, 2:] - boxes_Q4[:, :2]) * (one.width, one.height) >= LEAST_PX).all(axis=1)
            boxes_K4, phrase_K = boxes_Q4[wide_Q], np.flatnonzero(wide_Q)
            cosine_KQ = judge.cosines(tokens, placements[number], number, boxes_K4, texts[number])
            cosine_K = cosine_KQ[np.arange(len(phrase_K)), phrase_K]
            kept = cosine_K > self.settings.threshold
            answers.append(
                Found(
                    boxes_K4[kept],
                    cosine_K[kept].clip(0, 1),
                    phrase_K[kept],
                    similarity_K=cosine_K[kept],
                    thin=int((~wide_Q).sum()),
                )
            )
        return answers


def open_detector(settings: ClocSettings, collection: Collection, device: str | None) -> ClocDetector:
    """See `ClocDetector`."""
    return ClocDetector(settings, device)


DETECTOR = DetectorKind(settings=ClocSettings, open=open_detector, note="self-labeling by a model of our own")
