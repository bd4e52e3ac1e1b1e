"""Ask a multimodal model: one question, many in batches, a conversation, an answer as a stream.

    model = foveate.open_mllm("runs/mini/model")
    model.ask("photo.jpg", "Where is the red apple?")  ->  Answer(text, boxes, ...)

Images are encoded once per call, and once per chat. Batches are padded so that an answer does not depend on the other
questions of its batch.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from foveate.core.errors import UserError
from foveate.core.recipes import validate
from foveate.language.generate import GenerationSettings, Prefix, extend, generate, stream
from foveate.multimodal.answer_writer import AnswerWriter, EncodedImage, PendingAnswer
from foveate.multimodal.answers import (
    Answer,
    find_runs,
    join_text,
    open_box,
    pair_phrases,
    read_coordinates,
    split_digits,
    to_pixels,
    with_placeholders,
    write_corners,
)
from foveate.multimodal.assemble import SamplePlan
from foveate.multimodal.choose import OptionRow, check_options, score_options, to_probabilities
from foveate.multimodal.folder import LoadedModel
from foveate.multimodal.frames import CoordinateFrame, move_regions
from foveate.multimodal.model import Visual, list_views
from foveate.multimodal.prompts import image_slots
from foveate.multimodal.questions import ask_turns, ask_where, check_regions
from foveate.records.boxes import PixelBox
from foveate.records.conversations import Conversation, Turn
from foveate.records.geometry import View
from foveate.records.images import BadImage, ImageInput, decode, decode_fraction, encode_input, is_single_image
from foveate.records.region_prompts import GROUNDING_REQUEST
from foveate.records.shapes import Shape
from foveate.vision.canvas import render_input
from foveate.vision.preprocess import DECODE_FACTOR, place_image, render_image
from foveate.vision.tiling import OVERVIEW, ImageSize, TilePlan, plan_tiles

BATCH = 32
# Views of one pass of the tower: a batch of questions about tiled images has hundreds.
_VIEWS = 32
_QUESTION = "question"


class Question(NamedTuple):
    """Images, a question about them, and the regions of its `<region>` placeholders in pixels."""

    images: Sequence[ImageInput] | ImageInput
    text: str
    regions: Sequence[Shape] = ()


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
        ground: bool = False,
        max_tokens: int = 64,
    ) -> Answer:
        """Answer one question about one or several images.

        Args:
            images: a path, bytes or Pillow image, or several in the order in which the question means them; with none
                the model answers from the text alone.
            question: `<1>`, `<2>` in it are the first and second of `regions`.
            regions: boxes, points, strokes or masks, in pixels of the image that stands last before each: the last one,
                unless `<image>` in the question says where the images stand. A model without a sampler of masks reads
                the box around a stroke or mask.
            ground: ask for the boxes of all things that the answer mentions. A model whose names are tokens locates
                each name of its answer; any other is told so behind the question.
            max_tokens: longest answer.

        Raises:
            UserError: an image cannot be read, a region lies outside, or the question is too long.
        """
        return self.ask_all([Question(images, question, regions)], ground=ground, max_tokens=max_tokens)[0]

    def ask_all(
        self,
        questions: Sequence[tuple[Any, ...]],
        *,
        ground: bool = False,
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
            part = [self._request(Question(*question), ground) for question in questions[start : start + batch]]
            writer = AnswerWriter(self.loaded, *self._prepare(part))
            completions = generate(
                self.loaded.model.language_model,
                [writer.prompt(number) for number in range(len(part))],
                stop=[self.loaded.prompts.chat.end],
                settings=_settings(max_tokens) if generation is None else generation[start : start + batch],
                suppress=writer.suppressed,
                sentence_ends=self._sentence_ends() if ends_repeats else (),
                decode=self.loaded.tokenizer.decode,
                embed=writer.embed,
                batch=batch,
            )
            for question, completion in zip(writer.pending, completions, strict=True):
                question.answer, question.finished = list(completion.ids), completion.finished
                answer = self._answer(question, ground=ground, visual=writer.visual)
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
    ) -> Generator[str, None, Answer]:
        """Yield the text of an answer as it is generated; joined, it is `ask(...).text`. Return the answer."""
        writer = AnswerWriter(self.loaded, *self._prepare([Question(images, question, regions)]))
        written = ""
        pieces = stream(
            self.loaded.model.language_model,
            writer.prompt(0),
            # The text with its boxes is put together below; a mark for each token makes each one a piece.
            decode=lambda ids: "." * len(ids),
            stop=[self.loaded.prompts.chat.end],
            settings=_settings(max_tokens),
            suppress=writer.suppressed,
            embed=writer.embed,
        )
        for _ in pieces:
            text = self._answer(writer.pending[0]).text
            # A piece that ends inside a character of several bytes waits for the rest.
            if text.startswith(written) and not text.endswith("\N{REPLACEMENT CHARACTER}"):
                yield text[len(written) :]
                written = text
        writer.pending[0].finished = len(writer.pending[0].answer) < len(writer.written)
        answer = self._answer(writer.pending[0])
        yield answer.text[len(written) :]
        return answer

    def locate(self, image: ImageInput, phrase: str) -> Answer:
        """Ask where a thing is, in the words of training; the boxes of the answer are where.

        Raises:
            UserError: as `ask`; or the phrase is empty.
        """
        return self.ask(image, ask_where(phrase), ground=not self.loaded.name_ids)

    def _request(self, question: Question, ground: bool) -> Question:
        """Ask for boxes in words, where the names of an answer are not located afterwards."""
        if not ground or self.loaded.name_ids:
            return question
        return question._replace(text=f"{question.text} {GROUNDING_REQUEST}")

    def choose(
        self,
        images: Sequence[ImageInput] | ImageInput,
        question: str,
        options: Sequence[str],
        *,
        regions: Sequence[Shape] = (),
        per_token: bool = False,
    ) -> tuple[float, ...]:
        """Return the probability of each option: its likelihood as the answer, among all of them.

        Args:
            options: whole answers, in the form that the question asks for. The mark that ends an answer counts, so that
                an option which begins another one is not favored.
            per_token: compare the mean log-likelihood of tokens instead of the sum, which favors short options.

        Raises:
            UserError: as `ask`; or there are fewer than two different options.

        Example:
            >>> yes, no = open_mllm("mini").choose(image_file, "Is there a red disc?", ["yes", "no"])
            >>> round(yes + no, 6)
            1.0
        """
        return self.choose_all([Question(images, question, regions)], [options], per_token=per_token)[0]

    def choose_all(
        self, questions: Sequence[tuple[Any, ...]], options: Sequence[Sequence[str]], *, per_token: bool = False
    ) -> list[tuple[float, ...]]:
        """Return the probabilities of the options of each question, in batches; see `choose`."""
        probabilities: list[tuple[float, ...]] = []
        for start in range(0, len(questions), BATCH):
            visual, pending = self._prepare([Question(*question) for question in questions[start : start + BATCH]])
            rows = []
            for question, texts in zip(pending, options[start : start + BATCH], strict=True):
                ids = [self.loaded.prompts.write_answer(text) for text in check_options(texts)]
                self._check_length(question, more=max(map(len, ids)))
                rows.append(OptionRow(question.views, question.layout, question.written, ids, question.in_text))
            scores = score_options(self.loaded, visual, rows)
            probabilities += [to_probabilities(logs, per_token=per_token) for logs in scores]
        return probabilities

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

    def _see(self, images: Sequence[ImageInput]) -> tuple[Visual, list[EncodedImage]]:
        """Encode the images of one sample."""
        self._check_number(images)
        split = len(images) <= self.loaded.model.assembly.max_split_images
        return self._encode([(image, split) for image in images])

    def _check_number(self, images: Sequence[ImageInput]) -> None:
        max_images = self.loaded.model.settings.max_images
        if len(images) > max_images:
            raise UserError(f"images: too many for this model (got {len(images)}); expected at most {max_images}")

    @torch.inference_mode()
    def _encode(self, images: Sequence[tuple[ImageInput, bool]]) -> tuple[Visual, list[EncodedImage]]:
        """Encode images; return their visual tokens, and which are whose."""
        model = self.loaded.model
        views: list[Tensor] = []
        seen: list[EncodedImage] = []
        for number, (image, split) in enumerate(images):
            try:
                pixels_V3HW, frame, plan = self._render(image, split=split)
            except BadImage as problem:
                name = image if isinstance(image, str) else getattr(image, "name", f"image {number + 1}")
                raise UserError(f"{name}: cannot be read: {problem}") from problem
            seen.append(EncodedImage(list(range(len(views), len(views) + len(pixels_V3HW))), frame, plan))
            views += list(pixels_V3HW)
        device = model.visual_gain.device
        if not views:
            # A question without images goes the same way, behind no visual tokens.
            width, (rows, columns) = model.width, model.grid
            none = torch.zeros(0, rows * columns, width, device=device)
            return Visual(none, none[:, : model.connector.num_tokens], none), []
        cells = [cell for image in seen for cell in (image.plan.views if image.plan else [OVERVIEW])]
        cell_V2 = torch.tensor(cells, device=device)
        blocks = zip(torch.stack(views).split(_VIEWS), cell_V2.split(_VIEWS), strict=True)
        parts = [model.encode_views(part.to(device), of_part) for part, of_part in blocks]
        visual = Visual(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
        return model.order_views(visual, cell_V2), seen

    def _render(self, image: ImageInput, *, split: bool) -> tuple[Tensor, CoordinateFrame, TilePlan | None]:
        """Render the views of an image as uint8 [views, 3, height, width]."""
        model = self.loaded.model
        data, preprocess, assembly = encode_input(image), model.tower.preprocess, model.settings.assembly
        if assembly is None:
            # One view shrinks the image anyway: a JPEG is decoded at a fraction. Tiles read every pixel.
            decoded, size = decode_fraction(data, min_side=DECODE_FACTOR * preprocess.long_side)
            placement = place_image(preprocess, size, View())
            return render_image(preprocess, decoded, placement)[None], CoordinateFrame(placement), None
        decoded = decode(data)
        plan = plan_tiles(ImageSize(decoded.height, decoded.width), assembly.tiling, split=split)
        frame = CoordinateFrame.create(plan, model.settings.frame)
        return render_input(preprocess, decoded, plan), frame, plan

    def _prepare(self, questions: Sequence[Question]) -> tuple[Visual, list[PendingAnswer]]:
        lists = [_as_list(question.images) for question in questions]
        # An image that several questions are about is encoded once, unless it is split in some only.
        distinct: dict[tuple[int, bool], int] = {}
        unique: list[tuple[ImageInput, bool]] = []
        keys: list[list[tuple[int, bool]]] = []
        for images in lists:
            self._check_number(images)
            split = len(images) <= self.loaded.model.assembly.max_split_images
            # By identity: arrays and Pillow images have no hash.
            keys.append([(id(image), split) for image in images])
            for image, key in zip(images, keys[-1], strict=True):
                if key not in distinct:
                    distinct[key] = len(unique)
                    unique.append((image, split))
        visual, seen = self._encode(unique)
        pending: list[PendingAnswer] = []
        for question, of_question in zip(questions, keys, strict=True):
            turns = ask_turns(question.text, question.regions, images=len(of_question))
            pending.append(self._pend(turns, [seen[distinct[key]] for key in of_question], numbered=question.regions))
        return visual, pending

    def _pend(
        self, turns: Sequence[Turn], images: Sequence[EncodedImage], *, numbered: Sequence[Shape], read: int = 0
    ) -> PendingAnswer:
        """Tokenize a question and check that it fits behind the `read` positions of its images and earlier turns.

        Args:
            numbered: its regions in the order of their numbers.
        """
        model, prompts = self.loaded.model, self.loaded.prompts
        views = [view for image in images for view in image.views]
        layout: list[tuple[int, list[int]]] = [(number, []) for number in range(len(views))]
        plans = tuple(image.plan for image in images if image.plan is not None)
        if plans:
            layout = list_views(SamplePlan(plans, model.assembly), prompts.tokenizer.encode)
        frames = [image.frame for image in images]
        conversation = Conversation(_QUESTION, tuple(str(number) for number in range(len(images))), tuple(turns))
        placements = [frame.placement for frame in frames]
        check_regions(conversation, [image.size for image in images], numbered)
        in_text = not prompts.lead_images(turns)
        written = prompts.write_question(
            move_regions(conversation, frames),
            placements,
            images=image_slots(layout, model.connector.num_tokens) if in_text else None,
            goes_on=bool(read),
        )
        pending = PendingAnswer(views, layout, frames, written, in_text)
        self._check_length(pending, read=read)
        return pending

    def _check_length(self, pending: PendingAnswer, *, read: int = 0, more: int = 0) -> None:
        """Raise UserError if a question, and `more` tokens of its answer, do not fit; nothing is ever cut."""
        model = self.loaded.model
        images = len(pending.views) * model.connector.num_tokens + sum(len(ids) for _, ids in pending.layout)
        before = read or (0 if pending.in_text else images)
        length = before + len(pending.written.tokens.ids) + more
        # A question needs room for a token of its answer; options bring theirs along.
        if length >= model.max_positions + (more > 0):
            raise UserError(
                f"question: too long (got {length} positions, {before} of them images or earlier turns); expected "
                f"fewer than {model.max_positions}"
            )

    def _answer(self, pending: PendingAnswer, *, ground: bool = False, visual: Visual | None = None) -> Answer:
        """Put the text together, boxes in pixels of their image; with `ground` also those of names in it."""
        tokenizer, region_id = self.loaded.tokenizer, self.loaded.prompts.region_id
        # A region token that had no image to point at has no box and stays in the text.
        at_boxes = {
            position: (position + 1, *box)
            for position, box in zip(
                (number for number, id in enumerate(pending.answer) if id == region_id), pending.boxes, strict=False
            )
        }
        if ground and visual is not None:
            at_boxes |= self._ground_names(pending, visual, occupied=at_boxes)
        pieces, start, boxes = [], 0, []
        for position, (end, image, corners) in sorted(at_boxes.items()):
            boxes.append((image, to_pixels(corners, pending.frames[image])))
            pieces += [tokenizer.decode(pending.answer[start:position]), boxes[-1][1]]
            start = end
        pieces.append(tokenizer.decode(pending.answer[start:]))
        writes_digits = self.loaded.prompts.regions == "hybrid" and self.loaded.prompts.has_box_tokens
        digits: tuple[PixelBox | None, ...] = ()
        if writes_digits and boxes:
            pieces, digits = split_digits(pieces, [pending.frames[image] for image, _ in boxes])
        text = join_text(pieces, write_corners)
        # The phrase of a box does not depend on its corners.
        unparsed = join_text(pieces, lambda _: "[0, 0, 0, 0]")
        # Coordinates in text do not say which of several images they are in.
        if not self.loaded.prompts.has_box_tokens and len(pending.frames) == 1:
            text, read_boxes = read_coordinates(text, pending.frames[0])
            boxes = [(0, box) for box in read_boxes]
        phrases, unboxed = pair_phrases(unparsed)
        return Answer(
            text=text,
            boxes=tuple(box for _, box in boxes),
            digits=digits,
            images=tuple(image for image, _ in boxes),
            phrases=phrases if len(phrases) == len(boxes) else ("",) * len(boxes),
            unboxed=unboxed if ground else (),
            tokens=len(pending.answer),
            finished=pending.finished,
        )

    @torch.inference_mode()
    def _ground_names(
        self, pending: PendingAnswer, visual: Visual, *, occupied: Collection[int]
    ) -> dict[int, tuple[int, int, list[float]]]:
        """Locate the names of an answer that no region token follows: position behind each -> (itself, image, box).

        The head reads the name's embedding where a region token would have it read the phrase that it attends to: no
        pass of the language model.
        """
        model, names = self.loaded.model, find_runs(pending.answer, self.loaded.name_ids)
        if model.box_head is None or not pending.views:
            return {}
        views_K = torch.tensor(pending.views, device=visual.full_VLE.device)
        located: dict[int, tuple[int, int, list[float]]] = {}
        for number, (start, end) in enumerate(names):
            next_start = names[number + 1][0] if number + 1 < len(names) else len(pending.answer)
            if not any(end <= position < next_start for position in occupied):
                phrase_E = (model.embeddings_VE[pending.answer[start:end]] - model.center_E).mean(dim=0)
                image, box_4 = model.locate_among(visual, views_K, phrase_E)
                located[end] = (end, image, open_box(box_4.tolist()))
        return located


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
        # The end mark of an answer that was cut: the next question follows one, as in training.
        self._unread: list[int] = []
        # Embeddings of all turns, the images included; `_prefix` has read the first of them.
        self._history_LE: Tensor | None = None
        self._prefix: Prefix | None = None

    def ask(
        self, question: str, *, regions: Sequence[Shape] = (), ground: bool = False, max_tokens: int = 64
    ) -> Answer:
        """Answer the next question; earlier ones and their answers are in front of it. Arguments: see `Mllm.ask`.

        Raises:
            UserError: as `Mllm.ask`; the conversation then stays as it was.
        """
        loaded, end = self.model.loaded, self.model.loaded.prompts.chat.end
        question = self.model._request(Question((), question), ground).text
        new_turns = ask_turns(question, regions, images=0 if self.turns else len(self.images))
        length = 0 if self._history_LE is None else len(self._history_LE)
        pending = self.model._pend(new_turns, self.images, numbered=regions, read=length and length + len(self._unread))
        pending.before, pending.unread = self._ids, self._unread
        writer = AnswerWriter(loaded, self.visual, [pending])
        history_LE = writer.prompt(0, images=not length)
        if self._history_LE is not None:
            history_LE = torch.cat([self._history_LE, history_LE])
        settings = _settings(max_tokens)
        # An answer that is interrupted leaves its keys and values in the prefix: without one, all is read once more.
        prefix, self._prefix = self._prefix, None
        completion, read = extend(
            loaded.model.language_model,
            history_LE[prefix.length if prefix else 0 :],
            stop=[end],
            settings=settings,
            suppress=writer.suppressed,
            prefix=prefix,
            embed=writer.embed,
        )
        pending.finished = completion.finished
        answer = self.model._answer(pending, ground=ground, visual=self.visual)
        answer = replace(answer, num_prompt_tokens=completion.num_prompt_tokens, score=completion.score)
        self._prefix, self._history_LE = read, torch.cat([history_LE, *writer.written])
        self._ids = [*self._ids, *pending.unread, *pending.written.tokens.ids, *pending.answer]
        self._ids += [end] if completion.finished else []
        self._unread = [] if completion.finished else [end]
        self.turns += [*new_turns, Turn("assistant", with_placeholders(answer), answer.boxes)]
        return answer


def _settings(max_tokens: int) -> GenerationSettings:
    return validate(GenerationSettings, {"max_new_tokens": max_tokens}, where="max_tokens")


def _as_list(images: Sequence[ImageInput] | ImageInput) -> list[ImageInput]:
    return [cast(ImageInput, images)] if is_single_image(images) else list(cast(Sequence[ImageInput], images))
