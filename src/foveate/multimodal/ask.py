"""Ask a multimodal model: one question, many in batches, a conversation, an answer as a stream.

    model = foveate.open_mllm("runs/mini/model")
    model.ask("photo.jpg", "Where is the red apple?")  ->  Answer(text, boxes, ...)

Images are encoded once per call, and once per chat. Batches are padded so that an answer does not depend on the other
questions of its batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from foveate.core.errors import UserError
from foveate.language.packing import Tokens, pack_texts
from foveate.multimodal.folder import LoadedModel
from foveate.multimodal.model import RegionPrompts, Visual
from foveate.multimodal.prompts import Written
from foveate.records.boxes import Box, PixelBox
from foveate.records.conversations import IMAGE, REGION, Conversation, Turn
from foveate.records.geometry import Placement, View
from foveate.records.images import BadImage, ImageInput, decode_fraction, encode_input, is_single_image
from foveate.records.shapes import Shape
from foveate.vision.preprocess import DECODE_FACTOR, place_image, render_image

BATCH = 32
_QUESTION = "question"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered.

    Attributes:
        text: the answer; a box in it is written as its pixels, "[x1, y1, x2, y2]".
        boxes: of the answer in order, in pixels of the original image.
        images: the number of the image that each box lies in.
        tokens: generated tokens.
        finished: False if the answer was cut at `max_tokens`.

    Example:
        >>> answer = open_mllm("mini").ask(image_file, "Where is the red disc?")
        >>> len(answer.boxes) == len(answer.images)
        True
    """

    text: str
    boxes: tuple[PixelBox, ...] = ()
    images: tuple[int, ...] = ()
    tokens: int = 0
    finished: bool = True


class Question(NamedTuple):
    """Images, a question about them, and the regions of its `<region>` placeholders in pixels."""

    images: Sequence[ImageInput] | ImageInput
    text: str
    regions: Sequence[Shape] = ()


@dataclass
class _Pending:
    """One question while it is answered.

    Attributes:
        views: numbers of its views. placements: of its images.
        written: the tokens of the question. answer: generated ids.
        boxes: (image, box in [0, 1] of the model input) of the answer's region tokens.
    """

    views: list[int]
    placements: list[Placement]
    written: Written
    answer: list[int] = field(default_factory=list)
    boxes: list[tuple[int, list[float]]] = field(default_factory=list)
    finished: bool = False


class Mllm:
    """A multimodal model that can be asked. Use `foveate.open_mllm`.

    Attributes:
        loaded: model, prompts and tokenizer behind it.

    Example:
        >>> model = open_mllm("mini")
        >>> [answer.finished for answer in model.ask_all([(image_file, "What is in the image?")])]
        [True]
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded

    def __repr__(self) -> str:
        settings = self.loaded.model.settings
        return f"Mllm(tower={settings.tower['kind']!r}, language={settings.language.get('model_type')!r})"

    def ask(
        self,
        images: Sequence[ImageInput] | ImageInput,
        question: str,
        *,
        regions: Sequence[Shape] = (),
        max_tokens: int = 64,
    ) -> Answer:
        """Answer one question about one or several images.

        Args:
            images: a path, bytes or Pillow image, or several in the order in which the question means them; with none
                the model answers from the text alone.
            question: `<region>` in it stands for the next of `regions`.
            regions: boxes, points, strokes or masks, in pixels of the image.
            max_tokens: longest answer.

        Raises:
            UserError: an image cannot be read, a region lies outside, or the question is too long.
        """
        return self.ask_all([Question(images, question, regions)], max_tokens=max_tokens)[0]

    def ask_all(self, questions: Sequence[tuple[Any, ...]], *, max_tokens: int = 64) -> list[Answer]:
        """Answer `Question`s, or tuples of the same, in batches; see `ask`."""
        answers: list[Answer] = []
        for start in range(0, len(questions), BATCH):
            batch = [Question(*question) for question in questions[start : start + BATCH]]
            visual, pending = self._prepare(batch)
            for _ in _generate(self.loaded, visual, pending, max_tokens=max_tokens):
                pass
            answers += [self._answer(one) for one in pending]
        return answers

    def stream(
        self,
        images: Sequence[ImageInput] | ImageInput,
        question: str,
        *,
        regions: Sequence[Shape] = (),
        max_tokens: int = 64,
    ) -> Iterator[str]:
        """Yield the text of an answer as it is generated; joined, it is `ask(...).text`."""
        visual, pending = self._prepare([Question(images, question, regions)])
        shown = ""
        for _ in _generate(self.loaded, visual, pending, max_tokens=max_tokens):
            text = self._answer(pending[0]).text
            # A piece that ends inside a character of several bytes waits for the rest.
            if text.startswith(shown) and not text.endswith("\N{REPLACEMENT CHARACTER}"):
                yield text[len(shown) :]
                shown = text
        yield self._answer(pending[0]).text[len(shown) :]

    def chat(self, images: Sequence[ImageInput] | ImageInput) -> Chat:
        """Start a conversation about images, which are encoded once."""
        return Chat(self, images)

    @torch.inference_mode()
    def _see(self, images: Sequence[ImageInput]) -> tuple[Visual, list[Placement]]:
        """Encode images; return their visual tokens and their placements in the model input."""
        model = self.loaded.model
        preprocess = model.tower.preprocess
        pixels, placements = [], []
        for number, image in enumerate(images):
            try:
                decoded, size = decode_fraction(encode_input(image), min_side=DECODE_FACTOR * preprocess.long_side)
                placement = place_image(preprocess, size, View())
            except BadImage as problem:
                name = image if isinstance(image, str) else getattr(image, "name", f"image {number + 1}")
                raise UserError(f"{name}: cannot be read: {problem}") from problem
            pixels.append(render_image(preprocess, decoded, placement))
            placements.append(placement)
        device = model.visual_gain.device
        if not pixels:
            width, (rows, columns) = model.width, model.grid
            none = torch.zeros(0, rows * columns, width, device=device)
            return Visual(none, none[:, : model.connector.num_tokens]), []
        return model.see(torch.stack(pixels).to(device)), placements

    def _prepare(self, questions: Sequence[Question]) -> tuple[Visual, list[_Pending]]:
        lists = [_as_list(question.images) for question in questions]
        # An image that several questions are about is encoded once.
        distinct: dict[int, int] = {}
        unique: list[ImageInput] = []
        for image in (image for images in lists for image in images):
            if id(image) not in distinct:
                distinct[id(image)] = len(unique)
                unique.append(image)
        visual, placements = self._see(unique)
        pending: list[_Pending] = []
        for question, images in zip(questions, lists, strict=True):
            views = [distinct[id(image)] for image in images]
            of_views = [placements[view] for view in views]
            pending.append(self._pend(ask_turns(question.text, question.regions, images=len(views)), views, of_views))
        return visual, pending

    def _pend(self, turns: Sequence[Turn], views: list[int], placements: list[Placement]) -> _Pending:
        """Tokenize a conversation that ends with a question, and check that it fits."""
        model = self.loaded.model
        if len(views) > model.settings.max_images:
            raise UserError(
                f"images: too many for this model (got {len(views)}); expected at most {model.settings.max_images}"
            )
        conversation = Conversation(_QUESTION, tuple(str(view) for view in views), tuple(turns))
        written = self.loaded.prompts.write_question(conversation, placements)
        length = len(views) * model.connector.num_tokens + len(written.tokens.ids)
        if length >= model.max_positions:
            raise UserError(
                f"question: too long (got {length} positions, {length - len(written.tokens.ids)} of them visual); "
                f"expected fewer than {model.max_positions}"
            )
        return _Pending(views, placements, written)

    def _answer(self, pending: _Pending) -> Answer:
        """Put the text together, boxes in pixels of their image."""
        tokenizer = self.loaded.tokenizer
        pieces, start, boxes = [], 0, []
        region_id = self.loaded.prompts.region_id
        places = [number for number, id in enumerate(pending.answer) if id == region_id]
        for place, (image, corners) in zip(places, pending.boxes, strict=False):
            placement = pending.placements[image]
            box = Box.from_array(placement.to_original(np.array([corners]))[0], clipped=True)
            pixels = box.to_pixels(placement.width, placement.height)
            boxes.append((image, pixels))
            corners_text = ", ".join(str(round(edge)) for edge in (pixels.x1, pixels.y1, pixels.x2, pixels.y2))
            pieces.append(f"{tokenizer.decode(pending.answer[start:place])} [{corners_text}]")
            start = place + 1
        pieces.append(tokenizer.decode(pending.answer[start:]))
        return Answer(
            text="".join(pieces).strip(),
            boxes=tuple(box for _, box in boxes),
            images=tuple(image for image, _ in boxes),
            tokens=len(pending.answer),
            finished=pending.finished,
        )


class Chat:
    """A conversation about images, which are encoded once; `turns` holds what was asked and answered."""

    def __init__(self, model: Mllm, images: Sequence[ImageInput] | ImageInput) -> None:
        self.model = model
        self.visual, self.placements = model._see(_as_list(images))
        self.turns: list[Turn] = []

    def ask(self, question: str, *, regions: Sequence[Shape] = (), max_tokens: int = 64) -> Answer:
        """Answer the next question; earlier ones and their answers are in front of it."""
        images = 0 if self.turns else len(self.placements)
        asked = ask_turns(question, regions, images=images)
        views = list(range(len(self.placements)))
        pending = self.model._pend([*self.turns, *asked], views, self.placements)
        for _ in _generate(self.model.loaded, self.visual, [pending], max_tokens=max_tokens):
            pass
        answer = self.model._answer(pending)
        self.turns += [*asked, Turn("assistant", _with_placeholders(answer), answer.boxes)]
        return answer


def _with_placeholders(answer: Answer) -> str:
    text = answer.text
    for box in answer.boxes:
        corners = ", ".join(str(round(edge)) for edge in (box.x1, box.y1, box.x2, box.y2))
        text = text.replace(f"[{corners}]", REGION, 1)
    return text


def ask_turns(question: str, regions: Sequence[Shape], *, images: int) -> list[Turn]:
    """Return the turn of a question, with a placeholder for each image in front where it has none.

    Raises:
        UserError: the question is empty, or its placeholders do not fit images and regions.
    """
    text = question.strip()
    if not text:
        raise UserError("question: it is empty")
    if IMAGE not in text:
        text = IMAGE * images + ("\n" if images else "") + text
    for name, placeholder, count in (("images", IMAGE, images), ("regions", REGION, len(regions))):
        if text.count(placeholder) != count:
            raise UserError(f"question: has {text.count(placeholder)} {placeholder} (got {count} {name})")
    return [Turn("user", text, tuple(regions))]


def _as_list(images: Sequence[ImageInput] | ImageInput) -> list[ImageInput]:
    return [cast(ImageInput, images)] if is_single_image(images) else list(cast(Sequence[ImageInput], images))


@torch.inference_mode()
def _generate(loaded: LoadedModel, visual: Visual, pending: Sequence[_Pending], *, max_tokens: int) -> Iterator[None]:
    """Extend all answers greedily by one token per step; yield after each, until all are finished."""
    model, end, region_id = loaded.model, loaded.tokenizer.end, loaded.prompts.region_id
    device = visual.full_VLE.device
    # One column even where no question has an image.
    widest = max(1, *(len(one.views) for one in pending))
    views_BK = torch.full((len(pending), widest), -1, dtype=torch.long, device=device)
    for row, one in enumerate(pending):
        views_BK[row, : len(one.views)] = torch.tensor(one.views)
    for _ in range(max_tokens):
        open_rows = [row for row, one in enumerate(pending) if not one.finished]
        if not open_rows:
            return
        rows = [pending[row] for row in open_rows]
        ids = [one.written.tokens.ids + one.answer for one in rows]
        texts = pack_texts([[Tokens(of_row, [False] * len(of_row))] for of_row in ids], pad=loaded.tokenizer.pad)
        texts = type(texts)(*(column.to(device) for column in texts))
        listed = [region for one in rows for region in [*one.written.regions, *one.boxes]]
        regions = RegionPrompts(
            torch.tensor([list(box) for _, box in listed], dtype=torch.float32, device=device).view(-1, 4),
            torch.tensor([image for image, _ in listed], dtype=torch.long, device=device),
        )
        of_rows_BK = views_BK[open_rows]
        states_BTE = model.hidden_states(visual, of_rows_BK, texts, regions)
        last_B = torch.tensor([len(of_row) - 1 for of_row in ids], device=device)
        index_B = torch.arange(len(rows), device=device)
        states_BE = states_BTE[index_B, last_B]
        next_ids = model.logits(states_BE).argmax(dim=-1).tolist()
        pointing = [row for row, id in enumerate(next_ids) if id == region_id]
        # Without an image there is nothing to point at; the token stays in the text.
        pointing = [row for row in pointing if rows[row].views]
        if pointing and model.box_head is not None:
            _point(loaded, visual, of_rows_BK, texts.ids_BT, states_BE, last_B, rows, pointing)
        for one, id in zip(rows, next_ids, strict=True):
            if id == end:
                one.finished = True
            else:
                one.answer.append(id)
        yield


def _point(
    loaded: LoadedModel,
    visual: Visual,
    views_BK: Tensor,
    ids_BT: Tensor,
    states_BE: Tensor,
    last_B: Tensor,
    rows: Sequence[_Pending],
    pointing: Sequence[int],
) -> None:
    """Decode the boxes of rows whose next token is a region, and note them."""
    index_N = torch.tensor(pointing, device=ids_BT.device)
    ids_NT = ids_BT[index_N]
    readable_NT = torch.arange(ids_NT.shape[1], device=ids_NT.device) <= last_B[index_N, None]
    boxes_N4 = loaded.model.locate(
        visual,
        views_BK[index_N, 0],
        states_NE=states_BE[index_N],
        ids_NT=ids_NT,
        read_NT=readable_NT & (ids_NT != loaded.prompts.region_id),
    )
    for row, corners in zip(pointing, boxes_N4.float().tolist(), strict=True):
        x1, y1, x2, y2 = corners
        # A box without area could not be read back as a region: at least a hundredth of the input.
        rows[row].boxes.append((0, [x1, y1, max(x2, x1 + 0.01), max(y2, y1 + 0.01)]))
