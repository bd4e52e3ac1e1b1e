"""Word classes for the rule splitter: finds the finite verb of a clause without a tagger or data file.

Captions are written in the present tense, so a list of the verbs that captions use, and the words before and after,
decide most cases. A tagger (Penn tags) may be used instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Tagger = Callable[[Sequence[str]], Sequence[str]]  # lower-case tokens -> Penn tags

DETERMINERS = frozenset(
    "a an the this that these those each every some any no another all both its his her their our my your several "
    "many few most".split()
)
NUMBER_WORDS = frozenset("one two three four five six seven eight nine ten eleven twelve dozens hundreds".split())
SINGULAR = frozenset("a an one this that each every another".split())
PREPOSITIONS = frozenset(
    "about above across after against along among around at behind below beneath beside between beyond by down for "
    "from in inside into near of off on onto out outside over past through to toward towards under underneath up upon "
    "with within without".split()
)
PRONOUNS = frozenset("he she it they we you i who which there nothing something everything someone".split())
RELATIVE = frozenset("who which that whose where".split())
_PLURAL_SUBJECTS = frozenset("people men women children they we you who which that feet teeth geese sheep".split())
_ADJECTIVES = frozenset(
    "red green blue yellow black white purple orange pink grey gray brown silver golden gold beige dark light bright "
    "pale large small big little tiny huge tall short long wide narrow high low old new young open closed empty full "
    "round square flat thin thick deep shallow wet dry clean dirty soft hard warm cold hot shiny dull modern wooden "
    "metal plastic clear cloudy calm busy quiet colorful colourful striped curly straight bare snowy sunny rocky "
    "grassy sandy left right upper lower top bottom front back many few beautiful pretty".split()
)
_ADJECTIVE_ENDINGS = ("ful", "ous", "less", "ish", "able", "ible", "ive")
ALWAYS_FINITE = frozenset("is are was were has am isn't aren't doesn't don't".split())
_HAVE = frozenset("have had do does did".split())
_MODALS = frozenset("can could will would may might must should shall cannot".split())
# Base forms of verbs that captions use. Those in _ALSO_NOUNS need a stronger sign that they are verbs.
_VERBS = frozenset(
    "add appear approach arrive ask attend bark bathe beat begin belong bend bite blow board bounce break breathe "
    "brush build burn buy carry cast catch chase chat cheer chew climb cling close come compete connect consist "
    "contain cook cover cross crouch cry curl cut dance decorate depict dine display divide draw dress drift drink "
    "drip drive drop eat embrace enter examine exit extend face fall feature feed fight fill fish fix flank float "
    "flow fly fold follow form frame gallop gather gaze gesture get give glide glow go graze greet grill grin grow "
    "guard hang have head help hide hit hold hover hug hunt illuminate include jog join juggle jump kick kiss kneel "
    "knit land laugh lay lead lean leap leave lick lie lift light line listen look lower make march meet melt mix "
    "mount move need offer open overlap overlook paddle paint park pass paste pedal perch perform pet pick place "
    "plant play point pose pour prepare present preserve press pull punch push put race raise reach read recline "
    "reflect relax repair resemble rest ride rise roll row run sail say scatter seem sell separate serve shake shine "
    "shop shoot shout show sing sip sit skate ski slant sleep slice slide smell smile smoke snow soar speak spell "
    "spin splash split spray spread sprinkle squat stack stand stare start stay steer step stick stir stop stretch "
    "stroll study support surf surround swim swing take talk taste tell throw tie tilt touch tow travel trot try turn "
    "type use visit wait wake walk wander wash watch water wave wear weave wind work wrap write yawn".split()
)
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
_PLACE_NOUNS = frozenset("left right top bottom front back light".split())
FINITE_TAGS = frozenset({"VBZ", "VBP", "VBD", "MD"})


def is_adjective(word: str) -> bool:
    """Whether a word is an adjective by a short list or its ending."""
    return word in _ADJECTIVES or word.endswith(_ADJECTIVE_ENDINGS)


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
