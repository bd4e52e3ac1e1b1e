"""From conversations to token ids: turns as separately tokenized parts, regions as text or as tokens.

The images of a conversation stand in front of its text, in order (`MultimodalModel.prefix`); the placeholders `<image>`
leave the text. A part knows whether it is learned when it is made, so that no label is ever looked for afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from foveate.core.errors import UserError
from foveate.language.packing import Tokens
from foveate.language.tokenizer import Tokenizer
from foveate.language.vocabulary import ChatMarks
from foveate.records.box_text import format_region
from foveate.records.conversations import IMAGE, REGION, Conversation, Turn, locate_regions
from foveate.records.geometry import Placement
from foveate.records.shapes import Shape, enclosing_box


class Written(NamedTuple):
    """A conversation as tokens, and the (image, box in [0, 1] of the model input) of each of its region tokens."""

    tokens: Tokens
    regions: list[tuple[int, NDArray[np.float64]]]


class PromptWriter:
    """Write conversations as token ids.

    Args:
        tokenizer: of the language model.
        marks: of its chat format.
        regions: "text" writes 0..999 coordinates, "tokens" one token per region.
    """

    def __init__(self, tokenizer: Tokenizer, marks: ChatMarks, *, regions: Literal["text", "tokens"]) -> None:
        self.tokenizer, self.marks, self.regions = tokenizer, marks, regions
        self.region_id = tokenizer.special[REGION]

    def write_conversation(self, conversation: Conversation, placements: Sequence[Placement]) -> Written:
        """Write a whole conversation; its answers and their end marks are learned.

        Args:
            placements: of each image in the model input.
        """
        return self._write(conversation, placements, open_answer=False)

    def write_question(self, conversation: Conversation, placements: Sequence[Placement]) -> Written:
        """Write a conversation that ends with a question, up to where its answer begins; nothing is learned."""
        written = self._write(conversation, placements, open_answer=True)
        return Written(Tokens(written.tokens.ids, [False] * len(written.tokens.ids)), written.regions)

    def _write(self, conversation: Conversation, placements: Sequence[Placement], *, open_answer: bool) -> Written:
        ids: list[int] = []
        learned: list[bool] = []
        regions: list[tuple[int, NDArray[np.float64]]] = []
        for turn, images in zip(conversation.turns, locate_regions(conversation), strict=True):
            is_answer = turn.role == "assistant"
            ids += self.marks.before[turn.role]
            learned += [False] * (len(ids) - len(learned))
            ids += self._content(turn, images, placements)
            if self.regions == "tokens":
                regions += [
                    (image, _input_box(shape, placements[image]))
                    for shape, image in zip(turn.regions, images, strict=True)
                ]
            learned += [is_answer] * (len(ids) - len(learned))
            after = self.marks.after[turn.role]
            ids += after
            learned += [is_answer and number == 0 for number in range(len(after))]
        if open_answer:
            ids += self.marks.before["assistant"]
            learned += [False] * (len(ids) - len(learned))
        return Written(Tokens(ids, learned), regions)

    def _content(self, turn: Turn, images: Sequence[int], placements: Sequence[Placement]) -> list[int]:
        """Tokenize the text of a turn, its regions as text or as tokens."""
        text = " ".join(turn.text.replace(IMAGE, " ").split()) if turn.role == "user" else turn.text.strip()
        pieces = text.split(REGION)
        if self.regions == "text":
            for number, (shape, image) in enumerate(zip(turn.regions, images, strict=True)):
                placement = placements[image]
                pieces[number] += format_region(shape, width=placement.width, height=placement.height)
            pieces = ["".join(pieces)]
        ids: list[int] = []
        for number, piece in enumerate(pieces):
            if number:
                ids.append(self.region_id)
            if self.marks.blank and number == 0 and piece.strip():
                piece = f" {piece}"
            # A blank in front of a region token says nothing and would be a token of its own.
            ids += self.tokenizer.encode(piece.rstrip() if number < len(pieces) - 1 else piece)
        return ids


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
