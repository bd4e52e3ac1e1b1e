"""Rewriting by a language model behind an OpenAI-compatible endpoint, with the versioned prompts of the wing.

Answers are kept, one JSON line each, so that a run that was stopped does not ask again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from foveate.caption.answers import parse_captions, serialize
from foveate.caption.backends.http import HttpCaptioner, HttpSettings
from foveate.caption.captioner import CaptionAnswer, CaptionRequest
from foveate.caption.prompts import FORMS, MAX_TOKENS, Prompt, prompt_for
from foveate.caption.small.recipe import CaptionDataSettings
from foveate.caption.small.rewriting import REWRITTEN, Answers
from foveate.core.errors import UserError
from foveate.core.progress import track
from foveate.core.recipes import validate

_FILE = "rewrites.jsonl"
_AT_A_TIME = 256


class Llm:
    """See `foveate.caption.small.rewriting.Rewriter`."""

    def __init__(self, settings: HttpSettings, *, folder: Path | None) -> None:
        self.settings = settings
        self._short, self._long = prompt_for("rewrite_short"), prompt_for("rewrite_long")
        hashes = " ".join(f"{one.id} {one.sha256[:12]}" for one in (self._short, self._long))
        self.provenance = f"llm {settings.model} {settings.revision} {hashes}"
        self._path = None if folder is None else folder / _FILE
        self._known = self._read()

    def merge(self, materials: Sequence[tuple[Sequence[str], Sequence[str]]]) -> list[Answers]:
        """One question per image and format."""
        asked = [
            (self._short, kind, self._short.fill(sources={"captions": list(short), "text": list(written)}, form=form))
            for short, written in materials
            if short
            for kind, form in FORMS.items()
            if kind in REWRITTEN
        ]
        answers = iter(self._ask(asked))
        return [{kind: next(answers) for kind in REWRITTEN} if short else {} for short, _ in materials]

    def formats(self, descriptions: Sequence[str]) -> list[Answers]:
        """One question per description, about all formats."""
        forms = json.dumps({kind: FORMS[kind] for kind in REWRITTEN})
        asked = [(self._long, "dsc_plus", self._long.fill(sources=text, forms=forms)) for text in descriptions]
        return [_split(answer) for answer in self._ask(asked)]

    def _read(self) -> dict[str, str]:
        found: dict[str, str] = {}
        if self._path is None or not self._path.is_file():
            return found
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # the last line of a run that was killed
                continue
            found[row["question"]] = row["answer"]
        return found

    def _question(self, prompt: str) -> str:
        return hashlib.sha256(f"{self.provenance}\0{prompt}".encode()).hexdigest()

    def _ask(self, asked: Sequence[tuple[Prompt, str, str]]) -> list[CaptionAnswer]:
        questions = [self._question(text) for _, _, text in asked]
        different = dict(zip(questions, asked, strict=True))
        missing = [(question, one) for question, one in different.items() if question not in self._known]
        errors: dict[str, CaptionAnswer] = {}
        parts = range(0, len(missing), _AT_A_TIME)
        for start in track(parts, description=f"rewriting, {_AT_A_TIME} at a time") if missing else ():
            part = missing[start : start + _AT_A_TIME]
            answers = asyncio.run(self._send([one for _, one in part]))
            good = {}
            for (question, _), answer in zip(part, answers, strict=True):
                if answer.error:
                    errors[question] = answer
                else:
                    good[question] = answer.text
            self._keep(good)
        return [errors.get(question) or CaptionAnswer(self._known[question]) for question in questions]

    async def _send(self, asked: Sequence[tuple[Prompt, str, str]]) -> list[CaptionAnswer]:
        captioner = HttpCaptioner(self.settings)
        requests = [
            CaptionRequest(
                key="",
                kind=kind,
                prompt_id=prompt.id,
                prompt=text,
                image=b"",
                media_type="",
                alt="",
                max_tokens=2 * MAX_TOKENS[kind],
                temperature=0.0,
                seed=0,
            )
            for prompt, kind, text in asked
        ]
        try:
            return list(await asyncio.gather(*(captioner.caption(one) for one in requests)))
        finally:
            await captioner.close()

    def _keep(self, good: dict[str, str]) -> None:
        self._known |= good
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as handle:
            for question, answer in good.items():
                handle.write(json.dumps({"question": question, "answer": answer}) + "\n")


def _split(answer: CaptionAnswer) -> Answers:
    """The answers about single formats in an answer about all of them."""
    if answer.error:
        return dict.fromkeys(REWRITTEN, answer)
    read = parse_captions(answer.text, REWRITTEN)
    return {
        kind: CaptionAnswer(error=one.error) if one.caption is None else CaptionAnswer(serialize(one.caption))
        for kind, one in read.items()
    }


def open_rewriter(settings: CaptionDataSettings, *, folder: Path | None) -> Llm:
    """The endpoint that `data.llm` describes: the settings of the backend `http`.

    Raises:
        UserError: when no model is named, or a field is unknown.
    """
    if not settings.llm.get("model"):
        raise UserError("data.rewriter 'llm' needs data.llm.model, and data.llm.endpoint where it is served")
    # The answer's form differs between questions: none is sent, and the parser reads what comes.
    content = {"structured": "never", **settings.llm}
    return Llm(validate(HttpSettings, content, where="field data.llm"), folder=folder)
