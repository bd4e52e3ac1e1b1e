"""Split a caption into short assertions by rules: the offline default.

The number of assertions from these rules is called `ana_rule`. It is never compared with a number from a language
model, nor with the published ones. The rules are those of the specification of captions, section 3.7:

1. sentences end at . ! ? ; but not in decimals or after common abbreviations;
2. "and", "but", "while" and commas separate clauses when each side has a subject and a finite verb of its own;
3. "There is/are X, Y and Z" is one assertion per noun phrase, "S is A, B and C" one per predicate, "S V1 ... and
   V2 ..." one per verb;
4. nothing is split inside a noun phrase ("a black and white cow");
5. a fragment is one assertion; equal ones (case and white space folded) count once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from foveate.caption.assertions import word_classes as classes
from foveate.caption.assertions.word_classes import Tagger
from foveate.records.text import split_sentences, split_words

# Name of these rules. Every report contains it, because numbers of different splitters must not be compared.
NAME = "rules-1"
_JOINTS = frozenset({"and", "but", "while", ","})
_SUBJECT_PRONOUNS = frozenset({"it", "they"})
# A list member longer than this is more than an adjective ("is tall, made of glass that ..."): rule 3 leaves it whole.
_MAX_PREDICATE_WORDS = 4


def normalize_assertion(text: str) -> str:
    """Fold case, white space and end marks; equal results are the same assertion (rule 5)."""
    return " ".join(text.casefold().split()).rstrip(".!?;, ")


def split(text: str, *, tagger: Tagger | None = None) -> list[str]:
    """Split a caption into assertions, in order, each once.

    Args:
        tagger: lower-case tokens -> Penn tags; by default a list of verbs and the neighboring words decide.

    >>> split("The cat is black and the dog is white. There is a bench, a lamp and a tree.")
    ['The cat is black', 'the dog is white', 'There is a bench', 'There is a lamp', 'There is a tree']
    """
    assertions: dict[str, str] = {}
    subject = ""
    for sentence in split_sentences(text, style="clauses"):  # rule 1
        for clause in _split_clauses(split_words(sentence, style="clauses"), tagger):
            for part in _split_clause(clause, tagger):
                assertion = _join(_resolve_pronoun(part, subject))
                assertions.setdefault(normalize_assertion(assertion), assertion)
            # Keep the subject across sentences: "The tower is round. It has a red roof."
            subject = _find_subject(clause, tagger) or subject
    return [assertion for key, assertion in assertions.items() if key]


def count(text: str, *, tagger: Tagger | None = None) -> int:
    """Count the assertions of a caption."""
    return len(split(text, tagger=tagger))


def _lower(tokens: Sequence[str]) -> list[str]:
    return [token.lower() for token in tokens]


def _join(tokens: Iterable[str]) -> str:
    return re.sub(r"\s+([.,;:!?)])", r"\1", " ".join(tokens)).strip(" ,;")


def _first_verb(tokens: Sequence[str], tagger: Tagger | None) -> int | None:
    """Index of the main clause's finite verb, None if there is none."""
    lower = _lower(tokens)
    in_relative = False
    for index, is_finite in enumerate(classes.finite_verbs(lower, tagger)):
        # The first verb after "that" or "which" belongs to the noun before it: "the dog that barks is brown".
        if lower[index] in classes.RELATIVE and index > 0:
            in_relative = True
        if is_finite:
            if not in_relative:
                return index
            in_relative = False
    return None


def _is_clause(tokens: Sequence[str], tagger: Tagger | None) -> bool:
    """Whether the tokens start with a subject and have a finite verb after it."""
    verb = _first_verb(tokens, tagger)
    if not verb:  # none, or none before which a subject stands
        return False
    first = tokens[0].lower()
    # "and in the distance is ...", "and standing there is ...": no subject comes first.
    return first not in classes.PREPOSITIONS and first not in _JOINTS and not first.endswith("ing")


def _split_clauses(tokens: Sequence[str], tagger: Tagger | None) -> list[list[str]]:
    """Rule 2: cut a sentence at joints with a clause on both sides."""
    lower = _lower(tokens)
    clauses, start = [], 0
    for index, word in enumerate(lower):
        if word not in _JOINTS or index < start:
            continue
        after = index + 1
        while after < len(lower) and lower[after] in _JOINTS:  # ", and"
            after += 1
        has_verb = _first_verb(tokens[start:index], tagger) is not None
        if has_verb and _is_clause(_until_joint(tokens, after, tagger), tagger):
            clauses.append(list(tokens[start:index]))
            start = after
    clauses.append(list(tokens[start:]))
    return [clause for clause in clauses if clause]


def _until_joint(tokens: Sequence[str], start: int, tagger: Tagger | None) -> Sequence[str]:
    """Tokens from `start` to the next joint.

    Only these decide whether a clause begins at `start`: the verb of a later clause does not count for this one.
    """
    lower = _lower(tokens)
    for index in range(start, len(lower)):
        if lower[index] in _JOINTS and _first_verb(tokens[start:index], tagger):
            return tokens[start:index]
        # "and" before a verb may join two subjects ("a cat and a dog sleep"), the other joints may not.
        if lower[index] in ("but", "while", ","):
            return tokens[start:index]
    return tokens[start:]


def _find_subject(clause: Sequence[str], tagger: Tagger | None) -> str:
    verb = _first_verb(clause, tagger)
    first = clause[0].lower()
    if not verb or first in {"there", *_SUBJECT_PRONOUNS} or first in classes.PREPOSITIONS:
        return ""
    return _join(clause[:verb])


def _resolve_pronoun(tokens: Sequence[str], subject: str) -> list[str]:
    """Replace a leading "it" or "they" by the subject of the clause before, so an assertion is complete."""
    if subject and tokens and tokens[0].lower() in _SUBJECT_PRONOUNS:
        return [subject, *tokens[1:]]
    return list(tokens)


def _split_clause(clause: Sequence[str], tagger: Tagger | None) -> list[list[str]]:
    """Rule 3: split a clause into one token list per noun phrase, predicate or verb."""
    verb = _first_verb(clause, tagger)
    if verb is None:
        return [list(clause)]
    # Verbs come first: "S is A and wears B" would otherwise be read as a list of predicates.
    by_verb = _split_verbs(clause, verb, tagger)
    if len(by_verb) > 1:
        return by_verb
    lower = _lower(clause)
    head, rest = list(clause[: verb + 1]), clause[verb + 1 :]
    if verb > 0 and lower[verb - 1] == "there" and lower[verb] in classes.ALWAYS_FINITE:
        return [head + phrase for phrase in _split_noun_phrases(rest)]
    if lower[verb] in ("is", "are", "was", "were"):
        return [head + predicate for predicate in _split_predicates(rest)]
    return [list(clause)]


def _split_verbs(clause: Sequence[str], verb: int, tagger: Tagger | None) -> list[list[str]]:
    """Repeat the subject for each finite verb that follows a joint: "S V1 ... and V2 ..."."""
    lower = _lower(clause)
    finite = classes.finite_verbs(lower, tagger)
    starts = [
        index
        for index in range(verb + 2, len(lower))
        if finite[index] and lower[index - 1] in ("and", "but", ",") and lower[index] not in classes.PREPOSITIONS
    ]
    if not starts or lower[0] == "there":  # "there" is no subject that could be repeated
        return [list(clause)]
    subject, edges = list(clause[:verb]), [verb, *starts, len(lower)]
    parts = []
    for start, end in zip(edges[:-1], edges[1:], strict=True):
        predicate = list(clause[start:end])
        while predicate and predicate[-1].lower() in _JOINTS:
            predicate.pop()
        parts.append(subject + predicate)
    return parts


def _split_list(tokens: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Cut at commas and "and"; return each non-empty piece with the joint before it ("" for the first)."""
    pieces: list[tuple[str, list[str]]] = [("", [])]
    for token in tokens:
        if token.lower() in (",", "and"):
            if pieces[-1][1]:  # ", and" keeps its first joint
                pieces.append((token, []))
        else:
            pieces[-1][1].append(token)
    return [(joint, piece) for joint, piece in pieces if piece]


def _starts_phrase(piece: Sequence[str]) -> bool:
    first = piece[0].lower()
    return first in classes.DETERMINERS or first in classes.NUMBER_WORDS or first.isdigit()


def _split_noun_phrases(tokens: Sequence[str]) -> list[list[str]]:
    """Rules 3 and 4 for "There is ...": pieces of a list that are no noun phrase of their own are joined again."""
    noun_phrases: list[list[str]] = []
    for joint, piece in _split_list(tokens):
        if noun_phrases and not _begins_noun_phrase(noun_phrases[-1], piece):
            noun_phrases[-1] += [joint, *piece]
        else:
            noun_phrases.append(list(piece))
    return noun_phrases


def _begins_noun_phrase(before: Sequence[str], piece: Sequence[str]) -> bool:
    """Whether a piece after a joint is a noun phrase of its own, given the piece before the joint."""
    last, first = before[-1].lower(), piece[0].lower()
    # "a lamp, on a table", "a man, who waves", "a dog, sitting": they describe what came before.
    if first in classes.PREPOSITIONS or first in classes.RELATIVE or first.endswith("ing"):
        return False
    if _starts_phrase(piece):
        return True
    if classes.is_adjective(last):  # "a black and white cow"
        return False
    # "a fork and knife" shares its determiner and stays one; "trees and houses" are two.
    return before[0].lower() not in classes.SINGULAR


def _split_predicates(tokens: Sequence[str]) -> list[list[str]]:
    """Rule 3 for "S is A, B and C": split only where every piece is a plain, short predicate."""
    pieces = [piece for _, piece in _split_list(tokens)]
    # A preposition may govern the whole list: "is made of glass and wood".
    plain = all(not any(word.lower() in classes.PREPOSITIONS for word in piece) for piece in pieces[:-1])
    last = _lower(pieces[-1]) if pieces else []
    too_long = any(len(piece) > _MAX_PREDICATE_WORDS for piece in pieces)
    if len(pieces) < 2 or not plain or too_long or last[0] in classes.PREPOSITIONS:
        return [list(tokens)]
    # "is sitting and watching": a verb form may have an object that only its neighbor names.
    if any(piece[0].lower().endswith("ing") for piece in pieces):
        return [list(tokens)]
    return pieces
