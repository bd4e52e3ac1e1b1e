"""Ask a multimodal model: one question, many in batches, a conversation, an answer as a stream.

    model = foveate.open_mllm("runs/mini/model")
    model.ask("photo.jpg", "Where is the red apple?")  ->  Answer(text, boxes, ...)

Images are encoded once per call, and once per chat. Batches are padded so that an answer does not depend on the other
questions of its batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from foveate.core.errors import UserError
from foveate.core.recipes import validate
from foveate.language.generate import GenerationSettings, Prefix, generate, read_prefix, stream
from foveate.multimodal.assemble import SamplePlan
from foveate.multimodal.folder import LoadedModel
from foveate.multimodal.frames import CoordinateFrame, move_regions
from foveate.multimodal.model import RegionPrompts, ViewLayout, Visual, list_views
from foveate.multimodal.prompts import Written
from foveate.records.box_text import parse_regions
from foveate.records.boxes import Box, PixelBox
from foveate.records.conversations import IMAGE, REGION, Conversation, Turn, find_shape_problem, locate_regions
from foveate.records.geometry import View
from foveate.records.images import BadImage, ImageInput, decode, decode_fraction, encode_input, is_single_image
from foveate.records.rows import clean_text
from foveate.records.shapes import Shape
from foveate.vision.canvas import render_input
from foveate.vision.preprocess import DECODE_FACTOR, place_image, render_image
from foveate.vision.tiling import ImageSize, TilePlan, plan_tiles

BATCH = 32
# Views of one pass of the tower: a batch of questions about tiled images has hundreds.
_VIEWS = 32
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
        num_prompt_tokens: positions that were read: images and question.
        score: mean log-probability of the generated tokens.

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
    num_prompt_tokens: int = 0
    # The last bits of a logit depend on the padding of the batch.
    score: float = field(default=0.0, compare=False)


class Question(NamedTuple):
    """Images, a question about them, and the regions of its `<region>` placeholders in pixels."""

    images: Sequence[ImageInput] | ImageInput
    text: str
    regions: Sequence[Shape] = ()


class _Seen(NamedTuple):
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
class _Pending:
    """One question while it is answered.

    Attributes:
        views: numbers of its views. layout: image of each, and ids in front of it. frames: of its images.
        written: the tokens of the question. answer: generated ids.
        before: tokens of the conversation in front of the question.
        boxes: (image, box in [0, 1] of the model input) of the answer's region tokens.
    """

    views: list[int]
    layout: list[tuple[int, list[int]]]
    frames: list[CoordinateFrame]
    written: Written
    before: list[int] = field(default_factory=list)
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
        language = settings.language
        name = language.get("model_type") if isinstance(language, dict) else language.source
        return f"Mllm(tower={settings.tower['kind']!r}, language={name!r})"

    def describe(self) -> str:
        """Return the model's parts and parameters in words."""
        settings, model = self.loaded.model.settings, self.loaded.model
        millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        parts = (settings.tower["kind"], settings.connector["kind"], model.language_model.config.model_type)
        return f"{' + '.join(parts)}, {millions:,.1f} M parameters"

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
            regions: boxes, points, strokes or masks, in pixels of the image that stands last before each: the last one,
                unless `<image>` in the question says where the images stand.
            max_tokens: longest answer.

        Raises:
            UserError: an image cannot be read, a region lies outside, or the question is too long.
        """
        return self.ask_all([Question(images, question, regions)], max_tokens=max_tokens)[0]

    def ask_all(
        self,
        questions: Sequence[tuple[Any, ...]],
        *,
        max_tokens: int = 64,
        generation: Sequence[GenerationSettings] | None = None,
        ends_repeats: bool = False,
        batch: int = BATCH,
    ) -> list[Answer]:
        """Answer `Question`s, or tuples of the same, in batches; see `ask`.

        Args:
            generation: instead of `max_tokens`, how the answer to each question is generated.
            ends_repeats: an answer ends before it repeats one of its sentences.
            batch: maximum number of questions answered together.
        """
        answers: list[Answer] = []
        for start in range(0, len(questions), batch):
            part = [Question(*question) for question in questions[start : start + batch]]
            writer = _Writer(self.loaded, *self._prepare(part))
            completions = generate(
                self.loaded.model.language_model,
                [writer.prompt(number) for number in range(len(part))],
                stop=[self.loaded.prompts.chat.end],
                settings=_settings(max_tokens) if generation is None else generation[start : start + batch],
                suppress=writer.suppressed,
                sentence_ends=self._sentence_ends() if ends_repeats else (),
                embed=writer.embed,
                batch=batch,
            )
            for question, completion in zip(writer.pending, completions, strict=True):
                question.answer, question.finished = list(completion.ids), completion.finished
                answer = self._answer(question)
                answers.append(replace(answer, num_prompt_tokens=completion.num_prompt_tokens, score=completion.score))
        return answers

    def _sentence_ends(self) -> list[int]:
        ids = self.loaded.tokenizer.encode(".")
        # Where a stop is several tokens, none of them alone ends a sentence.
        return ids if len(ids) == 1 else []

    def stream(
        self,
        images: Sequence[ImageInput] | ImageInput,
        question: str,
        *,
        regions: Sequence[Shape] = (),
        max_tokens: int = 64,
    ) -> Iterator[str]:
        """Yield the text of an answer as it is generated; joined, it is `ask(...).text`."""
        writer = _Writer(self.loaded, *self._prepare([Question(images, question, regions)]))
        written = ""
        for _ in stream(
            self.loaded.model.language_model,
            writer.prompt(0),
            # The text with its boxes is put together below; a mark for each token makes each one a piece.
            decode=lambda ids: "." * len(ids),
            stop=[self.loaded.prompts.chat.end],
            settings=_settings(max_tokens),
            suppress=writer.suppressed,
            embed=writer.embed,
        ):
            text = self._answer(writer.pending[0]).text
            # A piece that ends inside a character of several bytes waits for the rest.
            if text.startswith(written) and not text.endswith("\N{REPLACEMENT CHARACTER}"):
                yield text[len(written) :]
                written = text
        yield self._answer(writer.pending[0]).text[len(written) :]

    def chat(self, images: Sequence[ImageInput] | ImageInput) -> Chat:
        """Start a conversation about images, which are encoded once."""
        return Chat(self, images)

    def plan(self, *sizes: tuple[int, int]) -> SamplePlan:
        """Plan the views of images from their (height, width) in pixels, before they are read.

        Example:
            >>> open_mllm("mini").plan((480, 640)).num_image_tokens
            49
        """
        return self.loaded.model.plan(*sizes)

    def _see(self, images: Sequence[ImageInput]) -> tuple[Visual, list[_Seen]]:
        """Encode the images of one sample."""
        self._check_number(images)
        split = len(images) <= self.loaded.model.assembly.max_split_images
        return self._encode([(image, split) for image in images])

    def _check_number(self, images: Sequence[ImageInput]) -> None:
        max_images = self.loaded.model.settings.max_images
        if len(images) > max_images:
            raise UserError(f"images: too many for this model (got {len(images)}); expected at most {max_images}")

    @torch.inference_mode()
    def _encode(self, images: Sequence[tuple[ImageInput, bool]]) -> tuple[Visual, list[_Seen]]:
        """Encode images; return their visual tokens, and which are whose."""
        model = self.loaded.model
        views: list[Tensor] = []
        seen: list[_Seen] = []
        for number, (image, split) in enumerate(images):
            try:
                pixels_V3HW, frame, plan = self._render(image, split=split)
            except BadImage as problem:
                name = image if isinstance(image, str) else getattr(image, "name", f"image {number + 1}")
                raise UserError(f"{name}: cannot be read: {problem}") from problem
            seen.append(_Seen(list(range(len(views), len(views) + len(pixels_V3HW))), frame, plan))
            views += list(pixels_V3HW)
        device = model.visual_gain.device
        if not views:
            width, (rows, columns) = model.width, model.grid
            none = torch.zeros(0, rows * columns, width, device=device)
            return Visual(none, none[:, : model.connector.num_tokens]), []
        parts = [model.see(part.to(device)) for part in torch.stack(views).split(_VIEWS)]
        return Visual(*(torch.cat(columns) for columns in zip(*parts, strict=True))), seen

    def _render(self, image: ImageInput, *, split: bool) -> tuple[Tensor, CoordinateFrame, TilePlan | None]:
        """Render the views of an image as uint8 [views, 3, height, width]."""
        model = self.loaded.model
        data, preprocess, assembly = encode_input(image), model.tower.preprocess, model.settings.assembly
        if assembly is None:
            decoded, size = decode_fraction(data, min_side=DECODE_FACTOR * preprocess.long_side)
            placement = place_image(preprocess, size, View())
            return render_image(preprocess, decoded, placement)[None], CoordinateFrame(placement), None
        decoded = decode(data)
        plan = plan_tiles(ImageSize(decoded.height, decoded.width), assembly.tiling, split=split)
        frame = CoordinateFrame.create(plan, model.settings.frame)
        return render_input(preprocess, decoded, plan), frame, plan

    def _prepare(self, questions: Sequence[Question]) -> tuple[Visual, list[_Pending]]:
        lists = [_as_list(question.images) for question in questions]
        # An image that several questions are about is encoded once, unless it is split in some only.
        distinct: dict[tuple[int, bool], int] = {}
        unique: list[tuple[ImageInput, bool]] = []
        keys: list[list[tuple[int, bool]]] = []
        for images in lists:
            self._check_number(images)
            split = len(images) <= self.loaded.model.assembly.max_split_images
            keys.append([(id(image), split) for image in images])
            for image, key in zip(images, keys[-1], strict=True):
                if key not in distinct:
                    distinct[key] = len(unique)
                    unique.append((image, split))
        visual, seen = self._encode(unique)
        pending: list[_Pending] = []
        for question, of_question in zip(questions, keys, strict=True):
            turns = ask_turns(question.text, question.regions, images=len(of_question))
            pending.append(self._pend(turns, [seen[distinct[key]] for key in of_question]))
        return visual, pending

    def _pend(self, turns: Sequence[Turn], images: Sequence[_Seen], *, read: int = 0) -> _Pending:
        """Tokenize a question and check that it fits behind the `read` positions of its images and earlier turns."""
        model, prompts = self.loaded.model, self.loaded.prompts
        views = [view for image in images for view in image.views]
        layout: list[tuple[int, list[int]]] = [(number, []) for number in range(len(views))]
        plans = tuple(image.plan for image in images if image.plan is not None)
        if plans:
            layout = list_views(SamplePlan(plans, model.assembly), prompts.tokenizer.encode)
        frames = [image.frame for image in images]
        conversation = Conversation(_QUESTION, tuple(str(number) for number in range(len(images))), tuple(turns))
        placements = [frame.placement for frame in frames]
        check_regions(conversation, [image.size for image in images])
        written = prompts.write_question(move_regions(conversation, frames), placements, goes_on=bool(read))
        before = read or len(views) * model.connector.num_tokens + sum(len(ids) for _, ids in layout)
        length = before + len(written.tokens.ids)
        if length >= model.max_positions:
            raise UserError(
                f"question: too long (got {length} positions, {before} of them images or earlier turns); expected "
                f"fewer than {model.max_positions}"
            )
        return _Pending(views, layout, frames, written)

    def _answer(self, pending: _Pending) -> Answer:
        """Put the text together, boxes in pixels of their image."""
        tokenizer = self.loaded.tokenizer
        pieces, start, boxes = [], 0, []
        region_id = self.loaded.prompts.region_id
        positions = [number for number, id in enumerate(pending.answer) if id == region_id]
        for position, (image, corners) in zip(positions, pending.boxes, strict=False):
            placement = pending.frames[image].placement
            low_2, high_2 = np.split(placement.to_original(np.array([corners]))[0], 2)
            # A box on the padding is empty and at the edge of the image: a pixel of it at least.
            pixel_2 = 1 / np.array([placement.width, placement.height])
            low_2 = np.minimum(low_2, 1 - pixel_2)
            box = Box.from_array(np.concatenate([low_2, np.maximum(high_2, low_2 + pixel_2)]), clipped=True)
            pixels = box.to_pixels(placement.width, placement.height)
            boxes.append((image, pixels))
            pieces.append(f"{tokenizer.decode(pending.answer[start:position])} {_write_corners(pixels)}")
            start = position + 1
        pieces.append(tokenizer.decode(pending.answer[start:]))
        text = "".join(pieces).strip()
        # Coordinates in text do not say which of several images they are in.
        if self.loaded.prompts.regions == "text" and len(pending.frames) == 1:
            text, read_boxes = _read_coordinates(text, pending.frames[0])
            boxes = [(0, box) for box in read_boxes]
        return Answer(
            text=text,
            boxes=tuple(box for _, box in boxes),
            images=tuple(image for image, _ in boxes),
            tokens=len(pending.answer),
            finished=pending.finished,
        )


class Chat:
    """A conversation about images; what was read, images and earlier turns, is never read again.

    Attributes:
        turns: what was asked and answered.
    """

    def __init__(self, model: Mllm, images: Sequence[ImageInput] | ImageInput) -> None:
        self.model = model
        self.visual, self.images = model._see(_as_list(images))
        self.turns: list[Turn] = []
        self._ids: list[int] = []
        self._prefix: Prefix | None = None
        self._length = 0

    def ask(self, question: str, *, regions: Sequence[Shape] = (), max_tokens: int = 64) -> Answer:
        """Answer the next question; earlier ones and their answers are in front of it.

        Raises:
            UserError: as `Mllm.ask`; the conversation then stays as it was.
        """
        loaded = self.model.loaded
        new_turns = ask_turns(question, regions, images=0 if self.turns else len(self.images))
        pending = self.model._pend(new_turns, self.images, read=self._length)
        pending.before = self._ids
        writer = _Writer(loaded, self.visual, [pending])
        prompt_LE = writer.prompt(0, images=self._prefix is None)
        (completion,) = generate(
            loaded.model.language_model,
            [prompt_LE],
            stop=[loaded.prompts.chat.end],
            settings=_settings(max_tokens),
            suppress=writer.suppressed,
            prefix=self._prefix,
            embed=writer.embed,
        )
        pending.finished = completion.finished
        answer = self.model._answer(pending)
        self._read(writer, prompt_LE)
        self.turns += [*new_turns, Turn("assistant", _with_placeholders(answer), answer.boxes)]
        return answer

    @torch.inference_mode()
    def _read(self, writer: _Writer, prompt_LE: Tensor) -> None:
        """Keep the question and its answer as read, the end mark included where the answer was cut."""
        loaded, (pending,) = self.model.loaded, writer.pending
        answer = [*pending.answer, loaded.prompts.chat.end]
        views_1K = writer._views([0])
        ids_1T = torch.tensor([answer], device=views_1K.device)
        # A region token that found no image has no box; then all tokens are read as they are.
        has_boxes = answer.count(loaded.prompts.region_id) == len(pending.boxes)
        regions = writer._regions(pending.boxes) if has_boxes else None
        answer_TE = loaded.model.embed(ids_1T, self.visual, views_1K, regions)[0]
        turn_LE = torch.cat([prompt_LE, answer_TE])
        # An answer that fills the context is still an answer; the next question is refused.
        if self._length + len(turn_LE) < loaded.model.max_positions:
            self._prefix = read_prefix(loaded.model.language_model, turn_LE, prefix=self._prefix)
        self._length += len(turn_LE)
        self._ids = [*self._ids, *pending.written.tokens.ids, *answer]


def _read_coordinates(text: str, frame: CoordinateFrame) -> tuple[str, list[PixelBox]]:
    """Return an answer with its boxes of 0..999 written in pixels of the image, and these boxes."""
    placement = frame.placement
    pieces, start, boxes = [], 0, []
    for parsed in parse_regions(text, width=placement.width, height=placement.height).regions:
        if isinstance(parsed.region, PixelBox):
            boxes.append(frame.to_image(parsed.region))
            pieces += [text[start : parsed.start], _write_corners(boxes[-1])]
            start = parsed.end
    return "".join([*pieces, text[start:]]), boxes


def _write_corners(box: PixelBox) -> str:
    return f"[{', '.join(str(round(edge)) for edge in (box.x1, box.y1, box.x2, box.y2))}]"


def _with_placeholders(answer: Answer) -> str:
    text = answer.text
    for box in answer.boxes:
        text = text.replace(_write_corners(box), REGION, 1)
    return text


def ask_turns(question: str, regions: Sequence[Shape], *, images: int) -> list[Turn]:
    """Return the turn of a question, with a placeholder for each image in front where it has none.

    Raises:
        UserError: the question is empty, or its placeholders do not fit images and regions.
    """
    text = clean_text(question)
    if not text:
        raise UserError("question: it is empty")
    if IMAGE not in text:
        text = IMAGE * images + ("\n" if images else "") + text
    for name, placeholder, count in (("images", IMAGE, images), ("regions", REGION, len(regions))):
        if text.count(placeholder) != count:
            raise UserError(f"question: has {text.count(placeholder)} {placeholder} (got {count} {name})")
    return [Turn("user", text, tuple(regions))]


def check_regions(conversation: Conversation, sizes: Sequence[tuple[int, int]]) -> None:
    """Raise UserError for a region without an image, or one that does not lie in its image.

    Args:
        sizes: width and height in pixels of the images, in order.
    """
    for turn, images in zip(conversation.turns, locate_regions(conversation), strict=True):
        for shape, image in zip(turn.regions, images, strict=True):
            if not sizes:
                raise UserError(f"region {str(shape)[:80]}: it has no image (got 0 images)")
            width, height = sizes[image]
            problem = find_shape_problem(shape, width=width, height=height)
            if problem:
                raise UserError(
                    f"region {str(shape)[:80]}: {problem}; expected pixels of an image of {width} x {height}"
                )


def _settings(max_tokens: int) -> GenerationSettings:
    return validate(GenerationSettings, {"max_new_tokens": max_tokens}, where="max_tokens")


def _as_list(images: Sequence[ImageInput] | ImageInput) -> list[ImageInput]:
    return [cast(ImageInput, images)] if is_single_image(images) else list(cast(Sequence[ImageInput], images))


class _Writer:
    """What `language.generate` needs of a batch: embeddings of its prompts, and of the tokens just written."""

    def __init__(self, loaded: LoadedModel, visual: Visual, pending: Sequence[_Pending]) -> None:
        self.loaded, self.visual, self.pending = loaded, visual, pending
        prompts, special = loaded.prompts, loaded.tokenizer.special
        # Answers hold text, regions and the end; nothing else may be written.
        self.suppressed = [id for id in special.values() if id not in (prompts.chat.end, prompts.region_id)]

    @torch.inference_mode()
    def prompt(self, number: int, *, images: bool = True) -> Tensor:
        """Embed the images and the question of one row: [L, E]."""
        model, question = self.loaded.model, self.pending[number]
        views_1K = self._views([number])
        ids_1T = torch.tensor([question.written.tokens.ids], device=views_1K.device)
        text_TE = model.embed(ids_1T, self.visual, views_1K, self._regions(question.written.regions))[0]
        if not images:
            return text_TE
        layout = ViewLayout(*(column.to(views_1K.device) for column in ViewLayout.create([question.layout])))
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
                question.boxes.append((0, self._point(question, states_BE[number])))
                regions = self._regions(question.boxes[-1:])
                ids_11 = ids_B1[number : number + 1]
                embedded_BE[number] = model.embed(ids_11, self.visual, self._views([row]), regions)[0, 0]
            if token != end:
                question.answer.append(token)
        return embedded_BE

    def _point(self, question: _Pending, state_E: Tensor) -> list[float]:
        """Decode the box [x1, y1, x2, y2] of the region token that comes next."""
        ids_1T = torch.tensor([question.before + question.written.tokens.ids + question.answer], device=state_E.device)
        box_4 = self.loaded.model.locate(
            self.visual,
            torch.tensor(question.views[:1], device=state_E.device),
            states_NE=state_E[None],
            ids_NT=ids_1T,
            read_NT=ids_1T != self.loaded.prompts.region_id,
        )[0]
        x1, y1, x2, y2 = box_4.float().tolist()
        # A box without area, or beyond the far edge, covers no patch and could not be read back as a region: at least a
        # hundredth of the input.
        x1, y1 = min(x1, 0.99), min(y1, 0.99)
        return [x1, y1, max(x2, x1 + 0.01), max(y2, y1 + 0.01)]

    def _views(self, rows: Sequence[int]) -> Tensor:
        """Return the numbers [B, K] of the views of rows, -1 behind the last where a row has fewer."""
        views = [self.pending[row].views for row in rows]
        longest = max(map(len, views), default=0)
        padded = [[*row, *[-1] * (longest - len(row))] for row in views]
        return torch.tensor(padded, dtype=torch.long, device=self.visual.full_VLE.device)

    def _regions(self, regions: Sequence[tuple[int, Any]]) -> RegionPrompts:
        device = self.visual.full_VLE.device
        return RegionPrompts(
            torch.tensor([list(box) for _, box in regions], dtype=torch.float32, device=device).view(-1, 4),
            torch.tensor([image for image, _ in regions], dtype=torch.long, device=device),
        )
