"""A caption as a list of short assertions, by rules alone: the offline default.

A number of assertions from these rules is `ana_rule`; it is never compared with a number from a language model, nor
with the published ones. The rules are those of the specification of captions, section 3.7:

1. sentences end at . ! ? ; but not in decimals or after common abbreviations;
2. "and", "but", "while" and commas part clauses when each side has a subject and a finite verb of its own;
3. "There is/are X, Y and Z" is one assertion per noun phrase, "S is A, B and C" one per predicate, "S V1 ... and
   V2 ..." one per verb;
4. nothing is split inside a noun phrase ("a black and white cow");
5. a fragment is one assertion, equal ones (case and white space folded) are one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from foveate.caption.assertions import word_classes as classes
from foveate.caption.assertions.word_classes import Tagger
from foveate.records.text import split_sentences, split_words

NAME = "rules-1"
_JOINTS = frozenset({"and", "but", "while", ","})
_IT = frozenset({"it", "they"})


def folded(text: str) -> str:
    """The text by which equal assertions are found: case, white space and end marks do not count."""
    return " ".join(text.casefold().split()).rstrip(".!?;, ")


def split(text: str, *, tagger: Tagger | None = None) -> list[str]:
    """The assertions of a caption, in order, each once.

    Args:
        tagger: gives Penn tags for the words of a sentence; by default a list of verbs and their neighbors decide.

    >>> split("The cat is black and the dog is white. There is a bench, a lamp and a tree.")
    ['The cat is black', 'the dog is white', 'There is a bench', 'There is a lamp', 'There is a tree']
    """
    found: dict[str, str] = {}
    subject = ""
    for sentence in split_sentences(text, style="clauses"):
        for clause in _clauses(split_words(sentence, style="clauses"), tagger):
            for parts in _parts(clause, tagger):
                resolved = _resolve(parts, subject)
                said = _joined(resolved)
                found.setdefault(folded(said), said)
            subject = _subject(clause, tagger) or subject
    return [said for key, said in found.items() if key]


def count(text: str, *, tagger: Tagger | None = None) -> int:
    """The number of assertions of a caption."""
    return len(split(text, tagger=tagger))


def _lower(tokens: Sequence[str]) -> list[str]:
    return [token.lower() for token in tokens]


def _joined(tokens: Iterable[str]) -> str:
    return re.sub(r"\s+([.,;:!?)])", r"\1", " ".join(tokens)).strip(" ,;")


def _first_verb(tokens: Sequence[str], tagger: Tagger | None) -> int | None:
    """Position of the main clause's finite verb: one inside "that ..." or "which ..." belongs to a noun."""
    low = _lower(tokens)
    relative = False
    for place, finite in enumerate(classes.finite_verbs(low, tagger)):
        if low[place] in classes.RELATIVE and place > 0:
            relative = True
        if finite:
            if not relative:
                return place
            relative = False
    return None


def _is_clause(tokens: Sequence[str], tagger: Tagger | None) -> bool:
    """Whether the words start with a subject and have a finite verb after it."""
    verb = _first_verb(tokens, tagger)
    if not verb:
        return False
    first = tokens[0].lower()
    return first not in classes.PREPOSITIONS and first not in _JOINTS and not first.endswith("ing")


def _clauses(tokens: Sequence[str], tagger: Tagger | None) -> list[list[str]]:
    """Rule 2: the sentence cut where both sides are clauses."""
    low = _lower(tokens)
    clauses, start = [], 0
    for place, word in enumerate(low):
        if word not in _JOINTS or place < start:
            continue
        after = place + 1
        while after < len(low) and low[after] in _JOINTS:
            after += 1
        if _first_verb(tokens[start:place], tagger) is not None and _is_clause(
            _until_joint(tokens, after, tagger), tagger
        ):
            clauses.append(list(tokens[start:place]))
            start = after
    clauses.append(list(tokens[start:]))
    return [clause for clause in clauses if clause]


def _until_joint(tokens: Sequence[str], start: int, tagger: Tagger | None) -> Sequence[str]:
    """From `start` to the next joint: the verb of a later clause is none of this one's."""
    low = _lower(tokens)
    for place in range(start, len(low)):
        if low[place] in _JOINTS and _first_verb(tokens[start:place], tagger):
            return tokens[start:place]
        if low[place] in ("but", "while", ","):
            return tokens[start:place]
    return tokens[start:]


def _subject(clause: Sequence[str], tagger: Tagger | None) -> str:
    verb = _first_verb(clause, tagger)
    if not verb or clause[0].lower() in {"there", *_IT} or clause[0].lower() in classes.PREPOSITIONS:
        return ""
    return _joined(clause[:verb])


def _resolve(tokens: Sequence[str], subject: str) -> list[str]:
    """ "It is old" -> "The house is old", with the subject of the clause before."""
    if subject and tokens and tokens[0].lower() in _IT:
        return [subject, *tokens[1:]]
    return list(tokens)


def _parts(clause: Sequence[str], tagger: Tagger | None) -> list[list[str]]:
    """Rule 3: one list of words per noun phrase, predicate or verb."""
    verb = _first_verb(clause, tagger)
    if verb is None:
        return [list(clause)]
    by_verb = _by_verbs(clause, verb, tagger)
    if len(by_verb) > 1:
        return by_verb
    low = _lower(clause)
    head, rest = list(clause[: verb + 1]), clause[verb + 1 :]
    if verb > 0 and low[verb - 1] == "there" and low[verb] in classes.ALWAYS_FINITE:
        return [head + piece for piece in _noun_phrases(rest)]
    if low[verb] in ("is", "are", "was", "were"):
        return [head + piece for piece in _predicates(rest)]
    return [list(clause)]


def _by_verbs(clause: Sequence[str], verb: int, tagger: Tagger | None) -> list[list[str]]:
    """The clause once per verb that follows a joint, each with the subject."""
    low = _lower(clause)
    finite = classes.finite_verbs(low, tagger)
    starts = [
        place
        for place in range(verb + 2, len(low))
        if finite[place] and low[place - 1] in ("and", "but", ",") and low[place] not in classes.PREPOSITIONS
    ]
    if not starts or low[0] == "there":
        return [list(clause)]
    subject, edges = list(clause[:verb]), [verb, *starts, len(low)]
    parts = []
    for begin, end in zip(edges[:-1], edges[1:], strict=True):
        words = list(clause[begin:end])
        while words and words[-1].lower() in _JOINTS:
            words.pop()
        parts.append(subject + words)
    return parts


def _pieces(tokens: Sequence[str]) -> list[list[str]]:
    """Cut at every comma and "and"."""
    pieces: list[list[str]] = [[]]
    for token in tokens:
        if token.lower() in (",", "and"):
            pieces.append([])
        else:
            pieces[-1].append(token)
    return [piece for piece in pieces if piece]


def _starts_phrase(piece: Sequence[str]) -> bool:
    first = piece[0].lower()
    return first in classes.DETERMINERS or first in classes.NUMBERS or first.isdigit()


def _noun_phrases(tokens: Sequence[str]) -> list[list[str]]:
    """Rule 3 for "There is ...", and rule 4: pieces that are no noun phrase of their own are joined again."""
    found: list[list[str]] = []
    for token, piece in _with_joints(tokens):
        if found and not _begins_another(found[-1], piece):
            found[-1] += [token, *piece]
        else:
            found.append(list(piece))
    return found


def _begins_another(before: Sequence[str], piece: Sequence[str]) -> bool:
    last, first = before[-1].lower(), piece[0].lower()
    if first in classes.PREPOSITIONS or first in classes.RELATIVE or first.endswith("ing"):
        return False
    if _starts_phrase(piece):
        return True
    if classes.is_adjective(last):
        return False
    return before[0].lower() not in classes.SINGULAR


def _with_joints(tokens: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Pieces between commas and "and", each with the joint before it ("" for the first)."""
    found: list[tuple[str, list[str]]] = [("", [])]
    for token in tokens:
        if token.lower() in (",", "and"):
            if found[-1][1]:
                found.append((token, []))
        else:
            found[-1][1].append(token)
    return [(joint, piece) for joint, piece in found if piece]


def _predicates(tokens: Sequence[str]) -> list[list[str]]:
    """Rule 3 for "S is A, B and C": only where the first pieces are plain (no preposition that may govern all)."""
    pieces = _pieces(tokens)
    plain = all(not any(word.lower() in classes.PREPOSITIONS for word in piece) for piece in pieces[:-1])
    last = _lower(pieces[-1]) if pieces else []
    if len(pieces) < 2 or not plain or any(len(piece) > 4 for piece in pieces) or last[0] in classes.PREPOSITIONS:
        return [list(tokens)]
    if any(word.lower().endswith("ing") for piece in pieces for word in piece[:1]):
        return [list(tokens)]
    return pieces
