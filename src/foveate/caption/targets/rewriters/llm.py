"""Rewriting by a language model behind an OpenAI-compatible endpoint, with the versioned prompts of the wing.

Responses are stored, one JSON line each, so that a run that was stopped does not pay for them again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from foveate.caption.captioner import CaptionResponse
from foveate.caption.prompts import FORMS, MAX_TOKENS, Prompt, find_prompt, response_schema
from foveate.caption.response_parser import parse_captions, serialize
from foveate.caption.targets.rewriting import REWRITTEN, Rewrites
from foveate.caption.targets.settings import TargetSettings
from foveate.chat.client import ChatClient, ChatSettings
from foveate.chat.protocol import ChatMessage, ChatRequest, ChatResponse, ResponseSchema
from foveate.core.errors import UserError
from foveate.core.files import name_in_errors
from foveate.core.progress import track
from foveate.core.recipes import validate
from foveate.core.text_tables import iterate_json_lines

_FILE = "rewrites.jsonl"
# Requests between two writes to the store: what a kill costs at most.
_REQUESTS_PER_PART = 256


@dataclass(frozen=True, slots=True)
class _Question:
    """A filled prompt about one format; `format` decides how long the response may be."""

    prompt: Prompt
    format: str
    text: str

    def request(self) -> ChatRequest:
        purpose = self.prompt.id.rpartition("-")[0]
        # Twice the format's tokens: a rewrite repeats names and JSON that a caption of the same form lacks.
        return ChatRequest(
            (ChatMessage(self.text),),
            max_tokens=2 * MAX_TOKENS[self.format],
            schema=ResponseSchema(purpose, response_schema(purpose)),
        )


class ResponseStore:
    """Texts of responses by the hash of their question, in memory and as JSON lines in a file.

    Args:
        path: where they are stored; None keeps them in memory only.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._texts = self._load()

    def __contains__(self, question: str) -> bool:
        return question in self._texts

    def __getitem__(self, question: str) -> str:
        return self._texts[question]

    def _load(self) -> dict[str, str]:
        texts: dict[str, str] = {}
        if self._path is None or not self._path.is_file():
            return texts
        for _, row in iterate_json_lines(self._path):
            # The last line of a run that was killed may be cut off.
            if isinstance(row, dict):
                texts[row["question"]] = row["answer"]
        return texts

    def update(self, texts: Mapping[str, str]) -> None:
        """Add responses, and append them to the file."""
        self._texts |= texts
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with name_in_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            for question, text in texts.items():
                file.write(json.dumps({"question": question, "answer": text}) + "\n")


class Llm:
    """See `foveate.caption.targets.rewriting.Rewriter`."""

    def __init__(self, settings: ChatSettings, *, folder: Path | None) -> None:
        self.settings = settings
        self._short, self._long = find_prompt("rewrite_short"), find_prompt("rewrite_long")
        hashes = " ".join(f"{prompt.id} {prompt.sha256[:12]}" for prompt in (self._short, self._long))
        self.provenance = f"llm {settings.model} {settings.revision} {hashes}"
        self._store = ResponseStore(None if folder is None else folder / _FILE)

    def merge(self, materials: Sequence[tuple[Sequence[str], Sequence[str]]]) -> list[Rewrites]:
        """Ask one question per image and format."""
        questions = [
            _Question(
                self._short, kind, self._short.fill(sources={"captions": list(short), "text": list(written)}, form=form)
            )
            for short, written in materials
            if short
            for kind, form in FORMS.items()
            if kind in REWRITTEN
        ]
        responses = iter(self._ask(questions))
        return [{kind: next(responses) for kind in REWRITTEN} if short else {} for short, _ in materials]

    def formats(self, descriptions: Sequence[str]) -> list[Rewrites]:
        """Ask one question per description, about all formats."""
        forms = json.dumps({kind: FORMS[kind] for kind in REWRITTEN})
        # Asked as dsc_plus, which has the largest token limit, because one response holds all formats.
        questions = [
            _Question(self._long, "dsc_plus", self._long.fill(sources=text, forms=forms)) for text in descriptions
        ]
        return [_split_formats(response) for response in self._ask(questions)]

    def _hash(self, prompt: str) -> str:
        # `provenance` has model, revision and prompts, so that another model does not reuse these responses.
        return hashlib.sha256(f"{self.provenance}\0{prompt}".encode()).hexdigest()

    def _ask(self, questions: Sequence[_Question]) -> list[CaptionResponse]:
        hashes = [self._hash(question.text) for question in questions]
        # Equal questions are asked once.
        unique = dict(zip(hashes, questions, strict=True))
        missing = [(name, question) for name, question in unique.items() if name not in self._store]
        errors: dict[str, CaptionResponse] = {}
        parts = range(0, len(missing), _REQUESTS_PER_PART)
        for start in track(parts, description=f"rewriting, {_REQUESTS_PER_PART} at a time") if missing else ():
            part = missing[start : start + _REQUESTS_PER_PART]
            responses = asyncio.run(self._send([question for _, question in part]))
            texts = {}
            for (name, _), response in zip(part, responses, strict=True):
                if response.error:
                    errors[name] = CaptionResponse(response.text, response.error, response.final)
                else:
                    texts[name] = response.text
            self._store.update(texts)
        return [errors.get(name) or CaptionResponse(self._store[name]) for name in hashes]

    async def _send(self, questions: Sequence[_Question]) -> list[ChatResponse]:
        # Opened anew for each part: connections belong to the event loop of one `asyncio.run`.
        client = ChatClient(self.settings)
        try:
            return list(await asyncio.gather(*(client.complete(question.request()) for question in questions)))
        finally:
            await client.close()


def _split_formats(response: CaptionResponse) -> Rewrites:
    """Split a response about all formats into one for each."""
    if response.error:
        return dict.fromkeys(REWRITTEN, response)
    parsed = parse_captions(response.text, REWRITTEN)
    return {
        kind: CaptionResponse(error=caption.error)
        if caption.caption is None
        else CaptionResponse(serialize(caption.caption))
        for kind, caption in parsed.items()
    }


def open_rewriter(settings: TargetSettings, *, folder: Path | None) -> Llm:
    """Open the endpoint that `llm` describes (fields of `foveate.chat.client.ChatSettings`).

    Raises:
        UserError: no model is named, or a field is unknown.
    """
    if not settings.llm.get("model"):
        raise UserError("rewriter 'llm' needs llm.model, and llm.endpoint where it is served")
    # The schema of prompts about several formats lists all of them, afc too, which is not asked for here: by default
    # none is sent, and the parser reads what comes.
    content = {"structured": "never", **settings.llm}
    return Llm(validate(ChatSettings, content, where="field llm"), folder=folder)
