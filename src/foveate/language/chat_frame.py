"""What a chat template writes around a question about an image, so that other tokens can take the image's place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from foveate.core.errors import UserError
from foveate.language.chat import Chat

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


def frame_of_template(tokenizer: Any, template: str | None, *, image: int | None, name: str) -> ChatFrame:
    """Return what a chat template of transformers writes around a question.

    Args:
        tokenizer: of transformers, or None. template: Jinja; None = LLaVA's frame, which has no template.
        image: id of its image token.

    Raises:
        UserError: the template fails on a turn with an image and a text, or leaves the text out.
    """
    if tokenizer is None or template is None:
        return ChatFrame()
    from jinja2 import TemplateError

    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": _TEXT}]}]
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
    return ChatFrame(head, middle or "\n", tail)
