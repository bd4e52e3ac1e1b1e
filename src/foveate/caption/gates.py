"""What is done with a caption that was read: accepted, asked for again, cut, flagged.

Lengths are CLIP tokens without the two special tokens. A descriptive caption (dsc, afc) never leaves with more than 75
of them, which are 77 with the special tokens; a sentence is never cut.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Literal

from foveate.caption.lengths import clip_tokens
from foveate.records.text import find_sentence_ends, split_sentences, split_words

FLAGS = (
    "too_long",
    "too_short",
    "cut_at_sentence",
    "repeats",
    "copied_alt",
    "non_english",
    "prompt_leak",
    "alt_unusable",
)


@dataclass(frozen=True, slots=True)
class Gate:
    """Fewest and most CLIP tokens of a format; most sentences; what is asked once when there are too many or too few
    ("shorten", "lengthen" or ""); whether what is still too long is cut."""

    least: int
    most: int
    sentences: int | None
    when_long: Literal["shorten", ""] = ""
    when_short: Literal["lengthen", ""] = ""
    cut: bool = False


GATES: Mapping[str, Gate] = MappingProxyType(
    {
        "ssc": Gate(4, 30, sentences=1, when_long="shorten"),
        "dsc": Gate(15, 75, sentences=None, when_long="shorten", cut=True),
        "dsc_plus": Gate(80, 400, sentences=None, when_short="lengthen"),
        "afc": Gate(15, 75, sentences=None, when_long="shorten", cut=True),
    }
)
# What a retry asks for, in words; English captions have about 1.15 CLIP tokens per word.
RETRY_WORDS: Mapping[str, int] = MappingProxyType({"ssc": 15, "dsc": 45, "dsc_plus": 120, "afc": 45})


@dataclass(frozen=True, slots=True)
class Gated:
    """A caption that may be stored, with its flags; or `error` where none may be."""

    caption: str
    flags: tuple[str, ...] = ()
    error: str = ""


def retry(kind: str, caption: str) -> str:
    """What should be asked once more about a caption: "shorten", "lengthen" or ""."""
    gate = GATES[kind]
    if _too_long(gate, caption):
        return gate.when_long
    return gate.when_short if clip_tokens(caption) < gate.least else ""


def better(kind: str, first: str, second: str) -> str:
    """Of a caption and its second version the one nearer to what the format accepts; the second where both are."""
    return min((second, first), key=lambda caption: _excess(GATES[kind], caption))


def gate(kind: str, caption: str) -> Gated:
    """Cut and flag a caption by its length, after the one retry. A descriptive caption whose first sentence is too long
    is an error ("too_long")."""
    rule, flags = GATES[kind], list[str]()
    if rule.cut and clip_tokens(caption) > rule.most:
        caption = _cut(caption, rule.most)
        if not caption:
            return Gated("", error="too_long")
        flags.append("cut_at_sentence")
    elif _too_long(rule, caption):
        flags.append("too_long")
    if clip_tokens(caption) < rule.least:
        flags.append("too_short")
    return Gated(caption, tuple(flags))


def content_flags(caption: str, *, prompt: str, alt: str = "", english: bool = True) -> tuple[str, ...]:
    """Flags of what a caption says: repeats, copied_alt, non_english, prompt_leak.

    Args:
        prompt: the template that was used, without the image's own texts.
        alt: the image's alt-text, whether or not the captioner saw it; "" for none.
        english: whether English was asked for.
    """
    flags = []
    if repeats(caption):
        flags.append("repeats")
    if copied(caption, alt):
        flags.append("copied_alt")
    if english and non_english(caption):
        flags.append("non_english")
    if leaks(caption, prompt):
        flags.append("prompt_leak")
    return tuple(flags)


def _too_long(rule: Gate, caption: str) -> bool:
    many = rule.sentences is not None and len(split_sentences(caption)) > rule.sentences
    return many or clip_tokens(caption) > rule.most


def _excess(rule: Gate, caption: str) -> float:
    """How far a caption is from what is accepted; 0 is accepted."""
    tokens = clip_tokens(caption)
    beyond = max(rule.least - tokens, tokens - rule.most, 0)
    sentences_beyond = len(split_sentences(caption)) - rule.sentences if rule.sentences is not None else 0
    return beyond + max(sentences_beyond, 0) * rule.most


def _cut(caption: str, most: int) -> str:
    """The caption up to the last sentence end within `most` tokens; "" where the first sentence does not fit."""
    for end in reversed(find_sentence_ends(caption)):
        if clip_tokens(caption[:end]) <= most:
            return caption[:end]
    return ""


def repeats(caption: str) -> bool:
    """Whether four words follow one another in the same way three times."""
    words = split_words(caption)
    counts = Counter(zip(words, words[1:], words[2:], words[3:], strict=False))
    return max(counts.values(), default=0) >= 3


def copied(caption: str, alt: str) -> bool:
    """Whether the words of caption and alt-text are nearly the same: Jaccard index above 0.9."""
    ours, theirs = set(split_words(caption)), set(split_words(alt))
    return bool(ours and theirs) and len(ours & theirs) / len(ours | theirs) > 0.9


_LEAKED_WORDS = 6
_FIELDS = ("used_alt_facts", '"caption":', "refusal_reason")


def leaks(caption: str, prompt: str) -> bool:
    """Whether a caption holds the prompt's own wording: six of its words in a row, or a field of the answer."""
    if any(name in caption for name in _FIELDS):
        return True
    return not _runs(prompt).isdisjoint(_runs(caption))


@lru_cache(maxsize=64)
def _runs(text: str) -> frozenset[tuple[str, ...]]:
    """All runs of words of a text that are long enough to be its wording."""
    words = split_words(text)
    places = range(len(words) - _LEAKED_WORDS + 1)
    return frozenset(tuple(words[place : place + _LEAKED_WORDS]) for place in places)


_ENGLISH = frozenset(
    "the and of with on is are at by it its an this that to from there two other has have which while into behind "
    "front left right near over under above below between next some one three background picture".split()
)
# Frequent words of German, French, Spanish, Italian, Portuguese, Dutch, Polish, Swedish and Indonesian that no English
# caption uses.
_OTHERS = frozenset(
    "der die das und ein eine einer einem einen mit auf ist sind im von zu den dem steht "
    "le la les un une des du et avec dans est sont sur au aux qui pour "
    "el los las una y con en es del al por para que "
    "il lo gli uno di della nel nella sul sono che per "
    "o os um uma e com no na em do da dos das "
    "het een van op met zijn naar bij "
    "na z w jest przed oraz i "
    "och en ett som med av till det "
    "yang dan di dengan sebuah ini pada seorang".split()
) - {"i", "on", "in", "no", "do", "die", "den", "per", "an", "um", "met", "du", "dos"}


def non_english(caption: str) -> bool:
    """A simple rule: less than 70 % of the letters are Latin, or, from five words on, frequent words of other languages
    outnumber those of English. Short captions in Latin letters are taken for English."""
    letters = [letter for letter in caption if letter.isalpha()]
    if letters and sum(letter < "\u0250" or "\u1e00" <= letter < "\u1f00" for letter in letters) < 0.7 * len(letters):
        return True
    words = split_words(caption)
    if len(words) < 5:
        return False
    return sum(word in _OTHERS for word in words) > sum(word in _ENGLISH for word in words)
