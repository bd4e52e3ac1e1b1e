"""Split a caption into short assertions by rules: the offline default, without a tagger or data file.

The number of assertions from these rules is called `ana_rule`. It is never compared with a number from a language
model, nor with the published ones. The rules are those of the specification of captions, section 3.7:

1. sentences end at . ! ? ; but not in decimals or after common abbreviations;
2. "and", "but", "while" and commas separate clauses when each side has a subject and a finite verb of its own;
3. "There is/are X, Y and Z" is one assertion per noun phrase, "S is A, B and C" one per predicate, "S V1 ... and
   V2 ..." one per verb;
4. nothing is split inside a noun phrase ("a black and white cow");
5. a fragment is one assertion; equal ones (case and white space folded) count once.

Captions are written in the present tense, so the lexicon's verbs, and the words before and after, decide most cases of
what is a finite verb. A tagger (Penn tags) may be used instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from foveate.caption.lexicon import BASE_FORMS, CONJUNCTIONS, is_adjective, tagged
from foveate.records.text import split_sentences, split_words

Tagger = Callable[[Sequence[str]], Sequence[str]]  # lower-case tokens -> Penn tags

# Name of these rules. Every report contains it, because numbers of different splitters must not be compared.
NAME = "rules-2"  # 2: the lexicon that the tagger of phrases uses, too
DETERMINERS = tagged("DT", "PRP$") | frozenset("several many few most".split())
NUMBER_WORDS = tagged("CD") | frozenset("dozens hundreds".split())
SINGULAR = frozenset("a an one this that each every another".split())
PREPOSITIONS = (tagged("IN") - CONJUNCTIONS) | frozenset("to underneath".split())
PRONOUNS = frozenset("he she it they we you i who which there nothing something everything someone".split())
RELATIVE = frozenset("who which that whose where".split())
_PLURAL_SUBJECTS = frozenset("people men women children they we you who which that feet teeth geese sheep".split())
ALWAYS_FINITE = frozenset("is are was were has am isn't aren't doesn't don't".split())
_HAVE = frozenset("have had do does did".split())
_MODALS = tagged("MD") | {"cannot"}
# Base forms that are nouns as well need a stronger sign that they are verbs.
_ALSO_NOUNS = frozenset(
    "add beat bend bite blow board brush catch cast chat close cook cover cross cut dance display divide dress drift "
    "drink drive drop face fall feature fight fish fix float flow fly fold form frame gallop gesture glow grill grin "
    "guard head help hit hug hunt jump kick kiss land laugh lead leap lick lift light line look march mix mount move "
    "need offer paddle paint park pass paste pedal perch pet pick place plant play point pose present press punch "
    "race reach rest ride rise roll row run sail shake shine shop shout show sip skate ski slice slide smell smile "
    "smoke snow spell spin splash split spray spread stack stand stare start stay step stick stop stretch stroll "
    "study support surf swing taste tie tilt touch tow trot try turn type use visit walk wash watch water wave weave "
    "wind work wrap yawn".split()
)
# Verbs beside those of the lexicon, whose list is part of the version of its tagger.
_VERBS = (
    BASE_FORMS
    | _ALSO_NOUNS
    | frozenset(
        "ask attend bathe begin bounce break breathe cheer cling come crouch curl dine embrace exit flank get glide go "
        "greet have jog juggle knit lower meet overlap prepare preserve raise recline relax scatter slant soar "
        "sprinkle squat steer travel wake wander".split()
    )
)
_PLACE_NOUNS = frozenset("left right top bottom front back light".split())
_JOINTS = frozenset({"and", "but", "while", ","})
_SUBJECT_PRONOUNS = frozenset({"it", "they"})
# A list member longer than this is more than an adjective ("is tall, made of glass that ..."): rule 3 leaves it whole.
_MAX_PREDICATE_WORDS = 4
FINITE_TAGS = frozenset({"VBZ", "VBP", "VBD", "MD"})


def _base_of_third_person(word: str) -> str:
    """Return the base form of a known verb in -s ("carries" -> "carry"), else ""."""
    candidates = [word[:-1]] if word.endswith("s") and not word.endswith("ss") else []
    if word.endswith("es"):
        candidates.append(word[:-2])
    if word.endswith("ies"):
        candidates.append(word[:-3] + "y")
    return next((base for base in candidates if base in _VERBS), "")


def is_plural(word: str) -> bool:
    """Whether a noun looks plural."""
    # "Glass", "bus" and "tennis" are singular.
    return word in _PLURAL_SUBJECTS or (word.endswith("s") and not word.endswith(("ss", "us", "is")))


def finite_verbs(tokens: Sequence[str], tagger: Tagger | None = None) -> list[bool]:
    """Mark the finite verbs among lower-case tokens (punctuation marks are tokens, too)."""
    if tagger is not None:
        tags = tagger(tokens)
        # Forms of "be" and "have" are finite whatever their tag is (specification 3.7, rule 2).
        return [token in ALWAYS_FINITE or tag in FINITE_TAGS for token, tag in zip(tokens, tags, strict=True)]
    finite: list[bool] = []
    for index, token in enumerate(tokens):
        before = tokens[index - 1] if index else ""
        after = tokens[index + 1] if index + 1 < len(tokens) else ""
        finite.append(_is_finite(token, before, after, any(finite)))
    return finite


def _opens_phrase(word: str) -> bool:
    return (
        word in DETERMINERS or word in PREPOSITIONS or word in NUMBER_WORDS or is_adjective(word) or word.endswith("ly")
    )


def _is_finite(word: str, before: str, after: str, has_verb: bool) -> bool:
    """Whether a word is a finite verb, by its neighbors.

    Args:
        has_verb: whether the clause has a finite verb already.
    """
    if word in ALWAYS_FINITE:
        return True
    # A noun follows a determiner, number or adjective ("a light stand"), but "the child on the left wears": words
    # of place are nouns as well.
    in_noun_phrase = (
        before in DETERMINERS or before in NUMBER_WORDS or (is_adjective(before) and before not in _PLACE_NOUNS)
    )
    if word in _HAVE:
        return not in_noun_phrase
    if word in _MODALS:
        return not in_noun_phrase and before not in PREPOSITIONS and (after in _VERBS or after in ("be", "not", "also"))
    base = _base_of_third_person(word)
    if base:
        starts = before in ("", ",", ";", "and", "but")
        if in_noun_phrase or before in PREPOSITIONS or before == "":
            return False
        if base not in _ALSO_NOUNS:
            # After a joint it needs a verb before it, whose subject it shares: "sits and reads".
            return not starts or has_verb
        # A form that may be a plural noun ("walks", "lights") counts as a verb only if something follows that a verb
        # takes, or if the clause has no other verb.
        if starts:
            return has_verb and (_opens_phrase(after) or after in PRONOUNS)
        return not has_verb or _opens_phrase(after)
    if word in _VERBS:  # a base form is finite after a plural subject only: "dogs run"
        return is_plural(before) and before not in DETERMINERS and before not in ALWAYS_FINITE
    return False


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
    for index, is_finite in enumerate(finite_verbs(lower, tagger)):
        # The first verb after "that" or "which" belongs to the noun before it: "the dog that barks is brown".
        if lower[index] in RELATIVE and index > 0:
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
    return first not in PREPOSITIONS and first not in _JOINTS and not first.endswith("ing")


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
    if not verb or first in {"there", *_SUBJECT_PRONOUNS} or first in PREPOSITIONS:
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
    if verb > 0 and lower[verb - 1] == "there" and lower[verb] in ALWAYS_FINITE:
        return [head + phrase for phrase in _split_noun_phrases(rest)]
    if lower[verb] in ("is", "are", "was", "were"):
        return [head + predicate for predicate in _split_predicates(rest)]
    return [list(clause)]


def _split_verbs(clause: Sequence[str], verb: int, tagger: Tagger | None) -> list[list[str]]:
    """Repeat the subject for each finite verb that follows a joint: "S V1 ... and V2 ..."."""
    lower = _lower(clause)
    finite = finite_verbs(lower, tagger)
    # At least a joint stands between two verbs, so the next one comes two tokens later at the earliest.
    starts = [
        index
        for index in range(verb + 2, len(lower))
        if finite[index] and lower[index - 1] in ("and", "but", ",") and lower[index] not in PREPOSITIONS
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
    return first in DETERMINERS or first in NUMBER_WORDS or first.isdigit()


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
    if first in PREPOSITIONS or first in RELATIVE or first.endswith("ing"):
        return False
    if _starts_phrase(piece):
        return True
    if is_adjective(last):  # "a black and white cow"
        return False
    # "a fork and knife" shares its determiner and stays one; "trees and houses" are two.
    return before[0].lower() not in SINGULAR


def _split_predicates(tokens: Sequence[str]) -> list[list[str]]:
    """Rule 3 for "S is A, B and C": split only where every piece is a plain, short predicate."""
    pieces = [piece for _, piece in _split_list(tokens)]
    # A preposition may govern the whole list: "is made of glass and wood".
    plain = all(not any(word.lower() in PREPOSITIONS for word in piece) for piece in pieces[:-1])
    last = _lower(pieces[-1]) if pieces else []
    too_long = any(len(piece) > _MAX_PREDICATE_WORDS for piece in pieces)
    if len(pieces) < 2 or not plain or too_long or last[0] in PREPOSITIONS:
        return [list(tokens)]
    # "is sitting and watching": a verb form may have an object that only its neighbor names.
    if any(piece[0].lower().endswith("ing") for piece in pieces):
        return [list(tokens)]
    return pieces
