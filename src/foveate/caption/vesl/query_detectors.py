"""Detectors that take phrases as queries: OWLv2, and a multimodal model, such as the shipped `mini`.

OWLv2 (arXiv 2306.09683) through transformers is the paper's detector: each box gets its best query. The published
labels used its CLIP L/14 ST+FT checkpoint at 448 px, where it has 32 x 32 boxes; the checkpoint's own input is 1008. At
another size the position embeddings are interpolated.

A multimodal model locates each phrase, which gets the first box of the answer. Models with a box head answer "not
found" below the score that was measured for them, which leaves out what a caption names and the image does not show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from foveate.caption.vesl.detection import Detections, Detector, DetectorInput, DetectorKind
from foveate.core.devices import choose_device
from foveate.core.errors import UserError
from foveate.core.hub import check_loaded, fetch, loading
from foveate.core.recipes import Settings
from foveate.multimodal.answers import Answer
from foveate.multimodal.ask import Mllm
from foveate.multimodal.folder import hash_model
from foveate.multimodal.opening import find_native_folder, open_mllm
from foveate.multimodal.prepare import Question
from foveate.multimodal.questions import ask_where
from foveate.vision.detectors import MIN_SIDE_PX, boxes_in_image


class Owlv2Settings(Settings):
    """Checkpoint, input size, and minimum score."""

    model: str = Field(description="folder, or OWNER/NAME on the hub, e.g. google/owlv2-large-patch14-ensemble")
    revision: str | None = Field(None, description="branch, tag or commit of a hub model")
    offline: bool = Field(False, description="look into the hub's cache only")
    input_px: int | None = Field(None, ge=16, description="side of the input; the checkpoint's own by default")
    threshold: float = Field(0.1, ge=0, lt=1, description="minimum score of a box, strict; paper 0.1")


def best_queries(
    logits_AQ: NDArray[np.floating[Any]], *, queries: int, threshold: float
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Return indices of boxes above the threshold, their scores (sigmoid of the best logit), and their queries.

    Args:
        logits_AQ: of A boxes; columns from `queries` on are padding and never win.
        queries: number of real queries of the image.
        threshold: a score must be above it, strictly.
    """
    real_AQ = np.asarray(logits_AQ, dtype=np.float32)[:, :queries]
    best_A = real_AQ.argmax(axis=1)
    highest_A = np.take_along_axis(real_AQ, best_A[:, None], axis=1)[:, 0]
    # In float32, as transformers' post-processing does it: a score equal to the threshold is dropped there, too.
    score_A = torch.sigmoid(torch.from_numpy(highest_A)).numpy()
    index_K = np.flatnonzero(score_A > np.float32(threshold))
    return index_K, score_A[index_K].astype(np.float64), best_A[index_K].astype(np.int64)


def to_corners(boxes_A4: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Convert center and size (cx, cy, w, h) to corners (x1, y1, x2, y2)."""
    center_A2, size_A2 = np.split(np.asarray(boxes_A4, dtype=np.float64), 2, axis=1)
    return np.concatenate((center_A2 - size_A2 / 2, center_A2 + size_A2 / 2), axis=1)


def detections(
    logits_AQ: NDArray[np.floating[Any]],
    boxes_A4: NDArray[np.floating[Any]],
    *,
    queries: int,
    threshold: float,
    width: int,
    height: int,
) -> Detections:
    """Turn the raw output for one image into detections (steps 3 and 4 of VESL).

    Args:
        boxes_A4: center and size in [0, 1] of the padded square, as OWLv2 gives them.
        width, height: of the original image in pixels.
    """
    index_K, score_K, query_K = best_queries(logits_AQ, queries=queries, threshold=threshold)
    inside_J4, valid_K = boxes_in_image(to_corners(boxes_A4[index_K]), width=width, height=height)
    return Detections(inside_J4, score_K[valid_K], query_K[valid_K], thin=int((~valid_K).sum()))


class Owlv2Detector(Detector):
    """OWLv2 with a checkpoint of a folder or the hub.

    Raises:
        UserError: the checkpoint is out of reach, of another type, a pickle, or lacks tensors.
    """

    name = "owlv2"

    def __init__(self, settings: Owlv2Settings, device: str | None) -> None:
        from transformers import AutoTokenizer, Owlv2ForObjectDetection, Owlv2ImageProcessor

        checkpoint = fetch(settings.model, revision=settings.revision, offline=settings.offline, field="model")
        model_type = checkpoint.config().get("model_type")
        if model_type != "owlv2":
            raise UserError(f"{settings.model}: model_type must be 'owlv2' (got '{model_type}')")
        checkpoint.weights()  # raises where there are only pickles, which from_pretrained would open
        folder = str(checkpoint.folder)
        with loading(settings.model):  # transformers warns about weights that check_loaded refuses by name
            options: dict[str, Any] = {"use_safetensors": True, "dtype": torch.float32}
            loaded: Any = Owlv2ForObjectDetection.from_pretrained(folder, output_loading_info=True, **options)
            self._network, report = loaded
            check_loaded(report, name=settings.model)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
            self._processor = Owlv2ImageProcessor.from_pretrained(folder)
        self.settings = settings
        self.model = settings.model
        self.version = checkpoint.commit or checkpoint.digest()
        self._device = choose_device(device or "auto")
        self._network = self._network.to(self._device).eval().requires_grad_(False)
        vision = self._network.config.vision_config
        self.input_px = settings.input_px or int(vision.image_size)
        if self.input_px % vision.patch_size:
            raise UserError(
                f"field 'input_px' must be a multiple of the patch size {vision.patch_size} (got {self.input_px})"
            )
        self._interpolates = self.input_px != vision.image_size
        self._context = int(self._network.config.text_config.max_position_embeddings)

    @torch.inference_mode()
    def detect(self, images: Sequence[DetectorInput], phrases: Sequence[Sequence[str]]) -> list[Detections]:
        size = {"height": self.input_px, "width": self.input_px}
        pixels = self._processor(images=[image.pixels for image in images], size=size, return_tensors="pt")[
            "pixel_values"
        ]
        num_queries = max(map(len, phrases))
        tokens = self._tokenizer(
            [phrase for queries in phrases for phrase in queries],
            padding="max_length",
            truncation=True,
            max_length=self._context,
            return_tensors="pt",
        )
        # OWLv2 wants the same number of queries for every image. Missing ones are all token 0, which the model takes as
        # the mark of padding: it masks their logits.
        # Both [images, queries, tokens]; the network takes them flattened to [images * queries, tokens].
        ids, mask = (torch.zeros(len(phrases), num_queries, self._context, dtype=torch.int64) for _ in range(2))
        start = 0
        for index, queries in enumerate(phrases):
            end = start + len(queries)
            ids[index, : len(queries)] = tokens["input_ids"][start:end]
            mask[index, : len(queries)] = tokens["attention_mask"][start:end]
            start = end
        outputs = self._network(
            pixel_values=pixels.to(self._device),
            input_ids=ids.flatten(0, 1).to(self._device),
            attention_mask=mask.flatten(0, 1).to(self._device),
            interpolate_pos_encoding=self._interpolates,
        )
        return [
            detections(
                logits.float().cpu().numpy(),
                boxes.float().cpu().numpy(),
                queries=len(queries),
                threshold=self.settings.threshold,
                width=image.width,
                height=image.height,
            )
            # Each image has logits [A, queries] and boxes [A, 4], A being the patches.
            for logits, boxes, queries, image in zip(outputs.logits, outputs.pred_boxes, phrases, images, strict=True)
        ]


OWLV2 = DetectorKind(
    settings=Owlv2Settings,
    open=lambda settings, _, device: Owlv2Detector(settings, device),
    note="the paper's: OWLv2 through transformers",
)


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
            # A mean log-probability is at most 0, but for rounding.
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


MLLM = DetectorKind(
    settings=MllmSettings,
    open=lambda settings, _, device: MllmDetector(settings, device),
    note="asks a multimodal model, such as the shipped mini, where each phrase is",
    without_model="the shipped mini is asked where each phrase is; photographs are decided by what it recognizes",
)
