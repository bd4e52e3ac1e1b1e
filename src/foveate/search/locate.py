"""Locate a phrase in one image: the box of every rule, with baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from foveate.core.errors import UserError
from foveate.core.progress import track
from foveate.metrics.grounding import baseline_boxes
from foveate.multimodal.questions import ask_where
from foveate.records.geometry import Placement, View
from foveate.records.images import MAX_DECODED_PIXELS, MAX_PIXELS, BadImage, DecodedImage, decode_with_info
from foveate.search.calibration import TextCache, draw_letters, draw_texts, judge_words, mean_direction, split_query
from foveate.search.settings import LOCATE_RULES
from foveate.vision.encoder import BoxProposals, ImageFeatures
from foveate.vision.localizer.inference import candidate_scores, embed_phrases, find
from foveate.vision.localizer.model import LocalizingModel
from foveate.vision.preprocess import DECODE_FACTOR, place_image, render_file, render_image

if TYPE_CHECKING:
    from foveate.multimodal.answers import Answer
    from foveate.multimodal.ask import Mllm
    from foveate.multimodal.foreign import ForeignMllm

# Share of random names that score above the floor of an image, see docs/verbs/locate.md.
NAMES_ABOVE = 0.25
_NAMES, _LETTERS = 32, 16


def read_image(path: Path) -> bytes:
    """Read the bytes of an image file.

    Raises:
        UserError: when it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


@dataclass(frozen=True)
class EncodedImage:
    """One image after the encoder.

    Attributes:
        width, height: in pixels after its EXIF rotation. pixels: of the model input [3, H, W].
    """

    tokens: ImageFeatures
    placement: Placement
    width: int
    height: int
    pixels: Tensor


def find_decode_side(model: LocalizingModel) -> int | None:
    """Return the longest side in pixels at which a model's images are decoded: more is lost at its input.

    None where the input shows a crop or a squashed image: its longer side says nothing of the pixels needed.
    """
    preprocess = model.image_encoder.preprocess
    return DECODE_FACTOR * preprocess.long_side if preprocess.geometry == "letterbox" else None


def render_request(
    model: LocalizingModel, image: bytes | DecodedImage, *, max_pixels: int = MAX_DECODED_PIXELS
) -> tuple[Tensor, Placement, tuple[int, int]]:
    """Render an image of a request; return pixels, placement, and its width and height.

    Args:
        image: bytes of a file, or what was decoded at `find_decode_side`.

    Raises:
        BadImage: it cannot be read.
    """
    preprocess, longest_side = model.image_encoder.preprocess, find_decode_side(model)
    if isinstance(image, bytes):
        if longest_side is None:
            # As the images of an index are rendered.
            pixels, placement = render_file(image, preprocess, max_pixels=max_pixels)
            return pixels, placement, (placement.width, placement.height)
        image = decode_with_info(image, longest_side=longest_side, max_pixels=max_pixels)
    placement = place_image(preprocess, image.image.size, View())
    return render_image(preprocess, image.image, placement), placement, (image.info.width, image.info.height)


@torch.inference_mode()
def encode_image(model: LocalizingModel, image: bytes | DecodedImage) -> EncodedImage:
    """Encode one image.

    Args:
        image: see `render_request`.

    Raises:
        UserError: with the reason, when it cannot be read.
    """
    try:
        pixels, placement, (width, height) = render_request(model, image, max_pixels=MAX_PIXELS)
    except BadImage as problem:
        raise UserError(f"the image cannot be read: {problem}") from problem
    return EncodedImage(model.encode_image_tokens(pixels[None]), placement, width, height, pixels)


@dataclass(frozen=True)
class PhraseBoxes:
    """Boxes of one phrase in one image, (x1, y1, x2, y2) in [0, 1] of the image.

    Attributes:
        rule: the one that `box` comes from. boxes: of every rule, and a center and a random box as baselines.
        scores: cosine of each box's embedding with the phrase's, in [-1, 1]; None for a box without area.
        width, height: of the image in pixels, after its EXIF rotation.
        match: score of the best proposal that the floor is compared with, where a model proposes boxes itself.
        floor: score of the best candidate below which the phrase is not in the image; None where it was not measured.
        is_unknown, unknown_words: whether the text tower cannot tell the phrase, and which words of it, from letters.
    """

    phrase: str
    rule: str
    boxes: dict[str, list[float]]
    scores: dict[str, float | None]
    width: int
    height: int
    match: float | None = None
    floor: float | None = None
    is_unknown: bool = False
    unknown_words: tuple[str, ...] = ()

    @property
    def has_match(self) -> bool:
        """Whether a candidate box matches the phrase better than it matches most of random names."""
        best = self._best
        return not self.is_unknown and (self.floor is None or (best is not None and best > self.floor))

    @property
    def reason(self) -> str:
        """Why the phrase is not found; "" otherwise."""
        best = self._best
        if self.has_match:
            return ""
        if self.is_unknown or best is None or self.floor is None:
            return "the phrase is like random letters to the text tower"
        return f"the best score of a box is {best:.3f}, which is reached by chance, too (floor {self.floor:.3f})"

    @property
    def _best(self) -> float | None:
        """What the floor is compared with."""
        return self.scores["candidates"] if self.match is None else self.match

    @property
    def box(self) -> list[float]:
        """The box of the selected rule."""
        return self.boxes[self.rule]

    @property
    def cosine(self) -> float:
        """The cosine of the selected box; below all others where it has no area."""
        score = self.scores[self.rule]
        return -1.0 if score is None else score

    @property
    def pixel_box(self) -> tuple[float, float, float, float]:
        """The box of the selected rule in pixels."""
        x1, y1, x2, y2 = self.box
        return (x1 * self.width, y1 * self.height, x2 * self.width, y2 * self.height)


def locate(model: LocalizingModel, image: bytes, phrase: str, *, rule: str | None = None, seed: int = 0) -> PhraseBoxes:
    """Locate a phrase in an image by the grounding head and by the best of many candidate boxes.

    Both use one pass over the image.

    Args:
        rule: "head" or "candidates"; by default the model's better one on its validation split, or the candidates where
            the head's box has no area.
        seed: of the random baseline box.

    Raises:
        UserError: for an empty phrase, an unreadable image, or a rule the model does not have.
    """
    (located,) = locate_phrases(model, image, [phrase], rule=rule, seed=seed)
    return located


@torch.inference_mode()
def locate_phrases(
    model: LocalizingModel,
    image: bytes | DecodedImage,
    phrases: Sequence[str],
    *,
    rule: str | None = None,
    seed: int = 0,
    cache: TextCache | None = None,
) -> list[PhraseBoxes]:
    """Locate phrases in one image, which is encoded once, and whose floor is measured once; see `locate`.

    Args:
        cache: of texts that the model has embedded before.
    """
    # Checked before the image is encoded, so that a mistake costs no pass of the network.
    for phrase in phrases:
        _check_phrase(phrase)
    is_default, rule = rule is None, _choose_rule(model, rule)
    encoded = encode_image(model, image)
    proposals = propose(model, encoded)
    texts_RE = embed_phrases(model, phrases).to(model.device)
    located = _locate_all(model, encoded, proposals, phrases, texts_RE, rule=rule, is_default=is_default, seed=seed)
    floor, judgments = _measure_floor(model, encoded, proposals, phrases, cache or TextCache())
    has_floors = proposals is not None and proposals.has_floors
    floors_R = model.image_encoder.measure_floors(texts_RE, "proposals") if has_floors else None
    floors = [floor] * len(phrases) if floors_R is None else floors_R.tolist()
    return [
        replace(each, floor=floor, is_unknown=is_unknown, unknown_words=unknown)
        for each, floor, (is_unknown, unknown) in zip(located, floors, judgments, strict=True)
    ]


def propose(model: LocalizingModel, encoded: EncodedImage) -> BoxProposals | None:
    """Return the boxes that an encoder proposes itself; None where candidates of all places and sizes are compared."""
    return model.image_encoder.propose(encoded.pixels.to(model.device), encoded.tokens.tokens[0])


def score_candidates(
    model: LocalizingModel, encoded: EncodedImage, proposals: BoxProposals | None, texts_TE: Tensor
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Return the best candidate or proposal of each phrase [T, 4], in [0, 1] of the model input, and all scores [T, C].

    Args:
        texts_TE: on the model's device.
    """
    if proposals is None:
        index = torch.zeros(len(texts_TE), dtype=torch.int64, device=model.device)
        return candidate_scores(model, encoded.tokens, [encoded.placement], texts_TE, index)
    scores_TK = proposals.score(texts_TE).cpu()
    return proposals.boxes_K4.cpu().double().numpy()[scores_TK.argmax(dim=1).numpy()], scores_TK.numpy()


def _locate_all(
    model: LocalizingModel,
    encoded: EncodedImage,
    proposals: BoxProposals | None,
    phrases: Sequence[str],
    texts_RE: Tensor,
    *,
    rule: str,
    is_default: bool,
    seed: int,
) -> list[PhraseBoxes]:
    return [
        _locate_encoded(model, encoded, proposals, phrase, text_E[None], rule=rule, is_default=is_default, seed=seed)
        for phrase, text_E in zip(phrases, texts_RE, strict=True)
    ]


def draw_names() -> list[str]:
    """Draw the random names that the floor of an image is measured with."""
    texts = draw_texts()
    # Evenly spaced, because the list is alphabetical and neighbors in it share words.
    return texts[:: len(texts) // _NAMES]


def _measure_floor(
    model: LocalizingModel,
    encoded: EncodedImage,
    proposals: BoxProposals | None,
    phrases: Sequence[str],
    cache: TextCache,
) -> tuple[float, list[tuple[bool, tuple[str, ...]]]]:
    """Return the score that most random names do not reach in an image, and what of each phrase is unknown.

    See `foveate.search.calibration.judge_words`.
    """
    names, letters = draw_names(), draw_letters()[:_LETTERS]
    texts_TE = cache.embed(model, [*names, *letters])
    names_NE = texts_TE[: len(names)].to(model.device)
    scores_NC = score_candidates(model, encoded, proposals, names_NE)[1]
    unit_TE = torch.nn.functional.normalize(texts_TE.double(), dim=-1).numpy()
    direction_E = mean_direction(unit_TE[len(names) :])
    # Only single-word names, as in `measure_floor`: longer names are no measure for a single word.
    single_NE = unit_TE[[row for row, name in enumerate(names) if name.isalpha()]]
    max_cosine = float((single_NE @ direction_E).max())
    # The best candidate of each name, because a phrase is judged by its best candidate, too.
    floor = float(np.quantile(scores_NC.max(axis=1), 1 - NAMES_ABOVE))
    return floor, [
        judge_words(phrase, split_query(phrase), model, direction_E, max_cosine, cache=cache) for phrase in phrases
    ]


@torch.inference_mode()
def locate_frames(
    model: LocalizingModel, frames: Sequence[Image.Image], phrase: str, *, rule: str | None = None, seed: int = 0
) -> list[PhraseBoxes]:
    """Locate a phrase in each frame of a clip; `locate` for images that are decoded.

    Raises:
        UserError: for an empty phrase, or a rule the model does not have.
    """
    _check_phrase(phrase)
    is_default, rule = rule is None, _choose_rule(model, rule)
    text_1E = embed_phrases(model, [phrase]).to(model.device)
    preprocess = model.image_encoder.preprocess
    located: list[PhraseBoxes] = []
    for frame in track(frames, description="frames") if len(frames) > 8 else frames:
        placement = place_image(preprocess, frame.size, View())
        pixels = render_image(preprocess, frame, placement)
        encoded = EncodedImage(model.encode_image_tokens(pixels[None]), placement, *frame.size, pixels)
        proposals = propose(model, encoded)
        located.append(
            _locate_encoded(model, encoded, proposals, phrase, text_1E, rule=rule, is_default=is_default, seed=seed)
        )
    return located


def ask_frames(model: Mllm | ForeignMllm, frames: Sequence[Image.Image], phrase: str) -> list[Answer]:
    """Ask a multimodal model where a phrase is in each frame of a clip, as `foveate locate` asks about an image."""
    ask_where(phrase)  # an empty phrase is refused before the first frame
    return [model.locate(frame, phrase) for frame in track(frames, description="frames")]


def rank_frames(answers: Sequence[Answer], times: Sequence[float]) -> list[int]:
    """Return the frames in the order of their scores: those with a box first, then by how well it matches, by time."""
    scores = [max(answer.box_scores or answer.rejected, default=0.0) for answer in answers]
    return sorted(range(len(answers)), key=lambda row: (not answers[row].boxes, -scores[row], times[row]))


def _check_phrase(phrase: str) -> None:
    if not phrase.strip():
        raise UserError("phrase: the text is empty; expected words such as 'a red boat'")


def _list_rules(model: LocalizingModel) -> tuple[str, ...]:
    return LOCATE_RULES if model.has_box_head else LOCATE_RULES[1:]


def _choose_rule(model: LocalizingModel, rule: str | None) -> str:
    """Return a rule that the model has; by default its better one."""
    rule = rule or model.locate_rule
    if rule not in _list_rules(model):
        raise UserError(f"rule '{rule}': this model has {', '.join(_list_rules(model))}")
    return rule


def _locate_encoded(
    model: LocalizingModel,
    encoded: EncodedImage,
    proposals: BoxProposals | None,
    phrase: str,
    text_1E: torch.Tensor,
    *,
    rule: str,
    is_default: bool,
    seed: int,
) -> PhraseBoxes:
    tokens, placement = encoded.tokens, encoded.placement
    index = torch.zeros(1, dtype=torch.int64, device=model.device)
    best_14, _ = score_candidates(model, encoded, proposals, text_1E)
    inside = {
        name: find(model, tokens, [placement], text_1E, index, rule=name) if name == "head" else best_14
        for name in _list_rules(model)
    }
    boxes = {name: placement.to_original(box)[0] for name, box in inside.items()}
    # Baselines with their scores: a box that does not beat them was not found.
    boxes |= {name: box[0] for name, box in baseline_boxes(1, seed=seed).items()}
    scores = {name: _cosine(model, encoded, placement.to_input(box[None], min_visible=0)[0], text_1E)
              for name, box in boxes.items()}  # fmt: skip
    # A box without area is no answer, whichever rule is the better one on other images.
    if is_default and scores[rule] is None:
        rule = LOCATE_RULES[1]
    return PhraseBoxes(
        phrase=phrase,
        rule=rule,
        boxes={name: [round(float(value), 5) for value in box] for name, box in boxes.items()},
        scores=scores,
        width=encoded.width,
        height=encoded.height,
        match=None if proposals is None else float(proposals.judge(text_1E)[0]),
    )


def _cosine(
    model: LocalizingModel, encoded: EncodedImage, box_14: NDArray[np.float64], text_1E: torch.Tensor
) -> float | None:
    """Return the cosine of a box's embedding with the phrase's; None for a box without area ([0, 4])."""
    if not len(box_14):
        return None
    boxes = torch.from_numpy(box_14).float().to(model.device)
    index = torch.zeros(1, dtype=torch.int64, device=model.device)
    z_1E = model.encode_regions(encoded.tokens, boxes, index)
    return float(torch.nn.functional.cosine_similarity(z_1E.float(), text_1E.float())[0])
