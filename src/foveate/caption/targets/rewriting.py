"""Rewrite texts of people into targets of the caption formats, by rules or a language model; add facts of an AltText.

A rewriter is a row of `REWRITERS`. The rules work offline: they select, drop and reorder sentences, and add nothing but
a frame. The language model is behind an OpenAI-compatible endpoint and gets the versioned prompts of the wing; its
responses are stored, one JSON line each, so that a run that was stopped does not pay for them again.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from foveate.caption.captioner import CaptionResponse
from foveate.caption.lengths import count_clip_tokens
from foveate.caption.prompts import Prompt, find_prompt, response_schema
from foveate.caption.response_parser import parse_captions, serialize
from foveate.caption.settings import TargetSettings
from foveate.chat.client import ChatClient, ChatSettings
from foveate.chat.protocol import ChatMessage, ChatRequest, ChatResponse, ResponseSchema
from foveate.core.errors import UserError, choose
from foveate.core.files import name_in_errors
from foveate.core.progress import track
from foveate.core.recipes import validate
from foveate.core.text_tables import iterate_json_lines
from foveate.records.caption_formats import CAPTION_FORMATS
from foveate.records.text import singular, split_sentences, split_words

# Words of layout and grammar, not of content: a rewriter may use them although no input has them.
FRAME_WORDS = frozenset(
    "a an the this that these those there it its one of and or but with without on in at by to from for into over "
    "under above below beside between behind near next inside outside around along as is are was were be been can "
    "has have not no nothing only also another other both each all some two three four five six picture image "
    "photograph photo drawing shot view scene square filled edge edges show shows shown seen left right upper "
    "lower middle centre center top bottom side part corner front back background foreground ground stand stands "
    "lie lies large small largest smallest size named thing things word words written writing text read say says "
    "about outline overlapping drawn plain pale colour color style group belong belongs alone draw photography".split()
)

# Formats that are rewritten; afc is made from dsc and the AltText.
REWRITTEN = tuple(kind for kind, row in CAPTION_FORMATS.items() if not row.without_alt)
Rewrites = dict[str, CaptionResponse]
_SAME = 0.9  # Jaccard index of words above which two captions say the same
_DSC_TOKENS = 60  # the format allows 75; the rest is for afc, which adds facts of the AltText to a dsc
_FILE = "rewrites.jsonl"
# Requests between two writes to the store: what a kill costs at most.
_REQUESTS_PER_PART = 256


class Rewriter(Protocol):
    """Writes targets as captioners respond: raw text that has to be parsed, or an error.

    Attributes:
        provenance: name of the rewriter, its model and its prompts.
    """

    provenance: str

    def merge(self, materials: Sequence[tuple[Sequence[str], Sequence[str]]]) -> list[Rewrites]:
        """Rewrite short captions and recognized text of each image into formats (stage 1)."""
        ...

    def formats(self, descriptions: Sequence[str]) -> list[Rewrites]:
        """Rewrite one full description of each image into formats (stage 2)."""
        ...


# Cached, because every rewrite is compared with all inputs of its image: the same texts come up repeatedly.
@functools.lru_cache(maxsize=65_536)
def content_words(text: str) -> frozenset[str]:
    """Return the words (singular, lower case) that name the contents of an image.

    >>> sorted(content_words("Two red apples are on the left."))
    ['apple', 'red']
    """
    singulars = {singular(word) for word in split_words(text) if word not in FRAME_WORDS}
    return frozenset(singulars - FRAME_WORDS)


def new_words(target: str, inputs: Iterable[str]) -> frozenset[str]:
    """Return content words of a target that none of its inputs has: inventions of the rewriter."""
    return content_words(target) - set[str]().union(*(content_words(text) for text in inputs))


def make_text_sentence(lines: Sequence[str]) -> str:
    """Put recognized text into a sentence."""
    # Double quotes mark the drawn words, so the text itself must not have any.
    text = " ".join(" ".join(lines).replace('"', "'").split())
    noun = "word" if len(text.split()) == 1 else "words"
    return f'The {noun} "{text}" {"is" if noun == "word" else "are"} written in the picture.'


def fuse(dsc: str, facts: Sequence[str], *, alt: str, max_tokens: int) -> str:
    """Append facts of an AltText to a descriptive caption as plain sentences.

    Sentences about what the AltText mentions come right after the opening; unrelated ones at the end are dropped until
    the text has at most `max_tokens` CLIP tokens.
    """
    opening, *others = split_sentences(dsc)
    alt_words = content_words(alt)
    others.sort(key=lambda sentence: not content_words(sentence) & alt_words)  # stable: the order is kept otherwise
    added = [f"The picture is about {fact}." for fact in facts]
    while others and sum(map(count_clip_tokens, [opening, *others, *added])) > max_tokens:
        others.pop()
    return " ".join([opening, *others, *added])


_SEPARATORS = re.compile(r",|;|\||:| - | – | & |\band\b|[()\[\]]")


def find_names(alt: str, known: Iterable[str]) -> tuple[str, ...]:
    """Find proper names and numbers of an AltText that no known text has: facts that the image does not show.

    A name is a run of capitalized words or numbers. In AltTexts in title or upper case names look like other words:
    only numbers are returned.

    >>> find_names("the old market of Brennau, 1967", ["A market."]), find_names("Red Apple Tree", ["An apple."])
    (('Brennau', '1967'), ())
    """
    known_words = set[str]().union(*(content_words(text) for text in known))
    tokens = [token for token in alt.split() if token[:1].isalpha()]
    # Title case: more than 60 % are capitalized, which sentences with names hardly reach.
    is_title = sum(token[0].isupper() for token in tokens) > 0.6 * len(tokens) and len(tokens) > 1
    names: list[str] = []
    for piece_index, piece in enumerate(_SEPARATORS.split(alt)):
        run: list[str] = []
        for index, token in enumerate([*piece.split(), ""]):  # "" ends the last run
            bare = token.strip(".,!?\"'")
            # The first word of a text is capitalized anyway.
            is_capital = bare[:1].isupper() and not is_title and (index > 0 or piece_index > 0)
            is_number = bare.isdigit() and 2 <= len(bare) <= 4  # years and counts; longer ones are ids
            if bare and (is_capital or is_number) and not content_words(bare) <= known_words:
                run.append(bare)
            elif run:
                names.append(" ".join(run))
                run = []
    return tuple(dict.fromkeys(names))


_ARTICLE = re.compile(r"^(A|An|The|Two|Three|Four|Several|Some|Many)\s")
_KIND_OF_IMAGE = re.compile(
    r"^(?:an?|the)\s(?:[\w-]+\s){0,4}(?:photograph|photo|picture|image|drawing|view|shot|close-up|painting|collage)"
    r"(?:,[^,]*,)?\s(?:of|that\sshows|showing|with)\s",
    re.IGNORECASE,
)
_LIST_ITEM = re.compile(r",\s(?:and\s)?|\sand\s")


class Rules:
    """Selects, drops and reorders sentences of people; adds nothing but a frame."""

    provenance = "rules-1"

    def merge(self, materials: Sequence[tuple[Sequence[str], Sequence[str]]]) -> list[Rewrites]:
        """Rewrite short captions, see `merge_captions`."""
        return [_to_responses(self.merge_captions(short, written)) for short, written in materials]

    def formats(self, descriptions: Sequence[str]) -> list[Rewrites]:
        """Rewrite descriptions, see `shorten_description`."""
        return [_to_responses(self.shorten_description(description)) for description in descriptions]

    def merge_captions(self, short: Sequence[str], written: Sequence[str]) -> dict[str, str]:
        """Merge short captions of one image.

        ssc is the caption that is most similar to the others; dsc and dsc_plus are it and what the others add.
        """
        # A caption made only of frame words, such as "a photo of this", names nothing.
        captions = [_to_sentence(text) for text in short if content_words(text)]
        if not captions:
            return {}
        main = _find_central(captions)
        others = _order_by_novelty(main, [text for text in captions if text != main])
        # Descriptive formats open with the kind of image; "a picture of" needs an article or a quantifier after it.
        framed = f"A picture of {main[0].lower()}{main[1:]}" if _ARTICLE.match(main) else main
        drawn_text = [make_text_sentence(written)] if written else []
        # Captions without a new word only relate known things: the dense format has room for them, dsc does not.
        new = [text for text, is_new in others if is_new]
        dense = [framed, *(text for text, _ in others), *drawn_text]
        return {
            "ssc": main,
            "dsc": _fill([framed, *drawn_text, *new], _DSC_TOKENS),
            "dsc_plus": _fill(dense, CAPTION_FORMATS["dsc_plus"].lengths.max_tokens),
        }

    def shorten_description(self, description: str) -> dict[str, str]:
        """Shorten a description to each format.

        ssc is the first sentence without the kind of image, and with at most two of the things that it lists; dsc and
        dsc_plus are as many sentences from the front as fit.
        """
        sentences = split_sentences(" ".join(description.split()))
        if not sentences:
            return {}
        return {
            "ssc": _shorten_sentence(sentences[0]),
            "dsc": _fill(sentences, _DSC_TOKENS),
            "dsc_plus": _fill(sentences, CAPTION_FORMATS["dsc_plus"].lengths.max_tokens),
        }


def _to_responses(texts: dict[str, str]) -> Rewrites:
    return {kind: CaptionResponse(serialize(text)) for kind, text in texts.items()}


def _to_sentence(text: str) -> str:
    text = " ".join(text.split())
    return f"{text[0].upper()}{text[1:]}" + ("" if text[-1] in ".!?" else ".")


def _jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / max(1, len(a | b))


def _find_central(captions: Sequence[str]) -> str:
    """Return the caption whose words overlap most with the others'; of equal ones the shortest, then the first."""
    word_sets = [content_words(text) for text in captions]
    # Each caption overlaps with itself by 1, which moves no rank.
    overlap = [sum(_jaccard(word_set, other) for other in word_sets) for word_set in word_sets]
    return captions[max(range(len(captions)), key=lambda index: (overlap[index], -len(captions[index]), -index))]


def _order_by_novelty(main: str, captions: Sequence[str]) -> list[tuple[str, bool]]:
    """Order captions by the number of words that are new at their turn, without repetitions.

    Returns:
        Each caption with whether it has a new word.
    """
    known, remaining, ordered = content_words(main), list(captions), list[tuple[str, bool]]()
    selected = [content_words(main)]
    while remaining:
        best = max(remaining, key=lambda text: len(content_words(text) - known))
        remaining.remove(best)
        word_set = content_words(best)
        if best == main or any(best == text for text, _ in ordered):
            continue
        is_new = bool(word_set - known)
        # One without a new word may still say something new of known things, unless it is nearly a copy.
        if is_new or all(_jaccard(word_set, other) <= _SAME for other in selected):
            ordered.append((best, is_new))
            selected.append(word_set)
            known |= word_set
    return ordered


def _fill(sentences: Sequence[str], max_tokens: int) -> str:
    """Join sentences from the front while they fit into `max_tokens` CLIP tokens; the first one always."""
    text, tokens = [sentences[0]], count_clip_tokens(sentences[0])
    for sentence in sentences[1:]:
        tokens += count_clip_tokens(sentence)  # no token spans white space, so counts of sentences add up
        if tokens > max_tokens:
            break
        text.append(sentence)
    return " ".join(text)


def _shorten_sentence(sentence: str) -> str:
    """Remove the kind of image; of a list that is too long for ssc keep the first two items."""
    bare = _KIND_OF_IMAGE.sub("", sentence)
    bare = f"{bare[0].upper()}{bare[1:]}" if bare else sentence
    if count_clip_tokens(bare) <= CAPTION_FORMATS["ssc"].lengths.max_tokens:
        return bare
    items = _LIST_ITEM.split(bare)
    # "A, B and C on a table": the place belongs to all items, so it stays.
    ending = re.search(r"\s(?:on|in|at|behind|under|against)\s[^,]*$", items[-1])
    tail = ending[0] if ending else "."
    return f"{items[0]} and {items[1]}{tail}" if len(items) > 2 else bare


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
            max_tokens=2 * CAPTION_FORMATS[self.format].max_tokens,
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
        sources = [{"captions": list(short), "text": list(written)} for short, written in materials if short]
        questions = [
            _Question(self._short, kind, self._short.fill(sources=texts, form=CAPTION_FORMATS[kind].form))
            for texts in sources
            for kind in REWRITTEN
        ]
        responses = iter(self._ask(questions))
        return [{kind: next(responses) for kind in REWRITTEN} if short else {} for short, _ in materials]

    def formats(self, descriptions: Sequence[str]) -> list[Rewrites]:
        """Ask one question per description, about all formats."""
        forms = json.dumps({kind: CAPTION_FORMATS[kind].form for kind in REWRITTEN})
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


def _open_llm(settings: TargetSettings, folder: Path | None) -> Llm:
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


REWRITERS: dict[str, Callable[[TargetSettings, Path | None], Rewriter]] = {
    "llm": _open_llm,
    "rules": lambda settings, folder: Rules(),
}


def open_rewriter(settings: TargetSettings, *, folder: Path | None = None) -> Rewriter:
    """Open the rewriter that the recipe names.

    Args:
        folder: where paid responses are stored, so that a stopped run does not request them again.

    Raises:
        UserError: the rewriter is unknown; the error has the nearest match.
    """
    return REWRITERS[choose(settings.rewriter, REWRITERS, "field rewriter")](settings, folder)
