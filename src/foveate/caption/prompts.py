"""Versioned prompt templates: for each format, for retries, rewriting and judging.

A template has an id with a version ("dsc-1"): whoever changes a letter of it gives it a new one. What goes into the
provenance of a caption is the id and the SHA-256 of the rendered template without image and alt-text. All wordings
are our own; Lai et al. 2024 did not publish theirs.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from foveate.core.errors import UserError, choose
from foveate.records.caption_formats import ANSWER, CAPTION_FORMATS

# The mixture's `FORMATS` has alt before them.
CAPTION_KINDS = tuple(CAPTION_FORMATS)
# Letters of an alt-text that the captioner sees: some pages put whole articles into it.
MAX_ALT_LETTERS = 1000
# Allow only letters and blanks: the language is put into the template, where braces or sentences would do harm.
_LANGUAGE = re.compile(r"[^\W\d_]+(?:[ -][^\W\d_]+){0,4}")

_TEXTS: Mapping[str, str] = MappingProxyType(
    {
        **{
            f"{kind}-{version}": text
            for kind, row in CAPTION_FORMATS.items()
            for version, text in enumerate(row.prompts, 1)
        },
        "shorten-1": (
            "The following caption of this picture, a JSON string, is too long: {caption} Write it again in {sentences}"
            " of at most {words} words in all. Keep the main subject, drop the least important facts, add none. "
            f"Write {{language}}. Use no line breaks. {ANSWER}"
        ),
        "lengthen-1": (
            "The following caption of this picture, a JSON string, is too short: {caption} Write it again with more "
            "of what can be seen: objects, colours, materials, counts, positions, background, light. At least {words} "
            f"words in all. Keep its facts and add nothing that is not visible. Write {{language}}. Use no line "
            f"breaks. {ANSWER}"
        ),
        "rewrite_short-1": (
            "Five people captioned one picture; their captions, and text that was read in it, follow as JSON: "
            "{sources} Merge them into one caption of this form: {form} Use only facts that are in them, keep out what "
            f"they disagree about, and add nothing. Write {{language}}. Use no line breaks. {ANSWER}"
        ),
        "rewrite_long-1": (
            "A person described a picture; the description follows as a JSON string: {sources} Write it in each of "
            "these forms: {forms} Keep its facts and its doubts; only drop or reorder, and add nothing. Write "
            "{language}. Use no line breaks. Answer with one JSON object and nothing else: "
            '{{"captions": {{"name of the form": "..."}}}}'
        ),
        "split-1": (
            "A caption follows as a JSON string: {caption} Split it into short statements that can be checked one by "
            "one. Each has exactly one fact and can be understood alone: put the thing that is meant in place of words "
            "such as it or they. Add nothing and leave nothing out. Answer with one JSON object and nothing else: "
            '{{"assertions": ["..."]}}'
        ),
        "verify-1": (
            "Look at the picture and judge each of these statements, a JSON list: {assertions} A statement is "
            "supported if the picture shows it, contradicted if the picture shows otherwise, unverifiable if the "
            "picture does not say. Answer with one JSON object and nothing else, with one verdict per statement in the "
            'same order: {{"verdicts": ["supported", "contradicted", "unverifiable"]}}'
        ),
    }
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A template in one language, still without what belongs to one image.

    `sha256` is that of `text`: it changes with every letter of the template and with the language, and with nothing
    else.
    """

    id: str
    language: str
    text: str = field(init=False)
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        choose(self.id, _TEXTS, "prompt")
        if not _LANGUAGE.fullmatch(self.language):
            raise UserError(f"language must be a name of letters and spaces, such as 'English' (got {self.language!r})")
        rendered = _TEXTS[self.id].replace("{language}", self.language)
        object.__setattr__(self, "text", rendered)
        object.__setattr__(self, "sha256", hashlib.sha256(rendered.encode()).hexdigest())

    def fill(self, **values: object) -> str:
        """Fill the template for one image.

        Texts and lists become JSON, so that their content is no instruction.
        """
        return self.text.format(**{name: _format_value(name, value) for name, value in values.items()})


def _format_value(name: str, value: object) -> str:
    if name == "alt":
        value = str(value)[:MAX_ALT_LETTERS]
    # Our own words and numbers go in as they are; whatever comes from outside is quoted.
    return str(value) if name in ("words", "sentences", "form", "forms") else json.dumps(value, ensure_ascii=False)


def prompt_ids() -> list[str]:
    """List all templates, older versions included."""
    return list(_TEXTS)


def find_prompt(kind: str, *, language: str = "English") -> Prompt:
    """Return the newest template of a format or a purpose (shorten, split, verify, ...).

    Example:
        >>> prompt = find_prompt("ssc", language="German")
        >>> prompt.id, "German" in prompt.text
        ('ssc-1', True)
    """
    versions = [name for name in _TEXTS if name.rpartition("-")[0] == kind]
    if not versions:
        choose(kind, sorted({name.rpartition("-")[0] for name in _TEXTS}), "prompt")
    # Compare numbers: as text, version 10 would come before 9.
    return Prompt(max(versions, key=lambda name: int(name.rpartition("-")[2])), language)


def response_schema(kind: str, *, forms: Sequence[str] = ()) -> dict[str, Any]:
    """Build the JSON schema of a response to `find_prompt(kind)`."""
    text = {"type": "string"}
    texts = {"type": "array", "items": text}
    if kind == "split":
        fields: dict[str, Any] = {"assertions": texts}
    elif kind == "verify":
        verdict = {"type": "string", "enum": ["supported", "contradicted", "unverifiable"]}
        fields = {"verdicts": {"type": "array", "items": verdict}}
    elif kind == "rewrite_long":
        fields = {"captions": _object(dict.fromkeys(forms or CAPTION_KINDS, text))}
    elif kind in CAPTION_FORMATS and CAPTION_FORMATS[kind].without_alt:
        fields = {"caption": text, "used_alt_facts": texts}
    else:
        fields = {"caption": text}
    return _object(fields)


def _object(fields: Mapping[str, Any]) -> dict[str, Any]:
    # Every field required and no others: what OpenAI's strict mode demands.
    return {"type": "object", "properties": dict(fields), "required": list(fields), "additionalProperties": False}
