"""Answers while they are written: what each question has so far, and the embeddings that generation reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from foveate.language.packing import SLOT
from foveate.multimodal.answers import open_box
from foveate.multimodal.folder import LoadedModel
from foveate.multimodal.frames import CoordinateFrame
from foveate.multimodal.model import ViewLayout, Visual
from foveate.multimodal.prompts import Written
from foveate.multimodal.referring import RegionPrompts
from foveate.vision.tiling import TilePlan


class EncodedImage(NamedTuple):
    """One encoded image: numbers of its views, the frame of its coordinates, and its plan where it has tiles."""

    views: list[int]
    frame: CoordinateFrame
    plan: TilePlan | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the image in pixels."""
        placement = self.frame.placement
        return (
            (placement.width, placement.height) if self.plan is None else (self.plan.size.width, self.plan.size.height)
        )


@dataclass
class PendingAnswer:
    """One question while it is answered.

    Attributes:
        views: numbers of its views. layout: image of each, and ids in front of it. frames: of its images.
        written: the tokens of the question. in_text: the images stand within it. answer: generated ids.
        before: tokens of the conversation in front of the question. unread: behind them, read with the question.
        boxes: (image, box in [0, 1] of the model input) of the answer's region tokens.
    """

    views: list[int]
    layout: list[tuple[int, list[int]]]
    frames: list[CoordinateFrame]
    written: Written
    in_text: bool = False
    before: list[int] = field(default_factory=list)
    unread: list[int] = field(default_factory=list)
    answer: list[int] = field(default_factory=list)
    boxes: list[tuple[int, list[float]]] = field(default_factory=list)
    finished: bool = False


class AnswerWriter:
    """What `language.generate` needs of a batch: embeddings of its prompts, and of the tokens just written."""

    def __init__(self, loaded: LoadedModel, visual: Visual, pending: Sequence[PendingAnswer]) -> None:
        self.loaded, self.visual, self.pending = loaded, visual, pending
        self.written: list[Tensor] = []
        prompts, special = loaded.prompts, loaded.tokenizer.special
        # Answers hold text, regions and the end; nothing else may be written.
        self.suppressed = [id for id in special.values() if id not in (prompts.chat.end, prompts.region_id)]

    @torch.inference_mode()
    def prompt(self, number: int, *, images: bool = True) -> Tensor:
        """Embed the images and the question of one row: [L, E]."""
        model, question = self.loaded.model, self.pending[number]
        views_1K = self._views([number])
        ids_1T = torch.tensor([question.unread + question.written.tokens.ids], device=views_1K.device)
        created = ViewLayout.create([question.layout], in_text=[question.in_text])
        layout = ViewLayout(*(column.to(views_1K.device) for column in created))
        regions = RegionPrompts.create(question.written.regions, question.written.points).to(views_1K.device)
        text_TE = model.embed(ids_1T, self.visual, views_1K, regions, layout)[0]
        if not images:
            return text_TE
        return torch.cat([model.prefix(self.visual, views_1K, layout)[0].to(text_TE.dtype), text_TE])

    @torch.inference_mode()
    def embed(self, rows: Sequence[int], tokens: Sequence[int], states_BE: Tensor) -> Tensor:
        """Note tokens and decode the boxes that answers point at; return the embeddings [B, E] of the tokens."""
        model, end, region_id = self.loaded.model, self.loaded.prompts.chat.end, self.loaded.prompts.region_id
        ids_B1 = torch.tensor(tokens, device=states_BE.device)[:, None]
        embedded_BE = model.embed(ids_B1, self.visual, self._views(rows))[:, 0]
        for number, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            question = self.pending[row]
            # Without an image there is nothing to point at; the token stays in the text.
            if token == region_id and question.views and model.box_head is not None:
                question.boxes.append(self._point(question, states_BE[number]))
                regions = self._regions(question.boxes[-1:])
                ids_11 = ids_B1[number : number + 1]
                embedded_BE[number] = model.embed(ids_11, self.visual, self._views([row]), regions)[0, 0]
            if token != end:
                question.answer.append(token)
        self.written.append(embedded_BE)
        return embedded_BE

    def _point(self, question: PendingAnswer, state_E: Tensor) -> tuple[int, list[float]]:
        """Decode the image and the box [x1, y1, x2, y2] of the region token that comes next."""
        model, device = self.loaded.model, state_E.device
        ids = question.before + question.unread + question.written.tokens.ids + question.answer
        ids_1T = torch.tensor([ids], device=device)
        is_text_1T = (ids_1T != self.loaded.prompts.region_id) & (ids_1T != SLOT)
        (phrase_E,) = model.point(state_E[None], ids_1T, is_text_1T)
        # A model with a box head has one view an image: its number is the image's.
        image, box_4 = model.locate_among(self.visual, torch.tensor(question.views, device=device), phrase_E)
        return image, open_box(box_4.tolist())

    def _views(self, rows: Sequence[int]) -> Tensor:
        """Return the numbers [B, K] of the views of rows, -1 behind the last where a row has fewer."""
        views = [self.pending[row].views for row in rows]
        longest = max(map(len, views), default=0)
        padded = [[*row, *[-1] * (longest - len(row))] for row in views]
        return torch.tensor(padded, dtype=torch.long, device=self.visual.full_VLE.device)

    def _regions(self, regions: Sequence[tuple[int, Any]]) -> RegionPrompts:
        return RegionPrompts.create(regions).to(self.visual.full_VLE.device)
