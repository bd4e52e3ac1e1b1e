"""Conversations as a base's processor and chat template write them, and which of their tokens are learned.

An answer is what a template writes behind the prompt that asks for it. Nothing else is in the loss, and an answer ends
with a token that ends generation: the tuned model has to learn when to stop.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from foveate.core.errors import UserError
from foveate.core.hub import loading
from foveate.multimodal.foreign import ForeignMllm
from foveate.multimodal.foreign_turns import WHOLE_PROMPTS, list_messages
from foveate.records.collection import Collection
from foveate.records.conversations import IMAGE, KIND, Conversation, Conversations
from foveate.records.images import BadImage, decode
from foveate.training.loader import BadSample

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
NO_UNIT = "region without a unit of boxes"
Turns = list[tuple[str, str]]


class TuningRow(NamedTuple):
    """One conversation as inputs of the base, [1, T] and images; `learned_T` says which tokens are in the loss."""

    inputs: dict[str, Tensor]
    learned_T: Tensor


def select_conversations(collection: Collection, split: str, *, unit: str) -> tuple[list[Conversation], Counter[str]]:
    """Return the conversations of a split that a base can learn, and how many others there are by their reason.

    Args:
        unit: of the boxes that the base writes; "none" leaves out every conversation with a region.
    """
    if split not in set(collection.splits.tolist()):
        return [], Counter()
    everything = list(Conversations(collection, split=split))
    usable = [talk for talk in everything if unit != "none" or not any(turn.regions for turn in talk.turns)]
    left_out = Counter({NO_UNIT: len(everything) - len(usable)})
    return usable, +left_out


def check_conversations(
    conversations: Sequence[Conversation],
    left_out: Counter[str],
    collection: Collection,
    *,
    split: str,
    model_type: str,
) -> None:
    """Raise UserError if there is no conversation to train on."""
    if conversations:
        return
    if left_out[NO_UNIT]:
        raise UserError(
            f"collection {collection.path}: all {left_out[NO_UNIT]} {KIND} of split '{split}' have regions, and no "
            f"unit of boxes is known for '{model_type}'; expected --unit-of-boxes, such as 0-1000"
        )
    raise UserError(f"collection {collection.path}: split '{split}' has no {KIND}; add some with foveate collect")


def encode_conversation(model: ForeignMllm, images: list[Image.Image], conversation: Conversation) -> TuningRow:
    """Return a conversation as a base reads it.

    Raises:
        UserError: its template refuses the turns, changes earlier ones, or does not write answers behind prompts; or an
            image or region is wrong.
    """
    turns = model.write_turns(images, conversation.turns, numbered=())
    if model.model.config.model_type in WHOLE_PROMPTS:
        return _encode_suffix(model, images, turns)
    spans = _list_answers(model, images, turns)
    whole = _end_with_mark(model, spans[-1])
    tokenizer = model.processor.tokenizer
    inputs = _process(model, images, whole)
    ids_T = inputs["input_ids"][0]
    learned_T = torch.zeros(len(ids_T), dtype=torch.bool)
    whole_ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    ends = _list_ends(model)

    def position(text: str, count: int) -> int:
        """Return how many tokens a beginning of the whole text has, its images expanded."""
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        tail = torch.tensor(whole_ids[len(ids) :], dtype=torch.long)
        # As a rule all images stand in front: then what follows has as many tokens with them as without.
        if whole_ids[: len(ids)] == ids and torch.equal(ids_T[len(ids_T) - len(tail) :], tail):
            return len(ids_T) - len(tail)
        prefix_T = _process(model, images[:count], text)["input_ids"][0]
        if torch.equal(ids_T[: len(prefix_T)], prefix_T):
            return len(prefix_T)
        raise UserError(f"{model.name}: its tokenizer joins a prompt with its answer; answers alone cannot be learned")

    for number, (before, behind, count) in enumerate(spans):
        start = position(before, count)
        stop = len(ids_T) if number == len(spans) - 1 else position(behind, count)
        marks = [index for index in range(start, stop) if int(ids_T[index]) in ends]
        # What a template writes behind the end of an answer, such as a line end, is never generated.
        learned_T[start : marks[0] + 1 if marks else stop] = True
    return TuningRow(inputs, learned_T)


def _list_answers(model: ForeignMllm, images: Sequence[Image.Image], turns: Turns) -> list[tuple[str, str, int]]:
    """List for each answer the text in front of it, the text with it, and the images in them; check the template."""
    placed = any(IMAGE in text for _, text in turns)
    whole, spans = model.write_prompt(turns, len(images)), []
    for number, (role, _) in enumerate(turns):
        if role != "assistant":
            continue
        count = sum(text.count(IMAGE) for _, text in turns[:number]) if placed else len(images)
        before, behind = (model.write_prompt(turns[:stop], count) for stop in (number, number + 1))
        if not behind.startswith(before):
            raise UserError(
                f"{model.name}: its chat template does not write an answer behind the prompt for one; answers alone "
                "cannot be learned"
            )
        if not whole.startswith(behind):
            raise UserError(
                f"{model.name}: its chat template changes earlier turns when later ones follow; expected conversations "
                "of one question, or another template"
            )
        spans.append((before, behind, count))
    _check_marked(model, turns, len(images), spans)
    return spans


def _check_marked(model: ForeignMllm, turns: Turns, num_images: int, spans: Sequence[tuple[str, str, int]]) -> None:
    """Raise UserError if a template that marks what is generated marks other text than the answers."""
    template = model.processor.chat_template
    if not isinstance(template, str) or not _GENERATION.search(template):
        return
    from transformers.utils.chat_template_utils import render_jinja_template

    tokenizer = model.processor.tokenizer
    rendered: Any = render_jinja_template(
        [list_messages(turns, num_images)],
        chat_template=template,
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    # One conversation: its text, and where each marked part of it begins and ends.
    (text,), (marked,) = rendered
    answers = [(len(before), len(behind)) for before, behind, _ in spans]
    fits = len(marked) == len(answers) and all(
        # Blanks in front of an answer belong to either.
        start <= first and last <= stop and not text[start:first].strip()
        for (start, stop), (first, last) in zip(answers, marked, strict=False)
    )
    if not fits:
        raise UserError(f"{model.name}: its chat template marks other text as generated than stands behind its prompts")


def _end_with_mark(model: ForeignMllm, last: tuple[str, str, int]) -> str:
    """Return a whole conversation; one that no mark ends, as those of LLaVA-1.5, gets the tokenizer's."""
    before, whole, _ = last
    tokenizer = model.processor.tokenizer
    marks = [mark for mark in tokenizer.convert_ids_to_tokens(sorted(_list_ends(model))) if mark]
    return whole if any(mark in whole[len(before) :] for mark in marks) else whole.rstrip() + tokenizer.eos_token


def _list_ends(model: ForeignMllm) -> set[int]:
    """List the tokens that end an answer."""
    ids = getattr(model.model.generation_config, "eos_token_id", None)
    listed = {ids} if isinstance(ids, int) else set(ids or ())
    return listed | {model.processor.tokenizer.eos_token_id}


def _encode_suffix(model: ForeignMllm, images: list[Image.Image], turns: Turns) -> TuningRow:
    prompt = model.write_prompt(turns[:-1], len(images))
    inputs = _process(model, images, prompt, suffix=turns[-1][1])
    # The processor's own labels: -100 stands for what is not learned.
    return TuningRow(inputs, inputs.pop("labels")[0] != -100)


def _process(model: ForeignMllm, images: list[Image.Image], text: str, **options: Any) -> dict[str, Tensor]:
    with loading(model.name, kind="a conversation"):
        inputs = dict(model.processor(images=images or None, text=text, return_tensors="pt", **options))
    if not options:
        inputs.pop("labels", None)
    return inputs


class TuningSamples:
    """Conversations of a collection as `TuningRow`s, for a loader.

    Args:
        model: of the base; its weights are not read.
        max_positions: longest conversation in tokens; None: any.
    """

    def __init__(
        self,
        model: ForeignMllm,
        collection: Collection,
        conversations: Sequence[Conversation],
        *,
        max_positions: int | None,
    ) -> None:
        self.model, self.collection, self.conversations = model, collection, conversations
        self.max_positions = max_positions
        # Fast tokenizers are not to be used by two threads at once ("Already borrowed").
        self._lock = threading.Lock()
        self.rows = np.arange(len(conversations))

    def __len__(self) -> int:
        return len(self.conversations)

    def sample(self, row: int, epoch: int = 0, seed: int = 0) -> dict[str, Any]:
        """Return the row of a conversation; raise BadSample if it cannot be used."""
        return {"row": self.encode(row)}

    def encode(self, row: int, images_of: int | None = None) -> TuningRow:
        """Return a conversation as a row.

        Args:
            images_of: another conversation whose images stand in place of its own, as a control.

        Raises:
            BadSample: an image cannot be read, or the conversation is too long.
        """
        talk = self.conversations[row]
        keys = self.conversations[row if images_of is None else images_of].images
        try:
            images = [decode(self.collection.image_bytes(self.collection.find_row(key))) for key in keys]
            with self._lock:
                encoded = encode_conversation(self.model, images, talk)
        except (BadImage, UserError) as problem:
            raise BadSample(talk.id, str(problem)) from problem
        length = len(encoded.learned_T)
        if self.max_positions is not None and length > self.max_positions:
            raise BadSample(talk.id, f"{length} tokens; the base reads {self.max_positions}")
        return encoded

    def find_other(self, row: int) -> int | None:
        """Return the next conversation about as many images, none of them its own; None if there is none."""
        own, count = self.conversations[row].images, len(self.conversations)
        following = ((row + step) % count for step in range(1, count))
        fits = (
            other
            for other in following
            if len(self.conversations[other].images) == len(own)
            and not set(own) & set(self.conversations[other].images)
        )
        return next(fits, None) if own else None

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the rows as a list: images of one batch have other sizes and tokens in most families."""
        return {"rows": [sample["row"] for sample in samples]}
