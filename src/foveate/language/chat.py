"""Chat templates: turns become separately tokenized parts, each with its label.

Nothing is looked up afterwards: an answer is learned because its part says so, not because it was found again in the
tokens of the whole text. That search is where LLaVA's training code loses its labels ("tokenization mismatch").
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from foveate.core.errors import UserError, choose
from foveate.language.tokenizer import PLACEHOLDERS, Tokenizer
from foveate.language.vocabulary import ASSISTANT, END, SYSTEM, USER
from foveate.records.conversations import ROLES, Turn, find_turn_problem

IGNORE = -100
"""Label of a token that is not learned: torch's cross entropy leaves it out."""
_PLACEHOLDER = re.compile("|".join(map(re.escape, PLACEHOLDERS)))


class Part(NamedTuple):
    """Some tokens of a conversation.

    Attributes:
        ids: tokens. learned: they are labels: of an answer or its end mark.
        placeholder: `<image>` or `<region>`, whose one token is replaced by embeddings; None for text.
    """

    ids: tuple[int, ...]
    learned: bool
    placeholder: str | None = None


class EmptyLabelsError(UserError):
    """A training row in which nothing is learned; its loss would be 0 or NaN."""


@dataclass(frozen=True)
class Template:
    """What stands around the turns of a conversation.

    Attributes:
        name: of the template. start: before the first turn.
        headers: role -> text before a turn.
        ends: role -> text after a turn; of the assistant it is the mark that ends an answer, and learned.
        after_answer: text between an answer's end mark and the next turn; not learned.
        marks: special tokens in these texts. An end of None is the tokenizer's own end token.
        blank: a turn's text is tokenized with a blank in front, as names that are single tokens need.
        begin: token in front of the whole, where the tokenizer has it.
        behind_images: images stand in the turn that names them, with this between the last and the text; None: in front
            of all text, where several conversations read one copy of them.
    """

    name: str
    headers: Mapping[str, str]
    ends: Mapping[str, str | None]
    after_answer: str = ""
    start: str = ""
    marks: tuple[str, ...] = ()
    blank: bool = False
    begin: str = ""
    behind_images: str | None = None


TEMPLATES: Mapping[str, Template] = MappingProxyType(
    {
        # SmolLM2's own template puts a line "You are a helpful AI assistant named SmolLM ..." before a conversation
        # without a system turn: 20 tokens that a model which reads images need not pay for.
        "chatml": Template(
            "chatml",
            headers={role: f"<|im_start|>{role}\n" for role in ROLES},
            ends={"system": "<|im_end|>\n", "user": "<|im_end|>\n", "assistant": "<|im_end|>"},
            after_answer="\n",
            marks=("<|im_start|>", "<|im_end|>"),
        ),
        # For models that were never taught to chat, and for captions: question, line break, answer, end.
        "plain": Template(
            "plain", headers=dict.fromkeys(ROLES, ""), ends={"system": "\n", "user": "\n", "assistant": None}
        ),
        # Vicuna 1.1, LLaVA and Ferret, without their system sentences. Tokenizers of Llama put a blank in front of each
        # piece of text, so that none stands between these.
        "vicuna": Template(
            "vicuna",
            headers={"system": "", "user": "USER:", "assistant": "ASSISTANT:"},
            ends={"system": "", "user": "", "assistant": None},
            begin="<s>",
            behind_images="\n",
        ),
        # Marks of `foveate.language.vocabulary`: one in front of each turn, and an end mark behind answers.
        "words": Template(
            "words",
            headers={"system": SYSTEM, "user": USER, "assistant": ASSISTANT},
            ends={"system": "", "user": "", "assistant": END},
            marks=(SYSTEM, USER, ASSISTANT, END),
            blank=True,
        ),
    }
)


class Chat:
    """A template bound to a tokenizer.

    Raises:
        UserError: an unknown template, or the tokenizer lacks one of its marks.
    """

    def __init__(self, tokenizer: Tokenizer, template: str = "chatml") -> None:
        self.template = TEMPLATES[choose(template, TEMPLATES, "chat template")]
        self.tokenizer = tokenizer
        # A mark that is no token would be split into ordinary ones, which no model was trained on, without any error.
        missing = [mark for mark in self.template.marks if mark not in tokenizer.special]
        if missing:
            raise UserError(f"chat template '{template}': the tokenizer has no token {', '.join(missing)}")
        end = self.template.ends["assistant"]
        self.end: int = tokenizer.end if end is None else tokenizer.special[end]
        """Token that ends an answer."""
        # Without marks, a pattern that matches nowhere; an empty one would match everywhere.
        self._marks = re.compile("|".join(map(re.escape, self.template.marks)) or r"(?!)")

    def render(self, turns: Sequence[Turn], *, strict: bool = True) -> list[Part]:
        """Render a whole conversation for training: answers and their end marks are learned.

        Args:
            strict: check roles and texts; off where that was done, and a text that was only an image is empty now.

        Raises:
            UserError: roles do not alternate, it begins with the assistant, or a text is empty.
        """
        return self._render(turns, answered=True, strict=strict)

    def prompt(self, turns: Sequence[Turn], *, goes_on: bool = False, strict: bool = True) -> list[Part]:
        """Render a conversation up to where the assistant begins to answer.

        Args:
            turns: the last is a question.
            goes_on: they follow an answer (with its end mark) that the model has read already.
            strict: see `render`; a model's own answer may be empty, too.

        Raises:
            UserError: roles do not alternate, or a text is empty.
        """
        parts = self._render(turns, answered=False, strict=strict, goes_on=goes_on)
        return [*parts, *self._fixed(self.template.headers["assistant"])]

    def answer(self, text: str) -> list[Part]:
        """Encode an answer and its end mark, as they follow `prompt` in training."""
        return [*self._text(text, learned=True), Part((self.end,), True)]

    def _render(self, turns: Sequence[Turn], *, answered: bool, strict: bool, goes_on: bool = False) -> list[Part]:
        finding = find_turn_problem(turns, answered=answered) if strict else None
        if finding is not None:
            raise UserError(f"conversation: {finding.reason}: {finding.detail}")
        template = self.template
        parts = self._fixed(template.after_answer if goes_on else template.start)
        if template.begin in self.tokenizer.special and not goes_on:
            parts.insert(0, Part((self.tokenizer.special[template.begin],), False))
        for index, turn in enumerate(turns):
            # Labels are set here, by role: searching the finished row for answers may be off by a token.
            learned = turn.role == "assistant"
            header = template.headers[turn.role]
            if template.behind_images is not None and turn.text.startswith(PLACEHOLDERS):
                header += " "  # which the first piece of a text has from the tokenizer
            parts += self._fixed(header)
            if not learned:
                parts += [*self._text(turn.text, learned=False), *self._fixed(template.ends[turn.role] or "")]
                continue
            parts += self.answer(turn.text)
            # Behind the last answer nothing follows; a model never reads on there.
            if index < len(turns) - 1:
                parts += self._fixed(template.after_answer)
        return parts

    def _fixed(self, text: str) -> list[Part]:
        """Encode a text of the template, whose marks are tokens."""
        parts, position = list[Part](), 0
        for match in self._marks.finditer(text):
            parts += [self._plain(text[position : match.start()]), Part((self.tokenizer.special[match[0]],), False)]
            position = match.end()
        return [part for part in (*parts, self._plain(text[position:])) if part.ids]

    def _text(self, text: str, *, learned: bool) -> list[Part]:
        """Encode the text of a turn, whose placeholders are parts of their own."""
        if self.template.blank and text and not text.startswith(PLACEHOLDERS):
            text = f" {text}"
        parts, position = list[Part](), 0
        for match in _PLACEHOLDER.finditer(text):
            id = self.tokenizer.special[match[0]]
            parts += [self._plain(text[position : match.start()], learned), Part((id,), learned, match[0])]
            position = match.end()
        return [part for part in (*parts, self._plain(text[position:], learned)) if part.ids]

    def _plain(self, text: str, learned: bool = False) -> Part:
        return Part(tuple(self.tokenizer.encode(text)), learned)


def join_parts(parts: Sequence[Part]) -> tuple[list[int], list[int]]:
    """Join parts to one row: ids, and labels (ids of learned tokens, IGNORE elsewhere); placeholders are 1 token.

    Raises:
        EmptyLabelsError: nothing is learned.
    """
    ids = [id for part in parts for id in part.ids]
    labels = [id if part.learned and part.placeholder is None else IGNORE for part in parts for id in part.ids]
    if all(label == IGNORE for label in labels):
        raise EmptyLabelsError(f"conversation: nothing of its {len(ids)} tokens is learned; expected an answer")
    return ids, labels


def pad_rows(rows: Sequence[tuple[Sequence[int], Sequence[int]]], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pad training rows on the right: ids [B, T], labels [B, T], mask [B, T] (1 = a token).

    Padding is masked by position. By id, an end mark that is also the padding would never be learned, and the model
    never stop.
    """
    longest = max(len(ids) for ids, _ in rows)
    ids_BT = torch.full((len(rows), longest), pad)
    labels_BT, mask_BT = torch.full_like(ids_BT, IGNORE), torch.zeros_like(ids_BT)
    for row, (ids, labels) in enumerate(rows):
        ids_BT[row, : len(ids)] = torch.tensor(list(ids))
        labels_BT[row, : len(ids)] = torch.tensor(list(labels))
        mask_BT[row, : len(ids)] = 1
    return ids_BT, labels_BT, mask_BT


# What a chat template writes around a question about an image, so that other tokens can take the image's place.


# Private characters, which no chat template looks at: where the text of a turn is filled in.
_TEXT = "\ue000\ue001"


@dataclass(frozen=True)
class ChatFrame:
    """What a model's chat template writes around the text of a question.

    Attributes:
        head, tail: before the question and behind it. middle: between video and text.
        leads: the video stands in front of everything, and the text is one line, as in our training.
    """

    head: str = "USER: "
    middle: str = "\n"
    tail: str = " ASSISTANT:"
    leads: bool = False


def frame_of_chat(chat: Chat) -> ChatFrame:
    """Return what a template of `language.chat` writes around a question."""
    template = chat.template
    blank = " " if template.blank else ""
    head = f"{template.start}{template.headers['user']}{blank}"
    return ChatFrame(head, "", f"{template.ends['user'] or ''}{template.headers['assistant']}", leads=True)


def frame_of_template(
    tokenizer: Any,
    template: str | None,
    *,
    image: int | None,
    name: str,
    around: tuple[str, str] = ("", ""),
    part: str = "image",
) -> ChatFrame:
    """Return what a chat template of transformers writes around a question.

    Args:
        tokenizer: of transformers, or None. template: Jinja; None = LLaVA's frame, which has no template.
        image: id of its image token. around: marks that the processor writes around the tokens of an image.
        part: what the turn has beside its text: "image" or "video".

    Raises:
        UserError: the template fails on a turn with an image and a text, or leaves the text out.
    """
    if tokenizer is None or template is None:
        return ChatFrame()
    from jinja2 import TemplateError

    messages = [{"role": "user", "content": [{"type": part}, {"type": "text", "text": _TEXT}]}]
    try:
        text = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True
        )
    except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{name}: its chat template fails on an image with a text ({error})") from error
    if text.count(_TEXT) != 1:
        raise UserError(f"{name}: its chat template writes the text of a question {text.count(_TEXT)} times")
    before, tail = text.split(_TEXT)
    mark = None if image is None else tokenizer.convert_ids_to_tokens(image)
    head, _, middle = before.partition(mark) if mark and mark in before else (before, "", "")
    # Many templates write it, and most tokenizers add it.
    if tokenizer.bos_token and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]:
        head = head.removeprefix(tokenizer.bos_token)
    return ChatFrame(head + around[0], (around[1] + middle) or "\n", tail)
