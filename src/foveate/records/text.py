"""Sentences and words of English text: one splitter and one tokenizer, with named styles.

The styles differ where published numbers depend on the cut, and only there:

- "prose" is the default. Length filters, sampled training sentences and the rewriters of captions use it.
- "treebank" is what the CLOC recipe for noun phrases was published with: NLTK's word tokenizer on naive sentences.
- "clauses" is what the rule-based splitter of assertions counts: quoted text stays whole, end marks are not content.
- "letters" (words only) names the built-in images, whose tables and splits are published: ASCII letters alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Style = Literal["prose", "treebank", "clauses"]
WordStyle = Literal["prose", "treebank", "clauses", "letters"]

_ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof st mt ft no nos vs etc inc ltd co corp dept approx est fig figs jr sr gen col lt capt sgt rev "
    "hon ave blvd rd e.g i.e a.m p.m u.s u.k cf ca c vol ed eds pp jan feb mar apr jun jul aug sep sept oct nov "
    "dec".split()
)
# These often end a sentence; they do not when the next word goes on in lower case.
_MAY_END_SENTENCE = frozenset("etc inc ltd co corp jr sr a.m p.m u.s u.k ave blvd rd".split())
_CLAUSE_ABBREVIATIONS = frozenset(
    "dr mr mrs ms prof st jr sr vs etc e.g i.e approx inc ltd co corp mt ave blvd dept est p.m a.m".split()
)


@dataclass(frozen=True)
class _SentenceRules:
    """Rules for the ends of sentences.

    Args:
        end: end marks (group "marks") with the closing quotes and brackets that belong to them (group "closing").
        abbreviations: lower-case words whose full stop is not an end.
        may_end: those of them that are an end before an upper-case word.
        before_numbers: further abbreviations, only before a digit ("no. 5", but "she says no. Then ...").
        initial: a single letter whose full stop is not an end ("J. Miller").
        dotted_initials: whether any "U.N." counts as one of `may_end`.
        content_only: end marks are dropped, quoted text is never cut, a line break ends a sentence.
    """

    end: re.Pattern[str]
    abbreviations: frozenset[str] = frozenset()
    may_end: frozenset[str] = frozenset()
    before_numbers: frozenset[str] = frozenset()
    initial: re.Pattern[str] | None = None
    dotted_initials: bool = False
    content_only: bool = False


_SENTENCE_RULES: dict[str, _SentenceRules] = {
    "prose": _SentenceRules(
        # Wide marks end a sentence without a space behind them: Chinese and Japanese have none.
        end=re.compile(
            r"(?P<marks>[.!?\u2026]+)(?P<closing>[\"'\u201d\u2019)\]]*)(?=\s|$)|[\u3002\uff01\uff1f]+[\u300d\u300f\"\u201d]*"
        ),
        abbreviations=_ABBREVIATIONS,
        may_end=_MAY_END_SENTENCE,
        initial=re.compile(r"[A-HJ-Z\u00c0-\u00d6\u00d8-\u00de]"),  # "I" is a word
    ),
    # The golden of noun phrases pins this naive cut: "Mr. Fox" is two sentences, `"Stop." He` is one.
    "treebank": _SentenceRules(end=re.compile(r"(?P<marks>[.!?]+)(?P<closing>)(?=\s|$)")),
    "clauses": _SentenceRules(
        end=re.compile(r"(?P<marks>[.!?;]+)(?P<closing>[\"\u201d')\]]*)(?=\s|$)"),
        abbreviations=_CLAUSE_ABBREVIATIONS,
        before_numbers=frozenset({"no", "fig", "vol"}),
        initial=re.compile(r"[b-hj-z]", re.IGNORECASE),  # "a" and "i" are words
        dotted_initials=True,
        content_only=True,
    ),
}
_DOTTED = re.compile(r"(?:[a-z]\.)*[a-z]")

# A full stop is a token of its own only where it ends the sentence (with a quote or bracket behind it): "3.5", "mr.
# fox".
_LAST_STOP = re.compile(r"(?<=[^.])\.(?=[\"'»”’)\]}>]*\s*$)")
_SEPARATE_MARK = re.compile(r"\.{2,}|--+|[;@#$%&?!\[\](){}<>\"“”‘’«»…]|[,:](?!\d)|(?<!\d)[,:]|['`](?=\s|$)|(?<!\S)['`]")
# Match only at the end of a token ("cat's-eye" stays whole) and the straight apostrophe: NLTK takes a curly one for a
# quotation mark. Callers that want "city’s" cut like "city's" straighten it first.
_CLITIC = re.compile(r"(?<=\w)(n't|'(?:s|m|d|ll|re|ve))(?!\S)", re.IGNORECASE)
_CONTRACTION = re.compile(r"\b(can|d|gim|gon|got|lem|wan)(not|'ye|me|na|ta)\b", re.IGNORECASE)
_CONTRACTIONS = frozenset(("cannot", "d'ye", "gimme", "gonna", "gotta", "lemme", "wanna"))
# A straight double quote opens at the start and after a blank or bracket; elsewhere it closes.
_DOUBLE_QUOTE = re.compile(r"(?P<opening>(?<![^\s(\[{<])\")|\"")
# Alternatives in order of precedence: a quotation, initials with their stops, a number with separators, a word with
# inner marks, a mark.
_CLAUSE_TOKEN = re.compile(
    r"\"[^\"]*\"|“[^”]*”|[A-Za-z](?:\.[A-Za-z])+\.?|\d+(?:[.,:]\d+)*%?|\w+(?:['’\-]\w+)*|[.,;:!?()]|\S"
)
_LETTERS = re.compile(r"[a-z]+(?:'[a-z]+)?")
_PROSE_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")


def find_sentence_ends(text: str, *, style: Style = "prose") -> list[int]:
    """Find the positions just past each sentence; the last is the text's length, if it is not blank.

    Abbreviations, initials and decimals do not end a sentence.
    """
    ends = [match.end() for match in _find_end_marks(text, _SENTENCE_RULES[style])]
    length = len(text.rstrip())
    if length and (not ends or ends[-1] < length):
        ends.append(length)
    return ends


def split_sentences(text: str, *, style: Style = "prose") -> list[str]:
    """Split a text into sentences, without white space around them.

    >>> split_sentences("Mr. Fox is 3.5 m tall. He waits!")
    ['Mr. Fox is 3.5 m tall.', 'He waits!']
    """
    rules = _SENTENCE_RULES[style]
    sentences = []
    for part in text.splitlines() if rules.content_only else [text]:
        start = 0
        for match in _find_end_marks(part, rules):
            # If marks are cut, a closing quote still belongs to the content, whereas a closing bracket would dangle.
            ending = match["closing"].replace(")", "") if rules.content_only else match[0]
            sentences.append((part[start : match.start()] + ending).strip())
            start = match.end()
        sentences.append(part[start:].strip())
    return [sentence for sentence in sentences if (re.search(r"\w", sentence) if rules.content_only else sentence)]


def split_words(text: str, *, style: WordStyle = "prose") -> list[str]:
    """Split a text into words: in lower case without marks ("prose", "letters"), else tokens with marks.

    >>> split_words("The city's tower, 3.5 m high, isn't lit.")
    ['the', "city's", 'tower', '3', '5', 'm', 'high', "isn't", 'lit']
    >>> split_words("the city's tower, 3.5 m high, isn't lit.", style="treebank")
    ['the', 'city', "'s", 'tower', ',', '3.5', 'm', 'high', ',', 'is', "n't", 'lit', '.']
    >>> split_words('A "no entry" sign', style="treebank")
    ['A', '``', 'no', 'entry', "''", 'sign']
    >>> split_words('A sign says "no entry".', style="clauses")
    ['A', 'sign', 'says', '"no entry"', '.']
    >>> split_words("redFire_truck2", style="letters")
    ['red', 'fire', 'truck']
    """
    if style == "prose":
        return _PROSE_WORD.findall(text.casefold())
    if style == "letters":
        text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)  # file names in camel case
        return _LETTERS.findall(text.replace("’", "'").lower())
    if style == "clauses":
        return _CLAUSE_TOKEN.findall(text)
    # The cases of the Penn Treebank that captions have, so that noun phrases need no extra; a test compares with NLTK.
    # The Treebank writes straight double quotes as `` and ''.
    spaced = _LAST_STOP.sub(" . ", text)
    spaced = _SEPARATE_MARK.sub(r" \g<0> ", spaced)
    spaced = _CLITIC.sub(r" \g<0>", spaced)
    spaced = _CONTRACTION.sub(
        lambda match: f"{match[1]} {match[2]}" if match[0].lower() in _CONTRACTIONS else match[0], spaced
    )
    quotes = iter("``" if match["opening"] else "''" for match in _DOUBLE_QUOTE.finditer(text))
    return [next(quotes) if token == '"' else token for token in spaced.split()]


def _find_end_marks(text: str, rules: _SentenceRules) -> list[re.Match[str]]:
    accepted: list[re.Match[str]] = []
    for match in rules.end.finditer(text):
        start = accepted[-1].end() if accepted else 0
        if not _is_inside(text, start, match, rules):
            accepted.append(match)
    return accepted


def _is_inside(text: str, start: int, match: re.Match[str], rules: _SentenceRules) -> bool:
    """Whether end marks stand within a sentence: in a quotation, after an abbreviation or an initial."""
    if rules.content_only and text[start : match.start()].count('"') % 2:
        return True
    rest = text[match.end() :].lstrip()
    if match["marks"] != "." or not rest:  # an ellipsis, "!" and "?" are always an end
        return False
    # Include the letter before an apostrophe, so that the "t" of "isn't." is not taken for an initial.
    before = re.search(r"(?:\w['’])?[\w.]+$", text[: match.start()])
    word = before[0] if before else ""
    if rules.initial and rules.initial.fullmatch(word):
        return True
    folded = word.casefold()
    if folded in rules.before_numbers and rest[0].isdigit():
        return True
    if folded in rules.abbreviations:
        return folded not in rules.may_end or not rest[0].isupper()
    return rules.dotted_initials and _DOTTED.fullmatch(folded) is not None and not rest[0].isupper()


def singular(word: str) -> str:
    """Drop the ending of an English plural, well enough to match "apples" and "apple".

    Source: Harman, How Effective Is Suffixing? (1991), the S stemmer, and short words: "pies" is "pie", not "py".

    >>> singular("berries"), singular("pies"), singular("boxes"), singular("glass"), singular("gas")
    ('berry', 'pie', 'box', 'glass', 'gas')
    """
    if not word.endswith("s") or len(word) < 4 or word.endswith(("ss", "us", "is")):
        return word
    for ending, replacement in (("ies", "y"), ("ches", "ch"), ("shes", "sh"), ("sses", "ss"), ("xes", "x")):
        if word.endswith(ending) and len(word) > len(ending) + 1:
            return word[: -len(ending)] + replacement
    return word[:-1]
