"""Detector by a multimodal model, such as the shipped `mini`: it locates each phrase of a caption.

Each phrase gets the first box of the answer. Models with a box head answer "not found" below the score that was
measured for them, which leaves out what a caption names and the image does not show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import Field

from foveate.caption.vesl.detection import Detections, Detector, DetectorInput, DetectorKind
from foveate.core.errors import UserError
from foveate.core.recipes import Settings
from foveate.multimodal.answers import Answer
from foveate.multimodal.ask import Mllm
from foveate.multimodal.folder import hash_model
from foveate.multimodal.opening import find_native_folder, open_mllm
from foveate.multimodal.prepare import Question
from foveate.multimodal.questions import ask_where
from foveate.vision.detectors import MIN_SIDE_PX


class MllmSettings(Settings):
    """The model that is asked."""

    model: str = Field("mini", description="mini (shipped), or a model folder of `foveate mllm train`")
    batch: int = Field(32, ge=1, le=1024, description="questions that are asked together")


class MllmDetector(Detector):
    """Asks for the box of each phrase.

    Raises:
        UserError: there is no such model, or it is one of transformers.
    """

    name = "mllm"

    def __init__(self, settings: MllmSettings, device: str | None) -> None:
        folder = find_native_folder(settings.model)
        if folder is None:
            raise UserError(
                f"field 'model': a model of transformers (got {settings.model}); expected mini or a folder of "
                "foveate mllm train"
            )
        self.settings, self.model = settings, settings.model
        opened = open_mllm(settings.model, device=device)
        assert isinstance(opened, Mllm), "the folder is one of ours"
        self._asked = opened
        self.version = hash_model(folder)[:12]
        self.input_px = opened.loaded.model.tower.preprocess.side

    def detect(self, images: Sequence[DetectorInput], phrases: Sequence[Sequence[str]]) -> list[Detections]:
        # "a key" and "the key" are one question: each thing gets one box, with the phrase that names it first.
        first = [_first_of_question(queries) for queries in phrases]
        questions = [
            Question(image.pixels, text) for image, positions in zip(images, first, strict=True) for text in positions
        ]
        # In models with tokens for names the question itself makes them point; others need an explicit request for
        # boxes.
        ground = not self._asked.loaded.name_ids
        answers = iter(self._asked.ask_all(questions, ground=ground, batch=self.settings.batch))
        return [
            self._to_detections(image, {number: next(answers) for number in positions.values()})
            for image, positions in zip(images, first, strict=True)
        ]

    def _to_detections(self, image: DetectorInput, answers: Mapping[int, Answer]) -> Detections:
        """Return the boxes of the answers by the positions of their phrases."""
        with_box = {number: answer for number, answer in answers.items() if answer.boxes}
        boxes_K4 = np.array([_corners(answer) for answer in with_box.values()]).reshape(-1, 4)
        boxes_K4 = (boxes_K4 / (*image.pixels.size, *image.pixels.size)).clip(0, 1)
        wide_K = ((boxes_K4[:, 2:] - boxes_K4[:, :2]) * (image.width, image.height) >= MIN_SIDE_PX).all(axis=1)
        scores_K = np.array([self._score(answer) for answer in with_box.values()])
        phrase_K = np.array(list(with_box), dtype=np.int64)
        return Detections(boxes_K4[wide_K], scores_K[wide_K], phrase_K[wide_K], thin=int((~wide_K).sum()))

    def _score(self, answer: Answer) -> float:
        """Return a score in [0, 1]: of a box head by its distance to the limit, otherwise of the answer's tokens."""
        limit = self._asked.loaded.min_box_score
        if not answer.box_scores or limit is None:
            return float(np.exp(min(answer.score, 0.0)))
        return float(1 / (1 + np.exp(limit - answer.box_scores[0])))


def _first_of_question(phrases: Sequence[str]) -> dict[str, int]:
    """Map each question to the number of the first phrase that it asks for."""
    positions: dict[str, int] = {}
    for number, phrase in enumerate(phrases):
        positions.setdefault(ask_where(phrase), number)
    return positions


def _corners(answer: Answer) -> tuple[float, float, float, float]:
    box = answer.boxes[0]
    return box.x1, box.y1, box.x2, box.y2


DETECTOR = DetectorKind(
    settings=MllmSettings,
    open=lambda settings, _, device: MllmDetector(settings, device),
    note="asks a multimodal model, such as the shipped mini, where each phrase is",
)
