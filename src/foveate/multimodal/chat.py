"""A conversation about images that a model has read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from foveate.language.generate import Prefix, extend
from foveate.multimodal.answer_writer import AnswerWriter, limit_tokens
from foveate.multimodal.answers import Answer, with_placeholders
from foveate.multimodal.folder import LoadedModel
from foveate.multimodal.prepare import encode_sample, list_images, prepare_turns, request_boxes
from foveate.multimodal.questions import ask_turns
from foveate.records.conversations import Turn
from foveate.records.images import ImageInput
from foveate.records.shapes import Shape


class Chat:
    """A conversation about images; what was read, images and earlier turns, is never read again.

    Attributes:
        turns: what was asked and answered.
    """

    def __init__(self, loaded: LoadedModel, images: Sequence[ImageInput] | ImageInput) -> None:
        self.loaded = loaded
        self.visual, self.images = encode_sample(loaded, list_images(images))
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
        new_turns = ask_turns(
            request_boxes(loaded, question, ground=ground), regions, images=0 if self.turns else len(self.images)
        )
        length = 0 if self._history_LE is None else len(self._history_LE)
        read = length and length + len(self._unread)
        pending = prepare_turns(loaded, new_turns, self.images, numbered=regions, read=read)
        pending.before, pending.unread = self._ids, self._unread
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
        self.turns += [*new_turns, Turn("assistant", with_placeholders(answer), answer.boxes)]
        return answer
