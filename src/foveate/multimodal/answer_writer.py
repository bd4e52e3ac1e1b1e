"""Answers while they are written: what each question has so far, and the embeddings that generation reads."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any, NamedTuple

import torch
from torch import Tensor

from foveate.core.recipes import validate
from foveate.language.forbidden_words import WordFilter
from foveate.language.generate import GenerationSettings
from foveate.language.packing import SLOT
from foveate.multimodal.answers import (
    NOT_FOUND,
    Answer,
    find_runs,
    find_sequences,
    is_settled,
    join_text,
    open_box,
    pair_phrases,
    read_coordinates,
    reject_boxes,
    says_no,
    says_yes,
    shorten_no,
    split_digits,
    to_pixels,
    write_corners,
)
from foveate.multimodal.folder import LoadedModel
from foveate.multimodal.frames import CoordinateFrame
from foveate.multimodal.prompts import Written
from foveate.multimodal.referring import RegionPrompts
from foveate.multimodal.views import ViewLayout, Visual
from foveate.records.boxes import PixelBox
from foveate.vision.tiling import TilePlan

# A draft costs little more than the token in front of it as long as the weights are what takes time to read.
MAX_DRAFT = 8
# More often than any answer of the training data says the same thing in a row.
MAX_REPEATS = 8


class EncodedImage(NamedTuple):
    """One encoded image.

    Attributes:
        views: numbers of its views. frame: of its coordinates. plan: where it has tiles.
        vector_D: of its first view, for `foveate.multimodal.picture_check`; None for other towers than Lite0.
    """

    views: list[int]
    frame: CoordinateFrame
    plan: TilePlan | None = None
    vector_D: Tensor | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the image in pixels."""
        placement = self.frame.placement
        return (
            (placement.width, placement.height) if self.plan is None else (self.plan.size.width, self.plan.size.height)
        )


class PointedBox(NamedTuple):
    """What a token points at: an image, a box [x1, y1, x2, y2] in [0, 1] of its model input, the score of the match."""

    image: int
    corners: list[float]
    score: float


@dataclass
class PendingAnswer:
    """One question while it is answered.

    Attributes:
        views: numbers of its views. layout: image of each, and ids in front of it. frames: of its images.
        written: the tokens of the question. in_text: the images stand within it. answer: generated ids.
        before: tokens of the conversation in front of the question. unread: behind them, read with the question.
        boxes: of the answer's region tokens. vectors: of its images, see `EncodedImage`. read_as: see `Answer`.
        is_plain: the answer is its text as it is written, such as JSON, without boxes.
    """

    views: list[int]
    layout: list[tuple[int, list[int]]]
    frames: list[CoordinateFrame]
    written: Written
    in_text: bool = False
    before: list[int] = field(default_factory=list)
    unread: list[int] = field(default_factory=list)
    answer: list[int] = field(default_factory=list)
    boxes: list[PointedBox] = field(default_factory=list)
    finished: bool = False
    vectors: list[Tensor] = field(default_factory=list)
    read_as: str = ""
    is_plain: bool = False


class AnswerWriter:
    """What `language.generate` needs of a batch: embeddings of its prompts, and of the tokens just written."""

    def __init__(self, loaded: LoadedModel, visual: Visual, pending: Sequence[PendingAnswer]) -> None:
        self.loaded, self.visual, self.pending = loaded, visual, pending
        self.written: list[Tensor] = []
        # Cache the embeddings of tokens behind the same views, without boxes: an answer repeats its marks and names.
        self._embedded: dict[tuple[tuple[int, ...], int], Tensor] = {}
        prompts, special = loaded.prompts, loaded.tokenizer.special
        # Answers hold text, regions and the end; nothing else may be written.
        self.suppressed = [id for id in special.values() if id not in (prompts.chat.end, prompts.region_id)]
        self.words = WordFilter(loaded.forbidden_words) if loaded.forbidden_words is not None else None

    @property
    def shares_images(self) -> bool:
        """Whether all of several questions are behind the same images, which then need to be read only once."""
        first, *others = self.pending
        # Images within a text stand behind different tokens in each question: they share no prefix.
        return bool(others and first.views) and all(
            (question.views, question.layout, question.in_text) == (first.views, first.layout, False)
            for question in self.pending
        )

    @torch.inference_mode()
    def images(self, number: int) -> Tensor:
        """Embed what stands in front of the text of a row: [P, E]."""
        return self.loaded.model.prefix(self.visual, self._views([number]), self._layout([number]))[0]

    @torch.inference_mode()
    def prompts(self, *, images: bool = True) -> list[Tensor]:
        """Embed the questions, each behind its images: [L, E]."""
        rows = range(len(self.pending))
        ids = [question.unread + question.written.tokens.ids for question in self.pending]
        # Padding on the right takes no part: a token's embedding depends on those before it alone.
        ids_BT = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(row, dtype=torch.long) for row in ids],
            batch_first=True,
            padding_value=self.loaded.prompts.chat.end,
        )
        written = [question.written for question in self.pending]
        regions = RegionPrompts.create(
            [region for question in written for region in question.regions],
            [points for question in written for points in question.points],
        ).to(self.visual.full_VLE.device)
        text_BTE = self.loaded.model.embed(
            ids_BT.to(self.visual.full_VLE.device), self.visual, self._views(rows), regions, self._layout(rows)
        )
        texts = [text_BTE[row, : len(ids[row])] for row in rows]
        return (
            [torch.cat([self.images(row).to(text.dtype), text]) for row, text in enumerate(texts)] if images else texts
        )

    @torch.inference_mode()
    def embed(self, rows: Sequence[int], tokens: Sequence[int], states_BE: Tensor) -> Tensor:
        """Note tokens and decode the boxes that answers point at; return the embeddings [B, E] of the tokens."""
        end, region_id = self.loaded.prompts.chat.end, self.loaded.prompts.region_id
        vectors: dict[int, Tensor] = {}
        for number, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            # Without an image there is nothing to point at; the token stays in the text.
            if token == region_id and self.pending[row].views and self.loaded.model.box_head is not None:
                vector_E = self._embed_box(row, states_BE[number])
                if vector_E is not None:
                    vectors[number] = vector_E
        others = [number for number in range(len(rows)) if number not in vectors]
        texts = self._embed_text([rows[number] for number in others], [tokens[number] for number in others])
        vectors |= zip(others, texts, strict=True)
        embedded_BE = torch.stack([vectors[number] for number in range(len(rows))])
        for row, token in zip(rows, tokens, strict=True):
            if token != end:
                self.pending[row].answer.append(token)
        self.written.append(embedded_BE)
        return embedded_BE

    def draft(self, row: int) -> tuple[list[int], Tensor]:
        """Guess that an entry of a list goes on as the one before it did, up to its box; see `language.generate`."""
        answer, region_id = self.pending[row].answer, self.loaded.prompts.region_id
        boxes = [position for position, token in enumerate(answer) if token == region_id]
        tokens: list[int] = []
        if len(boxes) > 1:
            # The open entry has `length` tokens so far: guess what followed as many in the one before, up to its box.
            length = len(answer) - 1 - boxes[-1]
            tokens = answer[boxes[-2] + 1 + length : boxes[-1]][:MAX_DRAFT]
        table_VE = self.loaded.model.embeddings_VE
        return tokens, torch.stack(self._embed_text([row] * len(tokens), tokens)) if tokens else table_VE[:0]

    def _embed_text(self, rows: Sequence[int], tokens: Sequence[int]) -> list[Tensor]:
        """Embed tokens [E] behind the images of their rows, each once."""
        keys = [(tuple(self.pending[row].views), token) for row, token in zip(rows, tokens, strict=True)]
        new = {key: row for key, row in zip(keys, rows, strict=True) if key not in self._embedded}
        if new:
            ids_N1 = torch.tensor([[token] for _, token in new], device=self.visual.full_VLE.device)
            embedded_NE = self.loaded.model.embed(ids_N1, self.visual, self._views(list(new.values())))[:, 0]
            self._embedded |= zip(new, embedded_NE, strict=True)
        return [self._embedded[key] for key in keys]

    def _embed_box(self, row: int, state_E: Tensor) -> Tensor | None:
        """Decode and note the box that a region token points at; return its embedding [E], None where it has none."""
        question = self.pending[row]
        question.boxes.append(self._point(question, state_E))
        regions = self._regions([question.boxes[-1][:2]])
        views_1K = self._views([row])
        vectors_1E = self.loaded.model.embed_regions(self.visual, views_1K, torch.zeros_like(views_1K[:, 0]), regions)
        return None if vectors_1E is None else vectors_1E[0].to(self.loaded.model.embeddings_VE.dtype)

    def _point(self, question: PendingAnswer, state_E: Tensor) -> PointedBox:
        """Decode what the region token that comes next points at."""
        model, device = self.loaded.model, state_E.device
        ids = question.before + question.unread + question.written.tokens.ids + question.answer
        ids_1T = torch.tensor([ids], device=device)
        is_text_1T = (ids_1T != self.loaded.prompts.region_id) & (ids_1T != SLOT)
        (phrase_E,) = model.point(state_E[None], ids_1T, is_text_1T)
        return self._match(torch.tensor(question.views, device=device), phrase_E)

    def answer(self, number: int, *, ground: bool = False, is_whole: bool = True) -> Answer:
        """Put an answer together, its boxes in pixels of their images; with `ground` also those of names in it.

        What the image does not show, by the model's `min_box_score`, has no box. Where that is all that the answer says
        of the image, its text is "not found".

        Args:
            is_whole: it has ended. The text of one that is being written is "" as long as it may become "not found".
        """
        question, prompts, tokenizer = self.pending[number], self.loaded.prompts, self.loaded.tokenizer
        if question.is_plain:
            tokens, text = len(question.answer), tokenizer.decode(question.answer)
            return Answer(text, tokens=tokens, finished=question.finished, read_as=question.read_as)
        # A region token that had no image to point at has no box and stays in the text.
        positions = [position for position, id in enumerate(question.answer) if id == prompts.region_id]
        pointed = {position: (position + 1, box) for position, box in zip(positions, question.boxes, strict=False)}
        if ground:
            pointed |= self._ground_names(question, occupied=pointed)
        pieces, corners, start = list[str | PixelBox](), list[PixelBox](), 0
        for position, (end, box) in sorted(pointed.items()):
            corners.append(to_pixels(box.corners, question.frames[box.image]))
            pieces += [tokenizer.decode(question.answer[start:position]), corners[-1]]
            start = end
        pieces.append(tokenizer.decode(question.answer[start:]))
        boxes = [box for _, (_, box) in sorted(pointed.items())]
        digits: tuple[PixelBox | None, ...] = ()
        if prompts.regions == "hybrid" and prompts.has_box_tokens and boxes:
            pieces, digits = split_digits(pieces, [question.frames[box.image] for box in boxes])
        visible = [self._is_visible(box) for box in boxes]
        text = join_text(reject_boxes(pieces, visible), write_corners)
        located = [(box.image, pixels) for box, pixels in zip(boxes, corners, strict=True)]
        # Coordinates in text do not say which of several images they are in.
        if not prompts.has_box_tokens and len(question.frames) == 1:
            text, read_boxes = read_coordinates(text, question.frames[0])
            located, visible = [(0, box) for box in read_boxes], [True] * len(read_boxes)
        # The phrase of a box does not depend on its corners.
        phrases, unboxed = pair_phrases(join_text(pieces, lambda _: "[0, 0, 0, 0]"))
        # Brackets that the model wrote itself may count as further boxes; phrases could then go to the wrong ones.
        phrases = phrases if len(phrases) == len(located) else ("",) * len(located)
        hidden = [not is_visible for is_visible in visible]
        rejected = [box.score for box in compress(boxes, hidden)]
        doubts = compress(sorted(pointed), hidden) if rejected else ()
        if visible and not visible[0] and says_yes(text) and not is_settled(join_text(pieces[:1], write_corners) + " "):
            # "Yes, a deer is at (not found)" is no answer, whatever else follows.
            rejected, visible = [box.score for box in boxes], [False] * len(located)
            text = NOT_FOUND if is_whole else ""
        elif self.loaded.min_box_score is not None and not any(visible):
            text, rejected = self._doubt(number, text, doubts, rejected, is_whole=is_whole)
        return Answer(
            text=text,
            boxes=tuple(compress((box for _, box in located), visible)),
            images=tuple(compress((image for image, _ in located), visible)),
            phrases=tuple(compress(phrases, visible)),
            unboxed=(*unboxed, *filter(None, compress(phrases, hidden))) if ground else (),
            tokens=len(question.answer),
            finished=question.finished,
            digits=tuple(compress(digits, visible)),
            box_scores=tuple(box.score for box in compress(boxes, visible)),
            rejected=tuple(rejected),
            read_as=question.read_as,
        )

    def _doubt(
        self, number: int, text: str, doubts: Iterable[int], rejected: list[float], *, is_whole: bool
    ) -> tuple[str, list[float]]:
        """Return the text of an answer without a box, "not found" in its place, and the scores of what was rejected.

        Args:
            doubts: positions of its tokens that point at what the image does not show. rejected: their scores.
            is_whole: see `answer`.
        """
        question, decode = self.pending[number], self.loaded.tokenizer.decode
        avoided = self.words.avoided.get(number) if self.words is not None else None

        def is_open(position: int) -> bool:
            # The blank that follows a stop may be that of the token itself.
            return not is_settled(f"{decode(question.answer[:position])} ")

        is_doubted = not says_no(text) and any(map(is_open, doubts))
        if not is_doubted and avoided is not None and is_open(avoided):
            # The model took the thing for none that it knows; the likeliest name that it does know may still be right.
            scores = self._score_names(question) if is_whole else []
            is_doubted = not any(map(self._passes, scores))
            rejected = [*rejected, *scores] if is_doubted else rejected
        if is_doubted:
            return (NOT_FOUND if is_whole else ""), rejected
        return (shorten_no(text) if is_whole or is_settled(decode(question.answer)) else ""), rejected

    @torch.inference_mode()
    def _score_names(self, question: PendingAnswer) -> list[float]:
        """Return how well the images match each name in an answer."""
        if self.loaded.model.box_head is None or not question.views:
            return []
        views_K = torch.tensor(question.views, device=self.visual.full_VLE.device)
        return [
            self._match(views_K, self._embed_name(question, start, end)).score
            for start, end in self._find_names(question.answer)
        ]

    def _find_names(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        """Return start and end of the names in an answer, of a vocabulary from elsewhere by the folder's list."""
        if self.loaded.name_ids:
            return find_runs(ids, self.loaded.name_ids)
        return find_sequences(ids, self.loaded.encoded_names)

    def _embed_name(self, question: PendingAnswer, start: int, end: int) -> Tensor:
        """Embed the name [E] of the tokens from `start` to `end`, as alignment compares it with patches."""
        model = self.loaded.model
        return (model.embeddings_VE[question.answer[start:end]] - model.center_E).mean(dim=0)

    @torch.inference_mode()
    def _ground_names(self, question: PendingAnswer, occupied: Collection[int]) -> dict[int, tuple[int, PointedBox]]:
        """Locate the names of an answer that no region token follows: position behind each -> (itself, box).

        The head reads the name's embedding where a region token would have it read the phrase that it attends to: no
        pass of the language model.
        """
        model, names = self.loaded.model, find_runs(question.answer, self.loaded.name_ids)
        if model.box_head is None or not question.views:
            return {}
        views_K = torch.tensor(question.views, device=self.visual.full_VLE.device)
        located: dict[int, tuple[int, PointedBox]] = {}
        for number, (start, end) in enumerate(names):
            next_start = names[number + 1][0] if number + 1 < len(names) else len(question.answer)
            if not any(end <= position < next_start for position in occupied):
                box = self._match(views_K, self._embed_name(question, start, end))
                # A name that the image does not show is left without a box, like any other text.
                if self._is_visible(box):
                    located[end] = (end, box)
        return located

    def _match(self, views_K: Tensor, phrase_E: Tensor) -> PointedBox:
        # A model with a box head has one view an image: its number is the image's.
        image, box_4, score = self.loaded.model.locate_among(self.visual, views_K, phrase_E)
        return PointedBox(image, open_box(box_4.tolist()), score)

    def _is_visible(self, box: PointedBox) -> bool:
        return self._passes(box.score)

    def _passes(self, score: float) -> bool:
        return self.loaded.min_box_score is None or score >= self.loaded.min_box_score

    def _views(self, rows: Sequence[int]) -> Tensor:
        """Return the numbers [B, K] of the views of rows, -1 behind the last where a row has fewer."""
        views = [self.pending[row].views for row in rows]
        longest = max(map(len, views), default=0)
        padded = [[*row, *[-1] * (longest - len(row))] for row in views]
        return torch.tensor(padded, dtype=torch.long, device=self.visual.full_VLE.device)

    def _layout(self, rows: Sequence[int]) -> ViewLayout:
        """Return the layout of the views of rows."""
        pending = [self.pending[row] for row in rows]
        created = ViewLayout.create([each.layout for each in pending], in_text=[each.in_text for each in pending])
        return created.to(self.visual.full_VLE.device)

    def _regions(self, regions: Sequence[tuple[int, Any]]) -> RegionPrompts:
        return RegionPrompts.create(regions).to(self.visual.full_VLE.device)


def limit_tokens(max_tokens: int, **sampling: Any) -> GenerationSettings:
    """Return the settings of an answer, greedy by default; raise UserError for a limit out of bounds.

    A loop ends the answer of a model of Foveate; those of transformers write as they do there.
    """
    values = {"max_new_tokens": max_tokens, "max_repeats": MAX_REPEATS, **sampling}
    return validate(GenerationSettings, values, where="max_tokens")
