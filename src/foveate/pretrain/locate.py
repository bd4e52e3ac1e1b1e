"""Where is it? The box of a phrase in one image, by every rule there is, reported apart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from foveate.core.errors import UserError
from foveate.pretrain.evaluate import baseline_boxes
from foveate.records.geometry import Placement, View
from foveate.records.images import BadImage, check, decode
from foveate.vision.encoder import ImageFeatures
from foveate.vision.localizer.asking import candidate_scores, embed_phrases, find
from foveate.vision.localizer.model import LocalizingModel
from foveate.vision.views import DECODE_FACTOR, placed, render

RULES = ("head", "candidates")


def read_image(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        UserError: when there is none.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


@dataclass(frozen=True)
class EncodedImage:
    """One image as the encoder has seen it; `width` and `height` in pixels after its EXIF rotation."""

    tokens: ImageFeatures
    placement: Placement
    width: int
    height: int


@torch.inference_mode()
def encode_image_bytes(model: LocalizingModel, data: bytes) -> EncodedImage:
    """Decodes and encodes one image.

    Raises:
        UserError: with the reason, when it cannot be read.
    """
    preprocess = model.image_encoder.preprocess
    try:
        info = check(data)
        image = decode(data, longest_side=DECODE_FACTOR * preprocess.long_side)
    except BadImage as problem:
        raise UserError(f"the image cannot be read: {problem}") from problem
    placement = placed(preprocess, image.size, View())
    tokens = model.encode_image_tokens(render(preprocess, image, placement)[None])
    return EncodedImage(tokens, placement, info.width, info.height)


@dataclass(frozen=True)
class Located:
    """The answer for one image and phrase; boxes are (x1, y1, x2, y2) in [0, 1] of the image.

    Attributes:
        rule: the one that `box` comes from. boxes: every rule's box, and the center and a random box beside them.
        scores: cosine of each box's embedding with the phrase's, in [-1, 1]; None for a box without area.
        width, height: of the image in pixels, after its EXIF rotation.
    """

    phrase: str
    rule: str
    boxes: dict[str, list[float]]
    scores: dict[str, float | None]
    width: int
    height: int

    @property
    def box(self) -> list[float]:
        """The box of the chosen rule."""
        return self.boxes[self.rule]


@torch.inference_mode()
def locate(model: LocalizingModel, image: bytes, phrase: str, *, rule: str | None = None, seed: int = 0) -> Located:
    """Finds a phrase in an image: the grounding head's box and the best of many candidate boxes.

    Both use one pass over the image. `rule` is the model's better one (on its validation split) by default.

    Raises:
        UserError: for an empty phrase, an unreadable image, or a rule the model does not have.
    """
    if not phrase.strip():
        raise UserError("the phrase is empty: say what to look for, for example 'a red boat'")
    available = RULES if model.prompter is not None else RULES[1:]
    chosen = rule or model.locate_rule
    if chosen not in available:
        raise UserError(f"rule '{chosen}': this model has {', '.join(available)}")
    encoded = encode_image_bytes(model, image)
    tokens, placement = encoded.tokens, encoded.placement
    index = torch.zeros(1, dtype=torch.int64, device=model.device)
    text_1E = embed_phrases(model, [phrase]).to(model.device)
    inside = {
        name: find(model, tokens, [placement], text_1E, index, rule=name)
        if name == "head"
        else candidate_scores(model, tokens, [placement], text_1E, index)[0]
        for name in available
    }
    boxes = {name: placement.to_original(box)[0] for name, box in inside.items()}
    boxes |= {name: box[0] for name, box in baseline_boxes(1, seed=seed).items()}
    scores = {name: _cosine(model, tokens, placement.to_input(box[None], min_visible=0)[0], text_1E, index)
              for name, box in boxes.items()}  # fmt: skip
    return Located(
        phrase=phrase,
        rule=chosen,
        boxes={name: [round(float(value), 5) for value in box] for name, box in boxes.items()},
        scores=scores,
        width=encoded.width,
        height=encoded.height,
    )


def _cosine(
    model: LocalizingModel,
    tokens: object,
    box_14: NDArray[np.float64],
    text_1E: torch.Tensor,
    index: torch.Tensor,
) -> float | None:
    if not len(box_14):
        return None
    boxes = torch.from_numpy(box_14).float().to(model.device)
    z_1E = model.encode_regions(tokens, boxes, index)  # type: ignore[arg-type]
    return float(torch.nn.functional.cosine_similarity(z_1E.float(), text_1E.float())[0])
