"""Ask a multimodal model: one question, many in batches, a conversation, an answer as a stream.

model = foveate.open_mllm("runs/mini/model")
    model.ask("photo.jpg", "Where is the red apple?")  ->  Answer(text, boxes, ...)

Images are encoded once per call, and once per chat. Batches are padded so that an answer does not depend on the other
questions of its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate.core.hub_upload import HubMixin
from foveate.language.generate import Completion, GenerationSettings, Prefix, extend, generate, read_prefix, stream
from foveate.multimodal.answer_writer import AnswerWriter, PendingAnswer, limit_tokens
from foveate.multimodal.answers import Answer, AnswerObserver, certain_text, with_placeholders
from foveate.multimodal.assemble import SamplePlan
from foveate.multimodal.choose import (
    LETTERS,
    Choice,
    OptionRow,
    are_distinct,
    check_options,
    decide,
    list_letters,
    request_letter,
    score_options,
    to_probabilities,
)
from foveate.multimodal.folder import LoadedModel
from foveate.multimodal.prepare import (
    Dialog,
    Question,
    check_length,
    encode_sample,
    list_images,
    prepare_dialogs,
    prepare_questions,
    prepare_turns,
    request_boxes,
)
from foveate.multimodal.questions import ask_turns, ask_where
from foveate.multimodal.recognition import PictureReader
from foveate.multimodal.views import Visual
from foveate.multimodal.written_words import answer_words, asks_to_read
from foveate.records.conversations import Turn
from foveate.records.images import ImageInput
from foveate.records.shapes import Shape

BATCH = 32


@dataclass(frozen=True)
class _Watch:
    """See `foveate.language.generate.RowObserver`."""

    writer: AnswerWriter
    observer: AnswerObserver
    complete: Callable[[int, Completion], Answer]
    # The numbers that the observer knows the rows by.
    numbers: Sequence[int]

    def step(self, row: int, token: int) -> bool:
        return self.observer.step(self.numbers[row], lambda: self.writer.answer(row, is_whole=False))

    def end(self, row: int, completion: Completion) -> None:
        self.observer.end(self.numbers[row], self.complete(row, completion))


class Mllm(HubMixin):
    """A multimodal model that can be asked. Use `foveate.open_mllm`.

    Attributes:
        loaded: model, prompts and tokenizer behind it.
        folder: that it was opened from; None of one that was built in memory.
        pictures: answers about pictures unlike the scenes of its training; None: the model answers about all.

    Example:
        >>> model = open_mllm("mini")
        >>> [answer.finished for answer in model.ask_all([(image_file, "What is in the image?")])]
        [True]
    """

    _opener = "foveate.multimodal.opening:open_mllm"
    folder: Path | None = None

    def __init__(self, loaded: LoadedModel, pictures: PictureReader | None = None) -> None:
        self.loaded, self.pictures = loaded, pictures

    def __repr__(self) -> str:
        settings = self.loaded.model.settings
        language = settings.language
        name = language.get("model_type") if isinstance(language, dict) else language.source
        return f"Mllm(tower={settings.tower['kind']!r}, language={name!r})"

    @property
    def training_words(self) -> tuple[str, ...]:
        """Words that were invented for the training of the model; no answer has them."""
        return self.loaded.training_words

    def allow_training_words(self) -> Mllm:
        """Return the same model whose answers may have `training_words`: for generated images whose answers they are.

        Example:
            >>> model = open_mllm("mini")
            >>> "gorp" in model.training_words, model.allow_training_words().training_words
            (True, ())
        """
        return Mllm(self.loaded.allow_training_words())

    def ask_as_worded(self) -> Mllm:
        """Return the same model, which asks every question as it is worded: to measure what `Answer.read_as` gains.

        Example:
            >>> open_mllm("mini").ask_as_worded().ask(image_file, "Can you spot the dog for me?").read_as
            ''
        """
        return Mllm(replace(self.loaded, reads=False))

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
            part = [Question(*question) for question in questions[start : start + batch]]
            # Encoded batch by batch: the image tokens of thousands of questions would fill memory.
            visual, pending = prepare_questions(self.loaded, part, ground=ground)
            settings = limit_tokens(max_tokens) if generation is None else generation[start : start + batch]
            answers += self._answer(visual, pending, part, settings, ground=ground, ends_repeats=ends_repeats)
        return answers

    def answer_dialogs(
        self,
        dialogs: Sequence[Dialog],
        *,
        generation: Sequence[GenerationSettings],
        ends_repeats: bool = False,
        observer: AnswerObserver | None = None,
    ) -> list[Answer]:
        """Answer the last turns of conversations in one batch, and let somebody watch the answers while they come.

        Args:
            observer: takes each answer as it ends. Others: see `ask_all`.

        Raises:
            UserError: as `ask`.
        """
        visual, pending = prepare_dialogs(self.loaded, dialogs)
        questions = [Question(dialog.images, dialog.turns[-1].text, dialog.regions) for dialog in dialogs]
        return self._answer(visual, pending, questions, generation, ends_repeats=ends_repeats, observer=observer)

    def _answer(
        self,
        visual: Visual,
        pending: Sequence[PendingAnswer],
        questions: Sequence[Question],
        settings: GenerationSettings | Sequence[GenerationSettings],
        *,
        ground: bool = False,
        ends_repeats: bool = False,
        observer: AnswerObserver | None = None,
    ) -> list[Answer]:
        """Answer questions by the model, or by what reads words and recognizes pictures that it does not know."""
        answers: dict[int, Answer] = {}
        rows = [settings] * len(pending) if isinstance(settings, GenerationSettings) else settings
        for number, (question, each) in enumerate(zip(questions, pending, strict=True)):
            # Only the language model follows a schema, and only its tokens have probabilities.
            each.is_plain = bool(rows[number].json_schema)
            is_written = each.is_plain or rows[number].top_logprobs is not None
            answer = None if is_written else self._answer_without(question, each)
            if answer is not None:
                answers[number] = answer
                if observer is not None:
                    observer.end(number, answer)
        numbers = [number for number in range(len(pending)) if number not in answers]
        if numbers:
            writer = AnswerWriter(self.loaded, visual, [pending[number] for number in numbers])
            settings = [rows[number] for number in numbers]
            written = self._generate(
                writer, settings, numbers, ground=ground, ends_repeats=ends_repeats, observer=observer
            )
            answers |= zip(numbers, written, strict=True)
        return [answers[number] for number in range(len(pending))]

    def _answer_without(self, question: Question, pending: PendingAnswer) -> Answer | None:
        """Answer a question that is not for the language model: about written words, or about an unlike picture."""
        images, text, regions = list_images(question.images), question.text, question.regions
        if self.loaded.reader is not None and images and asks_to_read(text):
            return answer_words(self.loaded.reader, images, regions)
        if self.pictures is not None and self.pictures.are_unlike(pending.vectors):
            return self.pictures.answer(images, text, regions)
        return None

    def _generate(
        self,
        writer: AnswerWriter,
        settings: Sequence[GenerationSettings],
        numbers: Sequence[int],
        *,
        ground: bool = False,
        ends_repeats: bool = False,
        observer: AnswerObserver | None = None,
    ) -> list[Answer]:
        shared = writer.shares_images

        def complete(number: int, completion: Completion) -> Answer:
            question = writer.pending[number]
            question.answer, question.finished = list(completion.ids), completion.finished
            answer = writer.answer(number, ground=ground)
            return replace(
                answer,
                num_prompt_tokens=completion.num_prompt_tokens,
                score=completion.score,
                token_scores=completion.token_scores,
            )

        completions = generate(
            self.loaded.model.language_model,
            writer.prompts(images=not shared),
            # Questions about the same images read them once, and not once each.
            prefix=read_prefix(self.loaded.model.language_model, writer.images(0)) if shared else None,
            stop=[self.loaded.prompts.chat.end],
            settings=settings,
            suppress=writer.suppressed,
            words=writer.words,
            sentence_ends=self._sentence_ends() if ends_repeats else (),
            decode=self.loaded.tokenizer.decode,
            embed=writer.embed,
            draft=writer.draft,
            observer=None if observer is None else _Watch(writer, observer, complete, numbers),
            grammars=self.loaded.grammars if any(row.json_schema for row in settings) else None,
            batch=len(writer.pending),
        )
        return [complete(number, completion) for number, completion in enumerate(completions)]

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
        visual, pending = prepare_questions(self.loaded, [Question(images, question, regions)])
        other = self._answer_without(Question(images, question, regions), pending[0])
        if other is not None:
            yield other.text
            return other
        writer = AnswerWriter(self.loaded, visual, pending)
        written = ""
        pieces = stream(
            self.loaded.model.language_model,
            writer.prompts()[0],
            # The text with its boxes is put together below; a mark for each token makes each one a piece.
            decode=lambda ids: "." * len(ids),
            stop=[self.loaded.prompts.chat.end],
            settings=limit_tokens(max_tokens),
            suppress=writer.suppressed,
            words=writer.words,
            embed=writer.embed,
            draft=writer.draft,
        )
        for _ in pieces:
            text = certain_text(writer.answer(0, is_whole=False).text)
            # What was yielded cannot be taken back: a text that changed before its end waits until it continues that
            # again.
            if text.startswith(written):
                yield text[len(written) :]
                written = text
        # The stop token is written and no part of the answer.
        writer.pending[0].finished = len(writer.pending[0].answer) < len(writer.written)
        answer = writer.answer(0)
        yield answer.text[len(written) :]
        return answer

    def locate(self, image: ImageInput, phrase: str) -> Answer:
        """Ask where a thing is, in the words of training; the boxes of the answer are where.

        An answer without a box means that it is not found; its `reason` says why.

        Raises:
            UserError: as `ask`; or the phrase is empty.
        """
        return self.ask(image, ask_where(phrase), ground=not self.loaded.name_ids)

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
        """Return the probabilities of the options of each question, in batches; see `choose`.

        Pictures unlike the scenes of the training are decided by what was recognized in them; where that cannot know,
        all options are alike.
        """
        shares: dict[int, tuple[float, ...]] = {}
        for start in range(0, len(questions), BATCH):
            part = [Question(*question) for question in questions[start : start + BATCH]]
            visual, pending = prepare_questions(self.loaded, part)
            rows, numbers = [], []
            for number, question in enumerate(pending, start):
                texts, (images, text, regions) = check_options(options[number]), part[number - start]
                if self.pictures is not None and self.pictures.are_unlike(question.vectors):
                    shares[number] = self.pictures.choose(list_images(images), text, texts, regions).probabilities
                    continue
                numbers.append(number)
                rows.append(self._list_endings(question, texts))
            scores = score_options(self.loaded, visual, rows) if rows else []
            for number, logs in zip(numbers, scores, strict=True):
                shares[number] = to_probabilities(logs, per_token=per_token)
        return [shares[number] for number in range(len(questions))]

    def decide(
        self,
        images: Sequence[ImageInput] | ImageInput,
        question: str,
        options: Sequence[str],
        *,
        regions: Sequence[Shape] = (),
    ) -> Choice:
        """Choose an option by the probability of its letter, and say what decided.

        Where letters have less than .001 together, each option is scored as the whole answer, as `choose` does.
        Pictures unlike the scenes of the training are decided by what was recognized in them, or not at all.

        Raises:
            UserError: as `choose`.

        Example:
            >>> open_mllm("mini").decide(image_file, "Is there a red disc?", ["yes", "no"]).scored_by
            'texts'
        """
        loaded, texts, inputs = self.loaded, check_options(options), list_images(images)
        visual, encoded = encode_sample(loaded, inputs)
        turns = ask_turns(loaded.read_question(question, num_images=len(inputs)), regions, images=len(inputs))
        plain = prepare_turns(loaded, turns, encoded, numbered=regions)
        if self.pictures is not None and self.pictures.are_unlike(plain.vectors):
            return self.pictures.choose(inputs, question, texts, regions)
        letters: Sequence[Tensor] = ()
        if len(texts) <= len(LETTERS):
            # As it was asked: the wordings of training have no options behind them.
            (turn,) = ask_turns(question, regions, images=len(inputs))
            turn = replace(turn, text=request_letter(turn.text, texts))
            row = self._list_endings(prepare_turns(loaded, [turn], encoded, numbered=regions), list_letters(texts))
            letters = score_options(loaded, visual, [row])[0] if are_distinct(row.options) else ()
        return decide(letters, lambda: score_options(loaded, visual, [self._list_endings(plain, texts)])[0])

    def _list_endings(self, question: PendingAnswer, options: Sequence[str]) -> OptionRow:
        """Return a question with the tokens of its options; raise UserError where they do not fit behind it."""
        ids = [self.loaded.prompts.write_answer(text) for text in options]
        # By the longest option: options are packed, but the positions of each start behind the images again.
        check_length(self.loaded.model, question, more=max(map(len, ids)))
        return OptionRow(question.views, question.layout, question.written, ids, question.in_text)

    def chat(self, images: Sequence[ImageInput] | ImageInput) -> Chat:
        """Start a conversation about images, which are encoded once."""
        return Chat(self.loaded, images, self.pictures)

    def plan(self, *sizes: tuple[int, int]) -> SamplePlan:
        """Plan the views of images from their (height, width) in pixels, before they are read.

        Example:
            >>> open_mllm("mini").plan((480, 640)).num_image_tokens
            49
        """
        return self.loaded.model.plan(*sizes)


# A conversation about images that a model has read once.


class Chat:
    """A conversation about images; what was read, images and earlier turns, is never read again.

    Attributes:
        turns: what was asked and answered.
    """

    def __init__(
        self, loaded: LoadedModel, images: Sequence[ImageInput] | ImageInput, pictures: PictureReader | None = None
    ) -> None:
        self.loaded, self.inputs = loaded, list_images(images)
        self.visual, self.images = encode_sample(loaded, self.inputs)
        vectors = [image.vector_D for image in self.images if image.vector_D is not None]
        self.pictures = pictures if pictures is not None and pictures.are_unlike(vectors) else None
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
        loaded, end = self.loaded, self.loaded.prompts.chat.end
        text = loaded.read_question(question, num_images=len(self.images))
        length = 0 if self._history_LE is None else len(self._history_LE)
        # By what the model has read: turns that something else answered are none of its prompt.
        request = request_boxes(loaded, text, ground=ground)
        new_turns = ask_turns(request, regions, images=0 if length else len(self.images))
        read = length and length + len(self._unread)
        pending = prepare_turns(loaded, new_turns, self.images, numbered=regions, read=read)
        noted = ask_turns(request, regions, images=0 if self.turns else len(self.images))
        answer = self._answer_without(question, regions)
        if answer is not None:
            self.turns += [*noted, Turn("assistant", with_placeholders(answer), answer.boxes)]
            return answer
        pending.before, pending.unread = self._ids, self._unread
        pending.read_as = text if text != question else ""
        writer = AnswerWriter(loaded, self.visual, [pending])
        (history_LE,) = writer.prompts(images=not length)
        if self._history_LE is not None:
            history_LE = torch.cat([self._history_LE, history_LE])
        settings = limit_tokens(max_tokens)
        # An answer that is interrupted leaves its keys and values in the prefix: without one, all is read once more.
        prefix, self._prefix = self._prefix, None
        completion, prefix = extend(
            loaded.model.language_model,
            history_LE[prefix.length if prefix else 0 :],
            stop=[end],
            settings=settings,
            suppress=writer.suppressed,
            words=writer.words,
            prefix=prefix,
            embed=writer.embed,
            draft=writer.draft,
        )
        pending.finished = completion.finished
        answer = writer.answer(0, ground=ground)
        answer = replace(answer, num_prompt_tokens=completion.num_prompt_tokens, score=completion.score)
        self._prefix, self._history_LE = prefix, torch.cat([history_LE, *writer.written])
        self._ids = [*self._ids, *pending.unread, *pending.written.tokens.ids, *pending.answer]
        self._ids += [end] if completion.finished else []
        self._unread = [] if completion.finished else [end]
        self.turns += [*noted, Turn("assistant", with_placeholders(answer), answer.boxes)]
        return answer

    def _answer_without(self, question: str, regions: Sequence[Shape]) -> Answer | None:
        """Answer a question that is not for the language model; see `Mllm.ask`."""
        if self.loaded.reader is not None and self.inputs and asks_to_read(question):
            return answer_words(self.loaded.reader, self.inputs, regions)
        return None if self.pictures is None else self.pictures.answer(self.inputs, question, regions)
