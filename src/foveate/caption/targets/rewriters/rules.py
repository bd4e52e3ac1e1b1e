"""Rewriting by rules, offline: sentences are chosen, dropped and reordered; nothing is ever added but a frame."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from foveate.caption.captioner import CaptionResponse
from foveate.caption.length_filters import LENGTH_FILTERS
from foveate.caption.lengths import count_clip_tokens
from foveate.caption.response_parser import serialize
from foveate.caption.targets.rewriting import Answers, content_words, written_sentence
from foveate.caption.targets.settings import TargetSettings
from foveate.records.text import split_sentences

_SAME = 0.9  # captions whose words overlap more (Jaccard) say the same
_DSC_TOKENS = 60
_ARTICLE = re.compile(r"^(A|An|The|Two|Three|Four|Several|Some|Many)\s")
_KIND_OF_IMAGE = re.compile(
    r"^(?:an?|the)\s(?:[\w-]+\s){0,4}(?:photograph|photo|picture|image|drawing|view|shot|close-up|painting|collage)"
    r"(?:,[^,]*,)?\s(?:of|that\sshows|showing|with)\s",
    re.IGNORECASE,
)
_LIST_ITEM = re.compile(r",\s(?:and\s)?|\sand\s")


class Rules:
    """See `foveate.caption.targets.rewriting.Rewriter`."""

    provenance = "rules-1"

    def merge(self, materials: Sequence[tuple[Sequence[str], Sequence[str]]]) -> list[Answers]:
        """See `merged`."""
        return [_answers(self.merged(short, written)) for short, written in materials]

    def formats(self, descriptions: Sequence[str]) -> list[Answers]:
        """See `shortened`."""
        return [_answers(self.shortened(description)) for description in descriptions]

    def merged(self, short: Sequence[str], written: Sequence[str]) -> dict[str, str]:
        """ssc: the caption that is most like the others. dsc, dsc_plus: it and what the others add."""
        said = [_sentence(text) for text in short if content_words(text)]
        if not said:
            return {}
        main = _central(said)
        others = _by_novelty(main, [text for text in said if text != main])
        framed = f"A picture of {main[0].lower()}{main[1:]}" if _ARTICLE.match(main) else main
        reading = [written_sentence(written)] if written else []
        told = [text for text, new in others if new]
        return {
            "ssc": main,
            "dsc": _fill([framed, *reading, *told], _DSC_TOKENS),
            "dsc_plus": _fill([framed, *(text for text, _ in others), *reading], LENGTH_FILTERS["dsc_plus"].max_tokens),
        }

    def shortened(self, description: str) -> dict[str, str]:
        """ssc: the first sentence without what kind of image it is, and with two of the things it lists at most. dsc:
        as many sentences from the front as fit. dsc_plus: as many as its gate lets through."""
        told = split_sentences(" ".join(description.split()))
        if not told:
            return {}
        return {
            "ssc": _shortened(told[0]),
            "dsc": _fill(told, _DSC_TOKENS),
            "dsc_plus": _fill(told, LENGTH_FILTERS["dsc_plus"].max_tokens),
        }


def open_rewriter(settings: TargetSettings, *, folder: Path | None) -> Rules:
    """The rules; they have no settings and keep nothing."""
    return Rules()


def _answers(texts: dict[str, str]) -> Answers:
    return {kind: CaptionResponse(serialize(text)) for kind, text in texts.items()}


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return f"{text[0].upper()}{text[1:]}" + ("" if text[-1] in ".!?" else ".")


def _overlap(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / max(1, len(one | other))


def _central(said: Sequence[str]) -> str:
    """The caption whose words overlap most with those of the others; of equal ones the shortest, then the first."""
    words = [content_words(text) for text in said]
    merit = [sum(_overlap(own, other) for other in words) for own in words]
    return said[max(range(len(said)), key=lambda place: (merit[place], -len(said[place]), -place))]


def _by_novelty(main: str, others: Sequence[str]) -> list[tuple[str, bool]]:
    """The others, those with most new words first, each with whether it has any; repetitions are left out."""
    known, left, ordered = content_words(main), list(others), list[tuple[str, bool]]()
    taken = [content_words(main)]
    while left:
        best = max(left, key=lambda text: len(content_words(text) - known))
        left.remove(best)
        own = content_words(best)
        if best == main or any(best == text for text, _ in ordered):
            continue
        new = bool(own - known)
        if new or all(_overlap(own, other) <= _SAME for other in taken):
            ordered.append((best, new))
            taken.append(own)
            known |= own
    return ordered


def _fill(told: Sequence[str], most: int) -> str:
    """The sentences from the front that fit into `most` CLIP tokens; the first one always."""
    kept, tokens = [told[0]], count_clip_tokens(told[0])
    for text in told[1:]:
        tokens += count_clip_tokens(text)  # no token spans white space: those of the parts add up
        if tokens > most:
            break
        kept.append(text)
    return " ".join(kept)


def _shortened(sentence: str) -> str:
    """A sentence without the kind of image; of a list that makes it longer than the gate the first two items."""
    bare = _KIND_OF_IMAGE.sub("", sentence)
    bare = f"{bare[0].upper()}{bare[1:]}" if bare else sentence
    if count_clip_tokens(bare) <= LENGTH_FILTERS["ssc"].max_tokens:
        return bare
    items = _LIST_ITEM.split(bare)
    ending = re.search(r"\s(?:on|in|at|behind|under|against)\s[^,]*$", items[-1])
    tail = ending[0] if ending else "."
    return f"{items[0]} and {items[1]}{tail}" if len(items) > 2 else bare
