"""Prompts of video questions: a task, a sentence about the input, the question, and a start of the answer.

The structure is the paper's (Section 4.5), the wording is ours. The official wording is read from the official
`prompt.py`, whose texts are recognized by their sha256: they are not part of this package. What a user writes is filled
in as it is: a mark in it is text.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from foveate.core.errors import UserError
from foveate.language.chat import ChatFrame
from foveate.language.tokenizer import Piece
from foveate.multimodal.choose import list_letters
from foveate.records.rows import clean_text

# Hash of each official template, filled with `_PROBE`.
FINGERPRINTS = {
    "9323432db0cfba4ede8267430495cea9aab8b1941ac05ba41f19f6a86a25ead9": "image_seq_v3",
    "a1f3df70be377157f5b6328df1690eaffb5cffb1d0dc32aa1612b2fd7c9d4e4b": "image_seq_34b_v3",
    "3428168041b6ddcff0933b37e6bbf32bde4eec39f91798b916d8a7a82d9f028e": "multiple_choice_allvideo_v4",
    "503e2f95855f28c2b178e305521c619ca0557e6024d1779d4e6d9b3f3bdd602b": "multiple_choice_allvideo_34b_v4",
}
_PROBE = ("What is the person doing?", ("cooking", "reading a book", "running", "sleeping", "singing"))
_SLOT = re.compile(r"(\{video\}|\{question\}|\{options\}|\{answer\})")


class VideoPrompt(NamedTuple):
    """The text in front of the video and behind it; the answer goes on where it ends."""

    before: tuple[Piece, ...]
    after: tuple[Piece, ...]


@dataclass(frozen=True)
class PromptTemplate:
    """A text with `{video}`, `{question}`, `{options}` and, where the answer begins, `{answer}`.

    Attributes:
        framed: the model's chat template stands around it; else it is the whole prompt.
    """

    name: str
    text: str
    framed: bool = True

    def fill(self, frame: ChatFrame, question: str, options: Sequence[str] = ()) -> VideoPrompt:
        """Fill in a question and its options; nothing in them is a slot or a mark."""
        values = {"{question}": question, "{options}": write_options(options)}
        parts: dict[str, list[Piece]] = {"{start}": [], "{video}": [], "{answer}": []}
        part = "{start}"
        # The template is split before anything is filled in, so that a slot name in a user's text stays text.
        for piece in _SLOT.split(self.text):
            if piece in parts:
                part = piece
            elif piece:
                parts[part].append(Piece(values.get(piece, piece), piece in values))
        before, after, answer = parts.values()
        if not self.framed:
            return VideoPrompt(tuple(before), (*after, *answer))
        # The start of the answer must not run into the last word of the frame, as in "ASSISTANT:".
        tail = Piece(frame.tail if not answer or frame.tail[-1:].isspace() else f"{frame.tail} ")
        if frame.leads:
            line = [Piece(" ".join(text.split()), is_user) for text, is_user in (*before, *after)]
            spaced = [part for piece in line if piece.text for part in (Piece(" "), piece)][1:]
            return VideoPrompt((), (Piece(frame.head), *spaced, tail, *answer))
        return VideoPrompt((Piece(frame.head), *before), (Piece(frame.middle), *after, tail, *answer))


@dataclass(frozen=True)
class Prompts:
    """Templates of open questions and of questions with options."""

    ask: PromptTemplate
    choose: PromptTemplate

    def fill(self, frame: ChatFrame, question: str, options: Sequence[str] = ()) -> VideoPrompt:
        """Fill in a question, with options or none; raise UserError where a text is empty."""
        if not options:
            return self.ask.fill(frame, check_question(question))
        return self.choose.fill(frame, check_question(question), check_choices(options, distinct=False))


VIDEO = Prompts(
    PromptTemplate(
        "video",
        "{video}The images are frames of one video in the order of time. Say briefly what happens in it, with the "
        "people, things and events that matter.\nQuestion: {question}{answer}Answer: In the video,",
    ),
    PromptTemplate(
        "video",
        # The task stands behind the video, so that both prompts begin alike and the clip is read once.
        "{video}The images are frames of one video in the order of time. Choose the option that answers the question "
        "best.\nQuestion: {question}\nOptions:\n{options}Give the letter of the best option alone.{answer}"
        "Best option: (",
    ),
)
PLAIN = Prompts(
    PromptTemplate("plain", "{video}{question}"),
    PromptTemplate("plain", "{video}{question}\n{options}{answer}("),
)
PROMPTS = {"video": VIDEO, "plain": PLAIN}


def check_question(question: str) -> str:
    """Return a question without blanks around it; raise UserError where nothing is left."""
    text = clean_text(question)
    if not text:
        raise UserError("question: it is empty; expected a text")
    return text


def check_choices(options: Sequence[str], *, distinct: bool = True) -> list[str]:
    """Return the options, each on one line; raise UserError if there are fewer than two, or equal ones.

    Args:
        distinct: False where only a letter is written: some published questions have two equal options.
    """
    # On one line, since a line break in an option would look like the start of the next one.
    texts = [" ".join(clean_text(option).split()) for option in options]
    if len(texts) < 2 or (distinct and len(set(texts)) < len(texts)) or not all(texts):
        raise UserError(f"options: expected at least two different texts (got {', '.join(map(repr, texts)) or 'none'})")
    return texts


def write_options(options: Sequence[str]) -> str:
    """Write options as lines "(A) text".

    >>> write_options(["red", "blue"])
    '(A) red\\n(B) blue\\n'
    """
    return "".join(f"({letter}) {option}\n" for letter, option in zip(list_letters(options), options, strict=True))


def find_prompts(source: str | Path, *, chatml: bool) -> Prompts:
    """Return the prompts of a name, or read them from a file.

    Args:
        source: one of `PROMPTS`; the official `prompt.py`; or a text file with {video}, {question} and, for options,
            {options}, which the model's chat template stands around.
        chatml: the model has marks of ChatML, so the official texts of 34B are taken.

    Raises:
        UserError: the file cannot be read, is of no known text, or lacks a slot.
    """
    if str(source) in PROMPTS:
        return PROMPTS[str(source)]
    path = Path(source)
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompt '{source}': cannot be read; expected {', '.join(PROMPTS)} or a text file") from error
    if path.suffix == ".py":
        return _read_official(path, content, chatml=chatml)
    for slot in ("{video}", "{question}"):
        if content.count(slot) != 1:
            raise UserError(f"{path}: {slot} is there {content.count(slot)} times; expected once")
    # The chat template writes what stands between the video and the text.
    template = PromptTemplate(path.name, re.sub(r"(?<=\{video\})\s+", "", content.strip()))
    return Prompts(template, template)


def _read_official(path: Path, content: str, *, chatml: bool) -> Prompts:
    try:
        # Parsed, never imported: the file is code from elsewhere.
        literals = [node.value for node in ast.walk(ast.parse(content)) if isinstance(node, ast.Constant)]
    except SyntaxError as error:
        raise UserError(f"{path}: line {error.lineno} is no Python; expected the official prompt.py") from error
    templates = {}
    for text in literals:
        if isinstance(text, str) and text.count("<image>") == 1 and text.count("%s") in (1, 2):
            template = PromptTemplate("", _to_slots(text), framed=False)
            if name := recognize(template):
                templates[name] = PromptTemplate(name, template.text, framed=False)
    names = [name for name in FINGERPRINTS.values() if ("34b" in name) == chatml]
    if missing := [name for name in names if name not in templates]:
        raise UserError(
            f"{path}: no text with the fingerprint of {', '.join(missing)}; expected the official prompt.py"
        )
    return Prompts(*(templates[name] for name in names))


def _to_slots(text: str) -> str:
    text = text.replace("<image>", "{video}").replace("%s", "{question}", 1)
    return text.replace("%s", "{options}", 1)


def recognize(template: PromptTemplate) -> str:
    """Return the name of the official prompt that a whole text is, "" where it is none."""
    prompt = template.fill(ChatFrame(), *_PROBE)
    before, after = ("".join(piece.text for piece in pieces) for pieces in prompt)
    return FINGERPRINTS.get(hashlib.sha256(f"{before}<image>{after}".encode()).hexdigest(), "")
