"""Image-text-to-text models of transformers behind the same questions and answers as our own.

Images and text are prepared by the checkpoint's processor and written in its chat template. What the numbers of a box
mean differs from family to family and stands in no config: `UNITS` states it. Where a family writes no boxes, or none
that fit what its processor shows it, answers are text alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import torch
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor

from foveate.core.errors import UserError
from foveate.core.hub import loading
from foveate.core.peft_folder import is_peft
from foveate.language.generate import GenerationSettings
from foveate.language.grammar import GrammarCompiler
from foveate.language.positions import find_context
from foveate.multimodal.answer_writer import limit_tokens
from foveate.multimodal.answers import Answer, AnswerObserver, pair_phrases
from foveate.multimodal.choose import Choice, check_options, decide, to_probabilities
from foveate.multimodal.foreign_adapter import attach_adapter, read_base, read_unit
from foveate.multimodal.foreign_boxes import (
    BOX,
    FAMILIES,
    FORMS,
    UNITS,
    check_unit,
    read_boxes,
    read_points,
    write_values,
)
from foveate.multimodal.foreign_loading import load_foreign, read_foreign
from foveate.multimodal.foreign_turns import (
    WHOLE_PROMPTS,
    AnswerStream,
    ForeignChat,
    PrefixCache,
    TokenSampler,
    called_back,
    check_question,
    create_grammars,
    encode_images_once,
    identify_images,
    list_end_ids,
    list_messages,
    naming_model,
    score_letters,
    score_texts,
)
from foveate.multimodal.prepare import Dialog, Question
from foveate.multimodal.questions import ask_turns, ask_where, check_regions, find_phrase
from foveate.multimodal.settings import OpeningOptions
from foveate.records.boxes import PixelBox
from foveate.records.conversations import IMAGE, REGION, Conversation, Turn, locate_regions
from foveate.records.images import BadImage, ImageInput, decode_input, is_single_image
from foveate.records.importers.coordinates import CoordinateFrame, list_values
from foveate.records.shapes import Point, Shape

# Families whose rows of a batch have the answers that they have alone. For LLaVA-OneVision's the processor counts other
# tokens than alone, and that of Kosmos-2 pads on the right.
BATCHED = UNITS.keys() - {"kosmos-2", "llava_onevision"}
# Questions with images of their own that are answered together.
_BATCH = 8

_Row = tuple[list[Image.Image], list[tuple[str, str]]]
"""Images, and turns (role, text) about them."""


class ForeignMllm:
    """A model of transformers that can be asked. Use `open_foreign`.

    Attributes:
        model, processor: of transformers.
        unit: of the boxes in its answers, see `UNITS`; None where neither its family nor the caller says it.
    """

    def __init__(self, model: Any, processor: Any, *, name: str, unit: str | None) -> None:
        self.model, self.processor, self.name, self.unit = model, processor, name, unit

    @cached_property
    def grammars(self) -> GrammarCompiler:
        """What holds answers to JSON schemas."""
        return create_grammars(self)

    def __repr__(self) -> str:
        return f"ForeignMllm({type(self.model).__name__}, {self.name!r}, boxes={self.unit!r})"

    def describe(self) -> str:
        """Return the model's class and parameters in words."""
        millions = sum(parameter.numel() for parameter in self.model.parameters()) / 1e6
        return f"{type(self.model).__name__} of transformers, {millions:,.1f} M parameters"

    def ask(
        self,
        images: Sequence[ImageInput] | ImageInput,
        question: str,
        *,
        regions: Sequence[Shape] = (),
        ground: bool = False,
        max_tokens: int = 64,
    ) -> Answer:
        """Answer one question greedily.

        Boxes of the answer are read where there is one image: with several, no family says which one they are in.

        Args:
            images: a path, bytes or Pillow image, or several; they stand where `<image>` stands in the question, or in
                front of it.
            regions: see `Mllm.ask`; they are written into the question as coordinates, with a warning.
            ground: ask for the boxes of all things that the answer mentions, in words behind the question.
            max_tokens: longest answer.

        Raises:
            UserError: an image cannot be read, a region lies outside, or the question is too long.
        """
        if ground:
            check_unit(self)
        read = read_images(images)
        text = self.write_regions(read, check_question(question, ground=ground), regions)
        answer = self.answer_turns(read, [("user", text)], limit_tokens(max_tokens), room=max_tokens)[0]
        return answer if ground else replace(answer, unboxed=())

    def ask_all(
        self, questions: Sequence[tuple[Any, ...]], *, ground: bool = False, max_tokens: int = 64
    ) -> list[Answer]:
        """Answer `Question`s, or tuples of the same; see `ask`.

        Images are read once for all questions about them. In families of `BATCHED` these are answered in batches behind
        one copy of the images' keys and values for each, and questions with images of their own in batches, too; in
        other families one follows another.
        """
        if ground:
            check_unit(self)
        settings, asked = limit_tokens(max_tokens), [Question(*question) for question in questions]
        groups: dict[Any, list[int]] = {}
        for number, (images, _, _) in enumerate(asked):
            groups.setdefault(identify_images(images), []).append(number)
        answers: dict[int, Answer] = {}

        def answer(numbers: Sequence[int], images: list[Image.Image] | None, prefix: PrefixCache | None = None) -> None:
            rows: list[_Row] = []
            for number in numbers:
                read = read_images(asked[number].images) if images is None else images
                text = check_question(asked[number].text, ground=ground)
                rows.append((read, [("user", self.write_regions(read, text, asked[number].regions))]))
            results = self._answer_rows(rows, [settings] * len(rows), room=max_tokens, prefix=prefix)
            answers.update({number: each for number, (each, _) in zip(numbers, results, strict=True)})

        size = _BATCH if self.model.config.model_type in BATCHED else 1
        for key, numbers in groups.items():
            if len(numbers) > 1 and key:
                images, prefix = read_images(asked[numbers[0]].images), PrefixCache()
                for start in range(0, len(numbers), size):
                    answer(numbers[start : start + size], images, prefix)
        # A processor takes images for all rows of a batch, or for none.
        for has_images in (True, False):
            alone = [
                number
                for key, numbers in groups.items()
                if bool(key) == has_images and (len(numbers) == 1 or not key)
                for number in numbers
            ]
            for start in range(0, len(alone), size):
                answer(alone[start : start + size], None)
        found = [answers[number] for number in range(len(asked))]
        return found if ground else [replace(each, unboxed=()) for each in found]

    def choose(
        self,
        images: Sequence[ImageInput] | ImageInput,
        question: str,
        options: Sequence[str],
        *,
        regions: Sequence[Shape] = (),
        per_token: bool = False,
    ) -> tuple[float, ...]:
        """Return the probability of each option; see `Mllm.choose`."""
        read, texts = read_images(images), check_options(options)
        text = self.write_regions(read, check_question(question), regions)
        with encode_images_once(self.model):
            logs = score_texts(self, read, text, texts)
        return to_probabilities(logs, per_token=per_token)

    def choose_all(
        self, questions: Sequence[tuple[Any, ...]], options: Sequence[Sequence[str]], *, per_token: bool = False
    ) -> list[tuple[float, ...]]:
        """Return the probabilities of the options of each question, one after another; see `choose`."""
        return [
            self.choose(images, text, texts, regions=regions, per_token=per_token)
            for (images, text, regions), texts in zip((Question(*each) for each in questions), options, strict=True)
        ]

    def decide(
        self,
        images: Sequence[ImageInput] | ImageInput,
        question: str,
        options: Sequence[str],
        *,
        regions: Sequence[Shape] = (),
    ) -> Choice:
        """Choose an option by its letter, or by its text where letters have no probability; see `Mllm.decide`."""
        read, texts = read_images(images), check_options(options)
        text = self.write_regions(read, check_question(question), regions)
        with encode_images_once(self.model):
            letters = score_letters(self, read, text, texts)
            return decide(letters, lambda: score_texts(self, read, text, texts))

    def encode_answers(
        self, images: list[Image.Image], text: str, options: Sequence[str]
    ) -> Generator[tuple[dict[str, Any], Tensor], None, None]:
        """Yield the inputs of the model for each answer behind a question, and the tokens of the answer in them.

        Raises:
            UserError: an answer does not fit, or the chat template writes none behind the prompt for one.
        """
        question_T = self._inputs(images, [("user", text)])["input_ids"][0]
        length = len(question_T)
        for option in options:
            inputs = self._inputs(images, [("user", text), ("assistant", option)])
            all_T = inputs["input_ids"][0]
            # Templates may write an answer elsewhere than where they let one begin, such as behind an empty thought.
            if not torch.equal(all_T[:length], question_T):
                raise UserError(
                    f"{self.name}: its chat template does not write an answer behind the prompt for one; options "
                    "cannot be scored"
                )
            self._check_context(length, len(all_T) - length)
            yield inputs, all_T[length:]

    def write_regions(self, images: Sequence[Image.Image], text: str, regions: Sequence[Shape]) -> str:
        """Write regions into a question as coordinates in the unit of the family's boxes; warn that they are text."""
        turns = ask_turns(text, regions, images=len(images))
        written = self.write_turns(images, turns, numbered=regions)[-1][1]
        # In a conversation the images stand in the first question alone.
        return written if IMAGE in text else written.replace(IMAGE, "").lstrip()

    def write_turns(
        self, images: Sequence[Image.Image], turns: Sequence[Turn], *, numbered: Sequence[Shape]
    ) -> list[tuple[str, str]]:
        """Return roles and texts of turns, their regions written as coordinates in the unit of the family's boxes.

        Args:
            numbered: the regions of the question, which get a warning that they are text.
        """
        if not any(turn.regions for turn in turns):
            return [(turn.role, turn.text) for turn in turns]
        unit = "pixels" if check_unit(self) == "none" else check_unit(self)
        if numbered:
            warnings.warn(
                f"{self.name}: has no tokens for regions; their coordinates ({unit}) are written into the question",
                stacklevel=4,
            )
        conversation = Conversation("question", tuple(map(str, range(len(images)))), tuple(turns))
        check_regions(conversation, [image.size for image in images], numbered)
        bare = [(turn.role, turn.text.replace(REGION, "")) for turn in turns]
        # Only the processor knows to what size it resizes an image; to ask it, the texts without regions are enough.
        inputs = self._inputs(list(images), bare) if unit == "resized-pixels" else {}
        written = []
        for turn, owners in zip(turns, locate_regions(conversation), strict=True):
            pieces = turn.text.split(REGION)
            for number, (shape, image) in enumerate(zip(turn.regions, owners, strict=True)):
                frame = self._frame(images[image], inputs, unit=unit, number=image)
                values = list_values(frame.from_pixels(shape))
                if unit == "0-1-cropped":
                    values = [min(max(value, 0.0), 1.0) for value in values]
                pieces[number] += write_values(values, unit, family=self.model.config.model_type)
            written.append((turn.role, "".join(pieces)))
        return written

    def answer_dialogs(
        self,
        dialogs: Sequence[Dialog],
        *,
        generation: Sequence[GenerationSettings],
        observer: AnswerObserver | None = None,
    ) -> list[Answer]:
        """Answer the last turns of conversations; see `Mllm.answer_dialogs`.

        Families of `BATCHED` answer in one batch. Any other answers one after another: what a batch of its images looks
        like, and what padding changes, is not known.
        """
        rows: list[_Row] = []
        for dialog in dialogs:
            images = read_images(dialog.images)
            rows.append((images, self.write_turns(images, dialog.turns, numbered=dialog.regions)))
        is_batched = self.model.config.model_type in BATCHED
        parts: dict[int, list[int]] = {}
        for number, (images, _) in enumerate(rows):
            # A processor takes images for all rows of a batch, or for none.
            parts.setdefault(bool(images) if is_batched else number, []).append(number)
        answers: dict[int, Answer] = {}
        for part in parts.values():
            settings = [generation[number] for number in part]
            results = self._answer_rows([rows[number] for number in part], settings, observer=observer, row_ids=part)
            answers |= {number: answer for number, (answer, _) in zip(part, results, strict=True)}
        return [replace(answers[number], unboxed=()) for number in range(len(rows))]

    def stream(
        self,
        images: Sequence[ImageInput] | ImageInput,
        question: str,
        *,
        regions: Sequence[Shape] = (),
        max_tokens: int = 64,
    ) -> Generator[str, None, Answer]:
        """Yield the text of an answer as it is generated; joined, it is `ask(...).text`. Return the answer."""
        read = read_images(images)
        text = self.write_regions(read, check_question(question), regions)
        answers = AnswerStream()
        return (
            yield from answers.run(
                lambda: self.answer_turns(
                    read, [("user", text)], limit_tokens(max_tokens), room=max_tokens, observer=answers
                )[0]
            )
        )

    def locate(self, image: ImageInput, phrase: str) -> Answer:
        """Ask where a thing is; an answer without a box means that it is not found; its `reason` says why."""
        question, family = ask_where(phrase), FAMILIES.get(self.model.config.model_type)
        if family is None or not family.where:
            return self.ask(image, question, ground=True)
        written = family.where.format(phrase=find_phrase(question))
        return replace(self.ask(image, written), read_as=written)

    def chat(self, images: Sequence[ImageInput] | ImageInput) -> ForeignChat:
        """Start a conversation about images."""
        return ForeignChat(self, read_images(images))

    def answer_turns(
        self,
        images: list[Image.Image],
        turns: list[tuple[str, str]],
        settings: GenerationSettings,
        *,
        room: int = 1,
        observer: AnswerObserver | None = None,
        prefix: PrefixCache | None = None,
    ) -> tuple[Answer, str]:
        """Answer the last of turns (role, text); return the answer, and its text as the model wrote it.

        Args:
            room: tokens that must fit behind the turns; where fewer than the settings allow do, the answer ends there.
            observer: takes the answer while it comes. prefix: cache of what was read of these images.
        """
        rows = [(images, turns)]
        return self._answer_rows(rows, [settings], room=room, observer=observer, row_ids=[0], prefix=prefix)[0]

    @torch.inference_mode()
    def _answer_rows(
        self,
        rows: Sequence[_Row],
        settings: Sequence[GenerationSettings],
        *,
        room: int = 1,
        observer: AnswerObserver | None = None,
        row_ids: Sequence[int] = (),
        prefix: PrefixCache | None = None,
    ) -> list[tuple[Answer, str]]:
        """Answer rows in one batch; see `answer_turns`.

        Args:
            row_ids: by which the observer knows the rows. prefix: of the images, which are then those of all rows.
        """
        prompts, inputs = list[str](), None
        if prefix is not None:
            prompts = [self.write_prompt(turns, len(images)) for images, turns in rows]
            inputs = self._continue(rows, prompts, prefix, room=room)
        is_shared = inputs is not None and len(rows) > 1
        with naming_model(self.name):
            inputs = inputs or self._batch_inputs(rows)
        length, lengths = inputs["input_ids"].shape[1], inputs["attention_mask"].sum(dim=1).tolist()
        for each in lengths:
            self._check_context(each, room)
        context = find_context(self.model)
        # If a model states no context length, only the settings limit its answers.
        rooms = [1 << 30 if context is None else context - each for each in lengths]
        limits = [min(row.max_new_tokens, room) for row, room in zip(settings, rooms, strict=True)]
        first_images = [0, *([0] * len(rows) if is_shared else accumulate(len(images) for images, _ in rows))]
        results, ends = dict[int, tuple[Answer, str]](), list_end_ids(self.model)
        is_plain = [bool(row.json_schema) for row in settings]
        sampler = TokenSampler(settings, self.grammars if any(is_plain) else None)
        sizes = inputs if prefix is None or not (is_shared or len(rows) == 1) else inputs | prefix.sizes

        def read(row: int, ids_T: Tensor) -> tuple[Answer, str]:
            # What follows a schema is left as it is written: its numbers are no boxes.
            images = [] if is_plain[row] else rows[row][0]
            answer, written = self._read(ids_T, images, sizes, first_image=first_images[row])
            scores = tuple(sampler.token_scores[row][: len(ids_T) - answer.finished])
            return replace(answer, num_prompt_tokens=lengths[row], token_scores=scores), written

        def step(row: int, ids_T: Tensor) -> bool:
            sampler.note(row, int(ids_T[-1]))
            may_go_on = observer is None or observer.step(row_ids[row], lambda: read(row, ids_T)[0])
            if may_go_on and len(ids_T) < limits[row] and int(ids_T[-1]) not in ends:
                return True
            results[row] = read(row, ids_T)
            sampler.end(row)
            if observer is not None:
                observer.end(row_ids[row], replace(results[row][0], unboxed=()))
            return False

        # Ends each row at its own limit or when its observer says so; `max_new_tokens` below is the largest limit.
        @called_back
        def stop(ids_BT: Tensor, scores: Any, **_: Any) -> Tensor:
            stops = [row in results or not step(row, ids_T[length:]) for row, ids_T in enumerate(ids_BT)]
            return torch.tensor(stops, device=ids_BT.device)

        with naming_model(self.name):
            output = self.model.generate(
                **inputs,
                return_dict_in_generate=True,
                max_new_tokens=max(limits),
                # Many checkpoints sample by default; the same question must get the same answer.
                do_sample=False,
                logits_processor=[sampler] if sampler.is_needed else None,
                stopping_criteria=[stop],
            )
        if prefix is not None and len(rows) == 1:
            prefix.keep(self.model, self.processor, prompts[0], inputs, output)
        return [results[row] for row in range(len(rows))]

    def _continue(
        self, rows: Sequence[_Row], prompts: Sequence[str], prefix: PrefixCache, *, room: int
    ) -> dict[str, Any] | None:
        """Return the inputs of `generate` behind what was read of the images; None if they are read with the rows."""
        if len(rows) == 1:
            return prefix.continue_inputs(self.model, self.processor, prompts[0])
        if self.model.config.model_type in WHOLE_PROMPTS:
            return None
        if (inputs := prefix.continue_rows(self.model, self.processor, prompts, room=room)) is not None:
            return inputs
        inputs = self._batch_inputs(rows[:1])
        self._check_context(inputs["input_ids"].shape[1], 1)
        # What one token takes to generate is the reading of its prompt.
        with naming_model(self.name):
            output = self.model.generate(**inputs, return_dict_in_generate=True, max_new_tokens=1, do_sample=False)
        prefix.keep(self.model, self.processor, prompts[0], inputs, output)
        return prefix.continue_rows(self.model, self.processor, prompts, room=room)

    def _read(
        self, ids_T: Tensor, images: Sequence[Image.Image], inputs: Any, *, first_image: int
    ) -> tuple[Answer, str]:
        """Read the answer of generated tokens; return it, and its text as the model wrote it."""
        with naming_model(self.name):
            # Some tokenizers have fewer tokens than the weights.
            written = text = self.processor.tokenizer.decode(ids_T, skip_special_tokens=True).strip()
        boxes: tuple[PixelBox, ...] = ()
        points: tuple[Point, ...] = ()
        if len(images) == 1 and self.unit not in (None, "none"):
            frame = self._frame(images[0], inputs, unit=self.unit, number=first_image)
            text, points = read_points(text, frame)
            text, boxes = read_boxes(text, frame, y_first=FORMS[self.unit].y_first)
        # Boxes are rewritten in the one form that `pair_phrases` reads; it ignores their numbers.
        phrases, unboxed = pair_phrases(BOX.sub("[0, 0, 0, 0]", text) if boxes else text)
        answer = Answer(
            text=text,
            boxes=boxes,
            images=(0,) * len(boxes),
            phrases=phrases if len(phrases) == len(boxes) else ("",) * len(boxes),
            unboxed=unboxed,
            tokens=len(ids_T),
            finished=bool(len(ids_T)) and int(ids_T[-1]) in list_end_ids(self.model),
            points=points,
        )
        return answer, written

    def _check_context(self, length: int, more: int) -> None:
        """Raise UserError if a question and `more` tokens of its answer do not fit; nothing is ever cut."""
        limit = find_context(self.model)
        if limit is not None and length + more > limit:
            raise UserError(
                f"question: {length} tokens with its images and {more} of the answer do not fit the context of "
                f"{self.name}; expected at most {limit}"
            )

    def _inputs(self, images: list[Image.Image], turns: list[tuple[str, str]]) -> Any:
        """Prepare images and turns as the checkpoint's processor does."""
        return self._batch_inputs([(images, turns)])

    def _batch_inputs(self, rows: Sequence[_Row]) -> Any:
        """Prepare rows as the checkpoint's processor does, padded on the left, where no answer goes on."""
        options: dict[str, Any] = {"padding": True, "padding_side": "left"} if len(rows) > 1 else {}
        if self.model.config.model_type in WHOLE_PROMPTS and rows[0][1][-1][0] == "assistant":
            options["suffix"] = [turns[-1][1] for _, turns in rows]
            rows = [(images, turns[:-1]) for images, turns in rows]
        prompts = [self.write_prompt(turns, len(images)) for images, turns in rows]
        images: Any = [images for images, _ in rows] if len(rows) > 1 else rows[0][0]
        with loading(self.name, kind="the question"):
            inputs = self.processor(
                # The first row stands for all: `answer_dialogs` puts rows with images and rows without any into
                # separate batches.
                images=images if rows[0][0] else None,
                text=prompts if len(rows) > 1 else prompts[0],
                return_tensors="pt",
                **options,
            )
        device, dtype = self.model.device, self.model.dtype
        if device.type == "meta":
            # A model of shapes alone, whose memory is estimated, is asked for what its processor says of images.
            device = torch.device("cpu")
        moved = {}
        for name, value in inputs.items():
            if name == "labels":
                # PaliGemma's processor writes them for training.
                continue
            # Pixels take the dtype of the weights; ids and grids stay integers.
            is_pixels = isinstance(value, Tensor) and value.is_floating_point()
            moved[name] = value.to(device, dtype) if is_pixels else value.to(device)
        return moved

    def write_prompt(self, turns: list[tuple[str, str]], num_images: int) -> str:
        """Write turns in the chat template, images where their placeholders stand or in front of the first question."""
        messages, is_question = list_messages(turns, num_images), turns[-1][0] == "user"
        try:
            return self.processor.apply_chat_template(messages, add_generation_prompt=is_question, tokenize=False)
        except (TemplateError, ArithmeticError, MemoryError, RecursionError, TypeError) as error:
            # Some families take no system turn, for example; others loop.
            reason = str(error).split("\n")[0] or type(error).__name__
            raise UserError(f"{self.name}: its chat template refuses these turns ({reason})") from error

    def _frame(self, image: Image.Image, inputs: Any, *, unit: str, number: int = 0) -> CoordinateFrame:
        """Return what coordinates are relative to in one image, the `number`-th of the inputs."""
        resized = None
        if unit == "resized-pixels":
            # The processor's own size rather than a rule of ours: its bounds are options of the checkpoint.
            # The grid counts patches in time, rows and columns; a still image has one step in time.
            _, rows, columns = inputs["image_grid_thw"][number].tolist()
            patch = self.processor.image_processor.patch_size
            resized = (columns * patch, rows * patch)
        return CoordinateFrame(FORMS[unit].frame, image.width, image.height, resized=resized)


def open_foreign(
    source: str,
    *,
    revision: str | None = None,
    unit: str | None = None,
    device: str | torch.device = "cpu",
    adapter: str | Path | None = None,
    opening: OpeningOptions | None = None,
) -> ForeignMllm:
    """Open an image-text-to-text model of transformers; code of a repository is never run.

    Args:
        source: folder, or OWNER/NAME on the hub, with safetensors weights and a processor with a chat template; or the
            folder of an adapter, which names its base.
        unit: of the boxes in its answers, one of `KNOWN_UNITS`; by default that of its adapter or its family, see
            `FAMILIES`.
        adapter: folder of PEFT whose weights are added.
        opening: dtype, device map and quantization.

    Raises:
        UserError: it is out of reach, of another task, a pickle, incomplete, or has no chat template; or the adapter is
            of another model.

    Example:
        >>> model = open_foreign(str(llava_folder), unit="0-1000")
        >>> model.ask(image_file, "Where is the dog?", max_tokens=2).boxes
        ()
    """
    if adapter is None and is_peft(Path(source).expanduser()):
        source, adapter = read_base(Path(source).expanduser()), source
    folder = None if adapter is None else Path(adapter).expanduser()
    if unit is None and folder is not None:
        unit = read_unit(folder)
    checkpoint, processor, unit = read_foreign(source, revision=revision, unit=unit)
    model = load_foreign(checkpoint, device=device, opening=opening)
    if folder is not None:
        model = attach_adapter(model, folder, base=source)
    return ForeignMllm(model, processor, name=source, unit=unit)


def read_images(images: Sequence[ImageInput] | ImageInput) -> list[Image.Image]:
    """Decode one or several images; raise UserError naming one that cannot be read."""
    listed = [cast(ImageInput, images)] if is_single_image(images) else list(cast(Sequence[ImageInput], images))
    decoded = []
    for number, image in enumerate(listed):
        try:
            decoded.append(decode_input(image))
        except BadImage as problem:
            name = image if isinstance(image, str | Path) else f"image {number + 1}"
            raise UserError(f"{name}: cannot be read: {problem}") from problem
    return decoded
