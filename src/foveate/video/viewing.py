"""Watch a clip with an image model: its frames are encoded once, and read once for all questions.

viewing = foveate.watch("llava-hf/llava-v1.6-vicuna-7b-hf", "street.mp4")
    viewing.ask("What happens after the taxi?").text
    viewing.choose("Which color is it?", ["red", "green"]).letter

Source: SlowFast-LLaVA (arXiv 2407.15841).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from foveate.core.recipes import validate
from foveate.language.forbidden_words import WordFilter
from foveate.language.generate import Completion, GenerationSettings, Prefix, predict, read_prefix, stream
from foveate.language.llama_forward import PlacedPrompt
from foveate.language.positions import outgrows_training
from foveate.language.tokenizer import Piece
from foveate.multimodal.answers import NOT_FOUND, is_settled
from foveate.multimodal.choose import Choice, are_distinct, decide, list_letters
from foveate.video.adapter import NativeVideo
from foveate.video.layout import Layout, NativeLayout
from foveate.video.networks import Network
from foveate.video.prompts import Prompts, VideoPrompt, check_choices, check_question
from foveate.video.splice import PromptIds, Room, check_native, check_room, encode_prompt, splice
from foveate.video.strategies import Strategy
from foveate.vision.video.reading import ClipReader

# Answers about a clip, and the frames that they saw.


@dataclass(frozen=True)
class SeenFrame:
    """A frame that the answer saw: its index in the file, its time in seconds, and whether it is a slow one."""

    index: int
    time: float
    is_slow: bool
    image: Image.Image


@dataclass(frozen=True)
class VideoAnswer:
    """An answer about a video.

    Attributes:
        text: behind the start of an answer that the prompt has.
        num_prompt_tokens: positions that were read: text and video. tokens: generated ones.
        finished: False if it was cut at `max_tokens`.
        score: mean log-probability of the generated tokens.
        seen: record of what the model saw, ready for JSON.
        choice: from the options of the question, where they were scored too.
        ids: generated tokens, without the one that ends the answer.
    """

    text: str
    num_prompt_tokens: int
    tokens: int
    finished: bool
    score: float
    seen: Mapping[str, Any]
    choice: Choice | None = None
    ids: tuple[int, ...] = ()


MAX_TOKENS = 128
T = TypeVar("T")


class Viewing:
    """A clip that a model has seen. Use `foveate.watch`.

    Attributes:
        network: the model. how: the strategy, after `fit`. changes: what `fit` changed.
        clip: indices and times of the sampled frames. layout: which rows come from which of them.
        video_LD: tokens of the video.
    """

    def __init__(
        self,
        network: Network,
        prompts: Prompts,
        *,
        how: Strategy,
        reader: ClipReader,
        layout: Layout,
        video_LD: Tensor,
        changes: tuple[str, ...] = (),
        native: NativeVideo | None = None,
    ) -> None:
        self.network, self.prompts, self.how, self.layout = network, prompts, how, layout
        self.video_LD, self.changes, self.clip = video_LD, changes, reader.record
        self._reader = reader
        self._cut = (0, 0) if native is None else native.cut
        placed = None if network.place is None or native is not None else network.place(layout)
        self._places = placed if native is None else native.places
        # What was read last, and the ids in front of its video.
        self._prefix: tuple[list[int], Prefix] | None = None
        self._warned = False

    def __repr__(self) -> str:
        return f"Viewing({self.clip.name!r}, {len(self.clip.indices)} frames, {len(self.video_LD)} tokens)"

    @property
    def frames(self) -> list[SeenFrame]:
        """Frames that are read, in the order of time, as the tower reads them; see `read_frames`."""
        return self.read_frames(list)

    def read_frames(self, consume: Callable[[Iterator[SeenFrame]], T]) -> T:
        """Return what a function makes of the frames that are read, which come one by one.

        The clip is decoded once more: most viewings are never looked at, and a thousand frames of 336 x 336
        are 340 MB. Frames of collages come whole.

        Raises:
            BadClip: the clip was replaced since.
        """
        is_frames = all(image.is_frame for image in self.layout.images)
        render = self.network.render if is_frames else lambda image: image
        # A strategy may sample frames that it does not read; these have no column.
        columns = dict(zip(self.layout.frames, self._list_frames(), strict=True))
        return self._reader.read(
            lambda frames: consume(
                SeenFrame(*columns[row], render(frame)) for row, frame in enumerate(frames) if row in columns
            )
        )

    def _list_frames(self) -> list[tuple[int, float, bool]]:
        """Return index, time and whether it is a slow one of each frame that is read."""
        slow = {
            frame
            for block in self.layout.blocks
            if block.path == "slow"
            for image in block.images
            for frame in self.layout.images[image].frames
        }
        clip = self.clip
        return [(clip.indices[row], clip.times[row], row in slow) for row in self.layout.frames]

    def ask(self, question: str, options: Sequence[str] = (), *, max_tokens: int = MAX_TOKENS) -> VideoAnswer:
        """Answer a question about the clip greedily.

        Args:
            question: a text; marks of the model in it are text.
            options: write an answer to a question with options; see `choose` for their probabilities.
            max_tokens: longest answer.

        Raises:
            UserError: the question is empty, or does not fit the context.
        """
        pieces = self.stream(question, options, max_tokens=max_tokens)
        try:
            while True:
                next(pieces)
        except StopIteration as end:
            return end.value

    def stream(
        self, question: str, options: Sequence[str] = (), *, max_tokens: int = MAX_TOKENS
    ) -> Generator[str, None, VideoAnswer]:
        """Yield the text of an answer as it is generated; return the answer. Arguments: see `ask`."""
        ids = self.encode_question(question, options, max_tokens)
        prefix = self._read(ids, max_tokens)
        # A prefix already holds the video and what precedes it: only the text behind it is left to read.
        prompt_LD = self.splice(ids) if prefix is None else self.network.embed(ids.after)
        words = self.network.filter_words()
        pieces = stream(
            self.network.language,
            prompt_LD,
            decode=self.network.decode,
            stop=self.network.stop,
            settings=answer_settings(max_tokens, self.network),
            prefix=prefix,
            suppress=self.network.suppress,
            words=words,
            # The cache is cut back, not copied: a copy would hold a video's keys and values twice.
            in_place=True,
        )
        if words is None:
            return self.build_answer((yield from pieces))
        completion = yield from self._hold_back(pieces, words)
        return self.build_answer(completion, avoided=words.avoided.get(0))

    def _hold_back(
        self, pieces: Generator[str, None, Completion], words: WordFilter
    ) -> Generator[str, None, Completion]:
        """Yield an answer from where it cannot become "not found" any more; return its completion."""
        waiting, is_open = "", True
        while True:
            try:
                piece = next(pieces)
            except StopIteration as end:
                completion: Completion = end.value
                break
            waiting += piece
            is_open = is_open and not is_settled(waiting)
            # Nothing rather than no piece: between pieces a server sees whether its client has gone.
            yield "" if is_open else waiting
            waiting = waiting if is_open else ""
        if is_open:
            yield NOT_FOUND if self._is_doubted(completion, words.avoided.get(0)) else waiting
        return completion

    def _is_doubted(self, completion: Completion, avoided: int | None) -> bool:
        """Return whether an answer would have named what it shows by a forbidden word.

        Nothing scores other names in a clip: the box head reads single images. So none of them counts as shown.
        """
        return avoided is not None and not is_settled(f"{self.network.decode(completion.ids[:avoided])} ")

    def choose(self, question: str, options: Sequence[str], *, distinct: bool = True) -> Choice:
        """Choose an option by the probability of its letter as the next token, or by its text.

        Where all letters have next to no probability, each option is scored as the whole answer to the question; see
        `foveate.multimodal.choose.decide`.

        Args:
            distinct: refuse equal options, which some published questions have.

        Raises:
            UserError: as `ask`; or there are fewer than two different options, or more than 26.
        """
        check_choices(options, distinct=distinct)
        ids, endings = self.encode_letters(question, options)
        letters = self._score(ids, endings) if are_distinct(endings) else ()
        return decide(letters, lambda: self._score(*self.encode_texts(question, options)))

    def encode_letters(self, question: str, options: Sequence[str]) -> tuple[PromptIds, list[list[int]]]:
        """Encode the prompt in front of the letter of an option, and the letter of each behind it.

        Raises:
            UserError: as `choose`; equal options are allowed.
        """
        choices = check_choices(options, distinct=False)
        prompt = self.prompts.choose.fill(self.network.frame, check_question(question), choices)
        return self._encode_endings(prompt, [Piece(letter) for letter in list_letters(choices)])

    def encode_texts(self, question: str, options: Sequence[str]) -> tuple[PromptIds, list[list[int]]]:
        """Encode the prompt of a question without its options, and each option as the whole answer behind it.

        Raises:
            UserError: as `choose`; equal options are allowed.
        """
        prompt = self.prompts.fill(self.network.frame, question)
        blank = "" if "".join(piece.text for piece in prompt.after)[-1:].isspace() else " "
        ids, endings = self._encode_endings(
            prompt, [Piece(f"{blank}{option}", True) for option in check_choices(options, distinct=False)]
        )
        # The end counts, so that an option which begins another one is not favored.
        end = [] if self.network.tokenizer is None else [self.network.tokenizer.end]
        return ids, [[*ending, *end] for ending in endings]

    def _encode_endings(self, prompt: VideoPrompt, answers: Sequence[Piece]) -> tuple[PromptIds, list[list[int]]]:
        """Encode what a prompt shares with all of its answers, and the rest of each."""
        sides = [self._encode(prompt._replace(after=(*prompt.after, answer))) for answer in answers]
        # An answer may be one token with the mark before it: what all sides share is the prompt.
        shared = 0
        while len({tuple(side.after[: shared + 1]) for side in sides}) == 1 and shared < len(sides[0].after):
            shared += 1
        ids = PromptIds(sides[0].before, sides[0].after[:shared])
        endings = [side.after[shared:] for side in sides]
        self._check(ids, max(map(len, endings)))
        return ids, endings

    def close(self) -> None:
        """Let go of what was read; the next question reads the clip again."""
        self._prefix = None

    @property
    def record(self) -> dict[str, Any]:
        """What a run stores: frames, times, tokens of each path, the context, and what `fit` changed."""
        frames = self._list_frames()
        return {
            "model": self.network.name,
            "clip": self.clip.name,
            "how": {"kind": self.how.kind, **self.how.model_dump(mode="json")},
            "fitted": list(self.changes),
            "size": list(self.clip.size),
            "num_decoded": self.clip.num_decoded,
            "indices": [index for index, _, _ in frames],
            "times": [time for _, time, _ in frames],
            "slow": [row for row, (_, _, is_slow) in enumerate(frames) if is_slow],
            "tokens": self.layout.count_tokens(),
            "video_tokens": len(self.video_LD),
            "limit": self.network.limit,
            "rope_factor": self.network.rope_factor,
            "warnings": [*self.clip.warnings, *self.layout.warnings],
        }

    def encode_question(self, question: str, options: Sequence[str], max_tokens: int) -> PromptIds:
        """Encode the prompt of a question; raise UserError where it does not fit."""
        ids = self._encode(self.prompts.fill(self.network.frame, question, options))
        self._check(ids, max_tokens)
        return ids

    def splice(self, ids: PromptIds) -> Tensor | PlacedPrompt:
        """Return what the language model reads of a prompt with the clip."""
        return splice(self.network, ids, self.video_LD, self._places)

    def _encode(self, prompt: VideoPrompt) -> PromptIds:
        before, after = encode_prompt(self.network, prompt)
        # The processor's own video brings some marks of the prompt itself.
        return PromptIds(before[: len(before) - self._cut[0]], after[self._cut[1] :])

    def _check(self, ids: PromptIds, answer: int) -> None:
        text, network = sum(map(len, ids)) + answer, self.network
        if isinstance(self.layout, NativeLayout):
            check_native(self.layout, text, network.limit)
            return
        check_room(self.how, Room(len(self.clip.indices), network.tokens_per_frame, text, network.limit))

    def _read(self, ids: PromptIds, answer: int) -> Prefix | None:
        """Read the text in front of the video and the video, unless they were; None where that cannot be used again."""
        length = len(ids.before) + len(self.video_LD) + len(ids.after) + answer
        if not self.network.reuses:
            return None
        if outgrows_training(self.network.language.config.get_text_config(), length):
            self._warn("positions beyond those of training change with the length: the clip is read for each question")
            return None
        if self._prefix is None or self._prefix[0] != ids.before:
            # One at a time: it is the largest thing in memory behind the weights.
            self._prefix = None
            prefix_LD = self.splice(PromptIds(ids.before, []))
            self._prefix = (ids.before, read_prefix(self.network.language, prefix_LD))
        prefix = self._prefix[1]
        if not prefix.can_rewind:
            self._warn("its cache has layers that cannot be cut back: it is copied for each question")
        return prefix

    def _warn(self, text: str) -> None:
        if not self._warned:
            warnings.warn(f"{self.network.name}: {text}", stacklevel=4)
        self._warned = True

    def _score(self, ids: PromptIds, answers: Sequence[Sequence[int]]) -> list[Tensor]:
        """Return the log-likelihoods of the tokens of each answer behind a prompt."""
        prefix = self._read(ids, max(map(len, answers)))

        def read(more: Sequence[int]) -> Tensor:
            after = PromptIds(ids.before, [*ids.after, *more])
            whole = self.splice(after) if prefix is None else self.network.embed(after.after)
            return predict(self.network.language, whole, prefix=prefix)

        # Every answer begins behind the same prompt: that pass is made once. The others are one by one, because a
        # letter is one or two tokens, and a batch would need a copy of the prefix for each row.
        first_V = read(())
        return [
            torch.stack([(read(answer[:end]) if end else first_V)[id] for end, id in enumerate(answer)])
            for answer in answers
        ]

    def build_answer(self, completion: Completion, *, avoided: int | None = None) -> VideoAnswer:
        """Return the answer that was generated; "not found" where its first sentence avoided a forbidden word.

        Args:
            avoided: number of the token in whose place the model would have written one.
        """
        return VideoAnswer(
            text=(NOT_FOUND if self._is_doubted(completion, avoided) else self.network.decode(completion.ids).strip()),
            num_prompt_tokens=completion.num_prompt_tokens,
            tokens=len(completion.ids),
            finished=completion.finished,
            score=completion.score,
            seen=self.record,
            ids=completion.ids,
        )


def answer_settings(max_tokens: int, network: Network) -> GenerationSettings:
    """Return settings of a greedy answer; raise UserError where `max_tokens` is out of range."""
    values = {"max_new_tokens": max_tokens, "max_repeats": network.max_repeats}
    return validate(GenerationSettings, values, where="max_tokens")
