"""Rewrite by rules, offline: select, drop and reorder sentences; nothing is added but a frame."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from foveate.caption.captioner import CaptionResponse
from foveate.caption.length_filters import LENGTH_FILTERS
from foveate.caption.lengths import count_clip_tokens
from foveate.caption.response_parser import serialize
from foveate.caption.targets.rewriting import Rewrites, content_words, make_text_sentence
from foveate.caption.targets.settings import TargetSettings
from foveate.records.text import split_sentences

_SAME = 0.9  # Jaccard index of words above which two captions say the same
_DSC_TOKENS = 60  # the format allows 75; the rest is for afc, which adds facts of the AltText to a dsc
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
            "dsc_plus": _fill(dense, LENGTH_FILTERS["dsc_plus"].max_tokens),
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
            "dsc_plus": _fill(sentences, LENGTH_FILTERS["dsc_plus"].max_tokens),
        }


def open_rewriter(settings: TargetSettings, *, folder: Path | None) -> Rules:
    """Open the rules, which need neither settings nor a folder."""
    return Rules()


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
    if count_clip_tokens(bare) <= LENGTH_FILTERS["ssc"].max_tokens:
        return bare
    items = _LIST_ITEM.split(bare)
    # "A, B and C on a table": the place belongs to all items, so it stays.
    ending = re.search(r"\s(?:on|in|at|behind|under|against)\s[^,]*$", items[-1])
    tail = ending[0] if ending else "."
    return f"{items[0]} and {items[1]}{tail}" if len(items) > 2 else bare
