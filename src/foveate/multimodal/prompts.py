"""From conversations to token ids: turns as separately tokenized parts, regions as text or as tokens.

Where the first question begins with all images of a conversation (`images_lead`), they stand in front of the whole text
(`MultimodalModel.prefix`), so that several conversations read one copy of them. Elsewhere they stand where their
placeholders `<image>` are, as positions within the text that `MultimodalModel.embed` fills. A part knows whether it is
learned when it is made, so that no label is ever looked for afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from foveate.core.errors import UserError
from foveate.language.chat import Chat, Part
from foveate.language.packing import SLOT, Tokens
from foveate.multimodal.referring import RegionPoints, place_points
from foveate.multimodal.settings import MultimodalSettings
from foveate.records.box_text import format_region
from foveate.records.conversations import IMAGE, REGION, Conversation, Turn, locate_regions
from foveate.records.geometry import Placement
from foveate.records.shapes import Shape, enclosing_box

# From the first blank on: tried at each of them, a text of blanks alone would take the square of its length.
_BLANKS = re.compile(rf"(?<!\s)\s+(?={REGION})")
_LEADING = re.compile(rf"(?:\s*{IMAGE})*")


class Written(NamedTuple):
    """A conversation as tokens.

    Attributes:
        regions: image and box, in [0, 1] of the model input, of each of its region tokens.
        points: drawn from these regions, where the model reads points.
    """

    tokens: Tokens
    regions: list[tuple[int, NDArray[np.float64]]]
    points: Sequence[RegionPoints] = ()


class PromptWriter:
    """Write conversations as token ids.

    Args:
        chat: chat template of the language model, and its tokenizer.
        regions: "text" writes 0..999 coordinates, "tokens" one token per region, "hybrid" both in questions.
        num_points: to draw from each region that has a token; 0 = none.
        box_head: with "hybrid", answers have the token of a box in front of its digits.
    """

    def __init__(
        self,
        chat: Chat,
        *,
        regions: Literal["text", "tokens", "hybrid"],
        num_points: int = 0,
        box_head: bool = False,
    ) -> None:
        self.chat, self.tokenizer, self.regions, self.num_points = chat, chat.tokenizer, regions, num_points
        self.box_head = box_head
        self.region_id = chat.tokenizer.special[REGION]

    @property
    def has_box_tokens(self) -> bool:
        """Whether a box in an answer is a token, which the box head locates; else it is digits in the text."""
        return self.regions == "tokens" or (self.regions == "hybrid" and self.box_head)

    def lead_images(self, turns: Sequence[Turn]) -> bool:
        """Return whether images stand in front of the whole text; see `images_lead` and `Template.behind_images`."""
        in_turns = self.chat.template.behind_images is not None and any(IMAGE in turn.text for turn in turns)
        return images_lead(turns) and not in_turns

    def write_conversation(
        self,
        conversation: Conversation,
        placements: Sequence[Placement],
        *,
        images: Sequence[Sequence[int]] | None = None,
    ) -> Written:
        """Write a whole conversation; its answers and their end marks are learned.

        Args:
            placements: of each image in the model input.
            images: ids that stand for each image at its placeholder, see `image_slots`; None: all images are in front.
        """
        turns, regions, points = self._prepare(conversation, placements, in_text=images is not None)
        return Written(_join(self.chat.render(turns, strict=False), images or ()), regions, points)

    def write_question(
        self,
        conversation: Conversation,
        placements: Sequence[Placement],
        *,
        images: Sequence[Sequence[int]] | None = None,
        goes_on: bool = False,
    ) -> Written:
        """Write a conversation that ends with a question, up to where its answer begins; nothing is learned.

        Args:
            placements: of each image in the model input.
            images: see `write_conversation`.
            goes_on: it follows an answer, with its end mark, that the model has read already.
        """
        turns, regions, points = self._prepare(conversation, placements, in_text=images is not None)
        tokens = _join(self.chat.prompt(turns, goes_on=goes_on, strict=False), images or ())
        return Written(Tokens(tokens.ids, [False] * len(tokens.ids)), regions, points)

    def write_answer(self, text: str) -> list[int]:
        """Write an answer with its end mark, as it follows `write_question`."""
        return [id for part in self.chat.answer(text) for id in part.ids]

    def _prepare(
        self, conversation: Conversation, placements: Sequence[Placement], *, in_text: bool
    ) -> tuple[list[Turn], list[tuple[int, NDArray[np.float64]]], list[RegionPoints]]:
        """Return the turns, with image placeholders if `in_text`, their regions as text or left, and those left."""
        turns: list[Turn] = []
        regions: list[tuple[int, NDArray[np.float64]]] = []
        points: list[RegionPoints] = []
        for turn, images in zip(conversation.turns, locate_regions(conversation), strict=True):
            text = turn.text.strip()
            if turn.role == "user":
                # Where a placeholder stood, two blanks would be tokens that no other text has.
                behind = self.chat.template.behind_images
                text = (
                    _tidy(text, " " if behind is None else behind)
                    if in_text
                    else " ".join(text.replace(IMAGE, " ").split())
                )
            pairs = list(zip(turn.regions, images, strict=True))
            is_question = turn.role == "user"
            has_tokens = self.has_box_tokens or (self.regions == "hybrid" and is_question)
            if self.regions != "tokens":
                pieces = text.split(REGION)
                for number, (shape, image) in enumerate(pairs):
                    placement = placements[image]
                    digits = format_region(shape, width=placement.width, height=placement.height)
                    if has_tokens and not is_question:
                        # The head says where, and the digits are then read off the vector of its box.
                        pieces[number + 1] = digits + pieces[number + 1]
                    else:
                        pieces[number] += digits
                text = (REGION if has_tokens else "").join(pieces)
            if has_tokens:
                # A blank in front of a region token says nothing and would be a token of its own.
                text = _BLANKS.sub("", text)
                regions += [(image, _input_box(shape, placements[image])) for shape, image in pairs]
                if self.num_points:
                    points += [place_points(shape, placements[image], self.num_points) for shape, image in pairs]
            turns.append(Turn(turn.role, text))
        return turns, regions, points


def create_prompts(chat: Chat, settings: MultimodalSettings) -> PromptWriter:
    """Create the writer of a model's prompts."""
    num_points = 0 if settings.region_encoder is None else settings.region_points
    return PromptWriter(chat, regions=settings.regions, num_points=num_points, box_head=settings.box_head)


def images_lead(turns: Sequence[Turn]) -> bool:
    """Return whether all images stand in front of the first question, or there are none."""
    first, *others = [turn.text for turn in turns if turn.role != "system"]
    leading = _LEADING.match(first)
    assert leading is not None
    return IMAGE not in first[leading.end() :] and not any(IMAGE in text for text in others)


def image_slots(layout: Sequence[tuple[int, Sequence[int]]], num_tokens: int) -> list[list[int]]:
    """Return the ids that stand for each image in a text: indicators, and `SLOT` for each visual token of its views.

    Args:
        layout: number of its image, and ids in front of it, of each view.
        num_tokens: visual tokens of a view.
    """
    images: list[list[int]] = [[] for _ in range(1 + max((image for image, _ in layout), default=-1))]
    for image, before in layout:
        images[image] += [*before, *[SLOT] * num_tokens]
    return images


def _tidy(text: str, behind: str) -> str:
    """Reduce white space to a blank between words, `behind` behind an image, none in front of one."""
    first, *others = (" ".join(piece.split()) for piece in text.split(IMAGE))
    return first + "".join(IMAGE + (behind + piece if piece else "") for piece in others)


def _join(parts: Sequence[Part], images: Sequence[Sequence[int]]) -> Tokens:
    """Lay parts end to end, with the ids of the next image for each of its placeholders."""
    # Each part brings its labels: searching for answers in the tokenized whole fails where tokens merge differently.
    remaining = iter(images)
    ids, learned = list[int](), list[bool]()
    for part in parts:
        of_part = next(remaining) if part.placeholder == IMAGE else part.ids
        ids += of_part
        learned += [part.learned] * len(of_part)
    return Tokens(ids, learned)


def _input_box(shape: Shape, placement: Placement) -> NDArray[np.float64]:
    """Return the box [4] of a shape in [0, 1] of the model input; a point becomes a small square."""
    box = enclosing_box(shape)
    if box is None:
        raise UserError("region: it is empty")
    corners = np.array([box.x1, box.y1, box.x2, box.y2], dtype=np.float64)
    # Ferret's window of a point: 5 pixels to each side.
    if corners[2] - corners[0] < 1 or corners[3] - corners[1] < 1:
        corners += np.array([-5.0, -5.0, 5.0, 5.0])
    sides = np.array([placement.width, placement.height] * 2, dtype=np.float64)
    moved_K4, _ = placement.to_input(np.clip(corners / sides, 0, 1)[None], min_visible=0.0)
    if not len(moved_K4):
        raise UserError("region: the model does not see this part of the image")
    return moved_K4[0]
