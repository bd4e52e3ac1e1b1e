"""OWLv2 (arXiv 2306.09683) through transformers, the paper's detector: phrases as queries, every box with its best one.

The published labels used its CLIP L/14 ST+FT checkpoint at 448 px, where it has 32 x 32 boxes; the checkpoint's own
input is 1008. At another size the position embeddings are interpolated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from foveate.caption.vesl.detection import Detector, DetectorKind, Found, Shown
from foveate.caption.vesl.geometry import in_image
from foveate.core.errors import UserError
from foveate.core.recipes import Settings
from foveate.records.collection import Collection
from foveate.vision.device import choose_device
from foveate.vision.hf.loading import quiet
from foveate.vision.hub import check_loaded, fetch


class Owlv2Settings(Settings):
    """Which checkpoint, at what size, and what is kept."""

    model: str = Field(description="folder, or OWNER/NAME on the hub, e.g. google/owlv2-large-patch14-ensemble")
    revision: str | None = Field(None, description="branch, tag or commit of a hub model")
    offline: bool = Field(False, description="look into the hub's cache only")
    input_px: int | None = Field(None, ge=16, description="side of the input; the checkpoint's own by default")
    threshold: float = Field(0.1, ge=0, lt=1, description="a box is kept above it, strictly; paper 0.1")


def best_queries(
    logits_AQ: NDArray[np.floating[Any]], *, queries: int, threshold: float
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Per box the query of highest logit: the boxes kept, their scores (its sigmoid), and their queries.

    Args:
        logits_AQ: of A boxes; columns from `queries` on are padding and never win.
        threshold: a score must be above it, strictly.
    """
    real_AQ = np.asarray(logits_AQ, dtype=np.float32)[:, :queries]
    best_A = real_AQ.argmax(axis=1)
    highest_A = np.take_along_axis(real_AQ, best_A[:, None], axis=1)[:, 0]
    # In float32 as the model library has it: a score that equals the threshold is dropped there, too.
    score_A = torch.sigmoid(torch.from_numpy(highest_A)).numpy()
    kept = np.flatnonzero(score_A > np.float32(threshold))
    return kept, score_A[kept].astype(np.float64), best_A[kept].astype(np.int64)


def corners(boxes_A4: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Center and size to two corners."""
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
) -> Found:
    """Steps 3 and 4 of VESL from the raw output for one image; boxes as center and size in the padded square."""
    kept, scores, labels = best_queries(logits_AQ, queries=queries, threshold=threshold)
    inside, left = in_image(corners(boxes_A4[kept]), width=width, height=height)
    return Found(inside, scores[left], labels[left], thin=int((~left).sum()))


class Owlv2Detector(Detector):
    """See the module's text.

    Raises:
        UserError: for a checkpoint out of reach, of another type, as a pickle, or with tensors missing.
    """

    name = "owlv2"

    def __init__(self, settings: Owlv2Settings, device: str | None) -> None:
        from transformers import AutoTokenizer, Owlv2ForObjectDetection, Owlv2ImageProcessor

        checkpoint = fetch(settings.model, revision=settings.revision, offline=settings.offline, field="model")
        found_type = checkpoint.config().get("model_type")
        if found_type != "owlv2":
            raise UserError(f"{settings.model}: its model_type is '{found_type}', the detector 'owlv2' reads owlv2")
        checkpoint.weights()
        folder = str(checkpoint.folder)
        with quiet():
            try:
                options: dict[str, Any] = {"use_safetensors": True, "dtype": torch.float32}
                loaded: Any = Owlv2ForObjectDetection.from_pretrained(folder, output_loading_info=True, **options)
                self._network, report = loaded
                check_loaded(report, name=settings.model)
                self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
                self._processor = Owlv2ImageProcessor.from_pretrained(folder)
            except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
                if isinstance(error, UserError):
                    raise
                reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
                raise UserError(f"{settings.model}: transformers cannot load it ({reason})") from error
        self.settings = settings
        self.model = settings.model
        self.version = checkpoint.commit or checkpoint.digest()
        self._device = choose_device(device or "auto")
        self._network = self._network.to(self._device).eval().requires_grad_(False)
        vision = self._network.config.vision_config
        self.input_px = settings.input_px or int(vision.image_size)
        if self.input_px % vision.patch_size:
            raise UserError(
                f"field input_px: {self.input_px} is no multiple of the model's patches of {vision.patch_size} pixels"
            )
        self._interpolates = self.input_px != vision.image_size
        self._words = int(self._network.config.text_config.max_position_embeddings)

    @torch.inference_mode()
    def detect(self, images: Sequence[Shown], phrases: Sequence[Sequence[str]]) -> list[Found]:
        size = {"height": self.input_px, "width": self.input_px}
        pixels = self._processor(images=[image.pixels for image in images], size=size, return_tensors="pt")[
            "pixel_values"
        ]
        most = max(map(len, phrases))
        tokens = self._tokenizer(
            [phrase for some in phrases for phrase in some],
            padding="max_length",
            truncation=True,
            max_length=self._words,
            return_tensors="pt",
        )
        # One row of queries per image, of equal number; what fills them up has the token 0 and is masked.
        ids, mask = (torch.zeros(len(phrases), most, self._words, dtype=torch.int64) for _ in range(2))
        start = 0
        for number, some in enumerate(phrases):
            ids[number, : len(some)] = tokens["input_ids"][start : start + len(some)]
            mask[number, : len(some)] = tokens["attention_mask"][start : start + len(some)]
            start += len(some)
        said = self._network(
            pixel_values=pixels.to(self._device),
            input_ids=ids.flatten(0, 1).to(self._device),
            attention_mask=mask.flatten(0, 1).to(self._device),
            interpolate_pos_encoding=self._interpolates,
        )
        return [
            detections(
                logits.float().cpu().numpy(),
                boxes.float().cpu().numpy(),
                queries=len(some),
                threshold=self.settings.threshold,
                width=image.width,
                height=image.height,
            )
            for logits, boxes, some, image in zip(said.logits, said.pred_boxes, phrases, images, strict=True)
        ]


def open_detector(settings: Owlv2Settings, collection: Collection, device: str | None) -> Owlv2Detector:
    """See `Owlv2Detector`."""
    return Owlv2Detector(settings, device)


DETECTOR = DetectorKind(settings=Owlv2Settings, open=open_detector, note="the paper's: OWLv2 through transformers")
