"""Group the shipped images by what they show: tables of clip art and emoji, phrases for their names, families.

A *thing* is one concept in all its variants: the man, woman and person variants of an emoji, both styles of it, names
that differ in a color, a state, a side or a number ("closed book", "open book"; the faces of a clock), and known
synonyms. A *family* is wider: all things with the same head noun ("wine glass", "cocktail glass"). Clip art joins the
emoji with the same name. Only uninformative heads ("face", "hand", "sign", ...) join nothing.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from foveate.core.arrow_tables import read_parquet
from foveate.core.paths import DATA
from foveate.records.text import singular, split_words

SOURCES = ("clipart", "emoji")


@functools.cache
def rows(source: str) -> tuple[dict[str, Any], ...]:
    """Return all rows of `source` ("clipart" or "emoji") as dictionaries; `image` has WebP bytes with alpha.

    Both: key, image, width, height, covered (share of pixels more than half opaque), category, subcategory,
    package, path, sha256, license, author.
    Clip art: title, keywords, description, creator, date, language, aliases (further names of the same image),
    group (key of the first of its near-duplicates).
    Emoji: style ("noto", "twemoji"), name, short_names, unified (code points). Texts are as the source has them.
    """
    assert source in SOURCES, source
    return tuple(read_parquet(DATA / f"{source}.parquet").to_pylist())


# Replacements of Unicode names that do not describe the image, or that are not in common use.
_EMOJI_RENAMED = {
    "heavy black heart": "red heart",
    "black heart suit": "heart suit",
    "black diamond suit": "diamond suit",
    "black spade suit": "spade suit",
    "black club suit": "club suit",
    "black scissors": "scissors",
    "black nib": "pen nib",
    "black telephone": "telephone",
    "black sun with rays": "sun",
    "white medium star": "star",
    "white smiling face": "smiling face",
    "white up pointing index": "index finger pointing up",
    "white up pointing backhand index": "back of a hand pointing up",
    "white down pointing backhand index": "back of a hand pointing down",
    "white left pointing backhand index": "back of a hand pointing left",
    "white right pointing backhand index": "back of a hand pointing right",
    "left-pointing magnifying glass": "magnifying glass held to the left",
    "right-pointing magnifying glass": "magnifying glass held to the right",
    "hocho": "kitchen knife",
    "womans hat": "woman's hat",
    "womans clothes": "woman's clothes",
    "womans sandal": "woman's sandal",
    "womans boots": "woman's boots",
    "mans shoe": "man's shoe",
    "bust in silhouette": "silhouette of a person",
    "busts in silhouette": "silhouettes of two people",
    "e-mail symbol": "e-mail",
    "speak-no-evil monkey": "monkey covering its mouth",
    "see-no-evil monkey": "monkey covering its eyes",
    "hear-no-evil monkey": "monkey covering its ears",
    "foggy": "foggy city",
    "haircut": "person getting a haircut",
    "juggling": "person juggling",
    "handball": "person playing handball",
    "water polo": "person playing water polo",
    "sleeping accommodation": "person in bed",
}
# Folders whose images are signs, flags, maps and buttons: true titles, but no things to find in a scene.
_NO_THINGS = (
    *("signs_and_symbols", "geography", "special", "buttons", "unsorted", "decorations", "shapes"),
    *("computer/icons", "computer/buttons", "computer/applications", "recreation/religion", "people/smilies"),
    *("transportation/roadsigns", "recreation/games/cards"),
)
# Creators whose titles are Italian or French throughout.
_OTHER_LANGUAGE_CREATORS = ("rollandin", "guillou", "yves", "ezechi", "jacq", "gondouin", "renard", "maurice")
_OTHER_LANGUAGE_WORDS = frozenset(
    "casa verde con del della di da dei il la le les du des un une uno et gatto cane fiore albero mela pera vino "
    "donna uomo libro sole luna mare ours chien chat poisson oiseau fleur arbre maison voiture fraise cerise "
    "pomme poire raisin gateau couronne ballon toro tavolo sedia penna carta colori mondo zucca torta aglio "
    "toros orme borsa cesto lana albero autos sapin chateau fiori pallone ampoule bobine manos mano perro "
    "gato flor libro manzana pez sol ragno farfalla ape canard lapin souris vache cochon cheval mouton "
    "toque plume livre lampe clef clou marteau scie tasse".split()
)
_NO_NAME_WORDS = frozenset(
    "clipart icon icons logo sketch cartoon example collection template untitled test image picture drawing "
    "symbolic symbol sign signs simple basic generic set menu diagram blueprint poster bw architetto etiquette "
    "hotel sample clip art color colour grayscale silhouette outline vector svg linux tux v version hummer "
    "easter jazz bussola otto rondelle maya eris profile bloom mascot park controller access portrait cross video "
    "clean card smoke label double tile drawn could running pda out sight pacman adult crystal food free bird's".split()
)
_NOT_PART_OF_A_NAME = frozenset("a an the my another yet illustration stylized clothing".split())
_SAME_WORD = {"lightbulb": "light bulb", "icecube": "ice cube", "t shirt": "t-shirt", "volley ball": "volleyball"}
_STATES = frozenset("red green blue yellow black white purple orange pink grey gray brown open closed".split())
_SIDES = re.compile(r"\b(left|right|leftwards|rightwards|clockwise|facing)\b")


def emoji_phrase(name: str) -> str:
    """Return the name of an emoji in lower case, with misleading Unicode names replaced and lists after a colon joined.

    >>> emoji_phrase("HEAVY BLACK HEART"), emoji_phrase("WOMAN: RED HAIR"), emoji_phrase("FAMILY: MAN, GIRL, BOY")
    ('red heart', 'woman with red hair', 'family with man, girl and boy')
    """
    name = name.lower().replace("’", "'")
    subject, _, detail = name.partition(": ")
    if detail in ("bald", "beard"):
        return f"bald {subject}" if detail == "bald" else f"{subject} with a beard"
    if detail:
        parts = detail.split(", ")
        together = f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else detail
        # "couple with heart: woman, man" becomes "couple with woman and man".
        return f"{subject} {'between' if subject == 'kiss' else 'with'} {together}".replace("with heart with", "with")
    return _EMOJI_RENAMED.get(name, name)


def ordinary_words(clipart: Iterable[dict[str, Any]], emoji: Iterable[dict[str, Any]]) -> frozenset[str]:
    """Return words of emoji names, and words that at least two clip art creators use.

    Spelling mistakes, joined words and most words of other languages are used by one creator only.
    """
    users: dict[str, set[str]] = defaultdict(set)
    for row in clipart:
        for text in (row["title"], row["description"], *row["keywords"]):
            for word in split_words(text, style="letters"):
                users[word].add(row["creator"])
    common = {word for word, creators in users.items() if len(creators) >= 2 and len(word) >= 2}
    return (
        frozenset(common.union(*(split_words(row["name"], style="letters") for row in emoji))) - _OTHER_LANGUAGE_WORDS
    )


def clipart_phrase(row: dict[str, Any], vocabulary: frozenset[str]) -> str:
    """Return a phrase of one to four ordinary English words for a clip art image, or "" if its title has none."""
    if any(row["subcategory"] == folder or row["subcategory"].startswith(f"{folder}/") for folder in _NO_THINGS):
        return ""
    if any(name in row["creator"].lower() for name in _OTHER_LANGUAGE_CREATORS):
        return ""
    title = re.sub(r"\(.*?\)", " ", row["title"])
    if not re.fullmatch(r"[A-Za-z'_ -]+[0-9]{0,2}", title.strip()):
        return ""
    named = [word for word in split_words(title, style="letters") if word not in _NOT_PART_OF_A_NAME]
    if not 1 <= len(named) <= 4 or len(named[-1]) < 3:
        return ""
    if any(word not in vocabulary or word in _NO_NAME_WORDS for word in named):
        return ""
    if len(named) == 2 and named[1] in _STATES:  # "pin green", "folder open"
        named.reverse()
    phrase = " ".join(named)
    return _SAME_WORD.get(phrase, phrase)


def names_a_side(phrase: str) -> bool:
    """Whether flipping the image would make the phrase false."""
    return _SIDES.search(phrase) is not None


SPLITTERS = frozenset("with of in on for and at from to by behind between against over without getting wearing".split())


def head_noun(phrase: str) -> str:
    """Return the word that a phrase is about: the last one before a preposition, in the singular.

    >>> head_noun("slice of pizza"), head_noun("four leaf clover"), head_noun("red apples")
    ('slice', 'clover', 'apple')
    """
    named = split_words(phrase, style="letters")
    for index, word in enumerate(named):
        if word in SPLITTERS and index > 0:
            return singular(named[index - 1])
    return singular(named[-1])


# Man, woman, adult; boy, girl, child; old man, old woman, older adult; baby.
_PEOPLE_CODES = {"1f468", "1f469", "1f9d1", "1f466", "1f467", "1f9d2", "1f474", "1f475", "1f9d3", "1f476"}
_MARKS = {"200d", "fe0f", "2640", "2642", "27a1"}  # joiner, variation, female, male, facing right
PEOPLE_WORDS = frozenset(
    "man men woman women person people boy girl adult child older male female bride father mother mx".split()
)
# Uninformative heads ("grinning face", "waving hand"): such names form families by their other words.
EMPTY_HEADS = frozenset(
    "face sign symbol hand suit index person man woman people gesture finger slide thing worker paper light".split()
)
VARIANT_WORDS = frozenset(
    "closed open lock oncoming red blue green orange yellow purple brown grey pink white black light left right "
    "leftwards rightwards up down upwards downwards first second third new full symbol sign facing small large "
    "big clock face horizontal vertical musical multiple".split()
)
_NUMERALS = frozenset("one two three four five six seven eight nine ten eleven twelve oclock thirty".split())
_SAME_THING = (  # synonyms that no rule joins
    ("runner", "woman running", "person running facing right", "running shirt with sash"),
    ("father christmas", "mother christmas", "mx claus"),
    ("prince", "princess", "person with crown", "crown"),
    ("bicyclist", "mountain bicyclist", "bicycle", "motorcycle", "woman biking", "woman mountain biking"),
    ("airplane", "small airplane", "airplane departure", "airplane arriving"),
    ("personal computer", "desktop computer"),
    ("mouse", "mouse face", "rat"),
    ("hamburger", "burger"),
    ("mobile phone", "telephone", "telephone receiver", "pager", "cell phone", "phone"),
    ("lady beetle", "ladybug"),
    ("honeybee", "bee"),
    ("dove", "bird"),
    ("rabbit", "bunny", "rabbit face"),
    ("cat", "kitten"),
    ("boar", "pig"),
    ("automobile", "car", "racing car", "pickup truck", "truck", "articulated lorry"),
    ("electric light bulb", "light bulb", "bulb"),
    ("shopping bags", "handbag", "purse"),
    ("paintbrush", "paint brush"),
    ("ice cream", "soft ice cream", "ice cream cone", "shaved ice"),
    ("shrimp", "fried shrimp"),
    ("firefighter", "fireman"),
    ("mermaid", "merman", "merperson"),
)


def concept_of_emoji(row: Mapping[str, Any]) -> str:
    """Return the concept of an emoji, shared by both styles: its phrase."""
    return emoji_phrase(row["name"])


def _code_key(unified: str) -> str:
    """Return the code points without gender, direction and joiners: equal for man, woman and person variants."""
    codes = [code for code in unified.lower().split("-") if code not in _MARKS]
    return "-".join("person" if code in _PEOPLE_CODES else code for code in codes)


def _name_key(concept: str) -> str:
    """Return the key of a family: the head noun, or the informative words if the head is generic."""
    head = head_noun(concept)
    informative = [singular(w) for w in split_words(concept, style="letters") if w not in VARIANT_WORDS | PEOPLE_WORDS]
    if head in EMPTY_HEADS or head in PEOPLE_WORDS or not informative:
        return " ".join(informative) or head
    return head


class _Groups:
    """Union-find over concepts; a group is named by its alphabetically first member."""

    def __init__(self) -> None:
        self.parent: dict[str, str] = {}

    def find(self, name: str) -> str:
        root = name
        while self.parent.setdefault(root, root) != root:
            root = self.parent[root]
        self.parent[name] = root
        return root

    def join(self, members: Iterable[str]) -> None:
        first, *others = members
        for other in others:
            # The alphabetically first name is the root in any order of joins: slices are drawn by its hash.
            lower, higher = sorted((self.find(first), self.find(other)))
            self.parent[higher] = lower


def own_words(concept: str) -> frozenset[str]:
    """Return the singular words of a name without colors, states, sides, numbers, people and prepositions.

    >>> sorted(own_words("left-pointing magnifying glass")), sorted(own_words("woman farmer"))
    (['glass', 'magnifying', 'pointing'], ['farmer'])
    """
    empty = VARIANT_WORDS | PEOPLE_WORDS | _NUMERALS | SPLITTERS
    words_left = {singular(word) for word in split_words(concept, style="letters") if word not in empty}
    # An empty set would be a subset of every name, so such concepts keep their head noun ("man").
    return frozenset(words_left or {head_noun(concept)})


def _list_variants() -> list[list[str]]:
    """List groups of concepts that are one thing: by code points, by own words, by synonyms."""
    together: dict[str, list[str]] = defaultdict(list)
    for row in rows("emoji"):
        concept = concept_of_emoji(row)
        code = _code_key(row["unified"])
        # Several people in one emoji: families and couples, all of which count as one thing.
        together["code family" if code.startswith("person-person") else f"code {code}"].append(concept)
        if concept.startswith(("family", "couple", "kiss between")) or "holding hands" in concept:
            together["code family"].append(concept)
    for concept in load_concepts():
        together[f"own {' '.join(sorted(own_words(concept)))}"].append(concept)
    present = set(load_concepts())
    # Names missing from the shipped tables are dropped: the first one could become the name of its group.
    return [*together.values(), *([m for m in same if m in present] for same in _SAME_THING)]


@functools.cache
def load_concepts() -> tuple[str, ...]:
    """Return all phrases of emoji and clip art, in alphabetical order."""
    emoji = {concept_of_emoji(row) for row in rows("emoji")}
    return tuple(sorted(emoji | set(clipart_phrases().values())))


@functools.cache
def load_things() -> dict[str, str]:
    """Return {concept: name of the thing that it is a variant of}."""
    return _group_concepts(_list_variants())


@functools.cache
def load_families() -> dict[str, str]:
    """Return {concept: name of its family}; every thing is in one family."""
    heads: dict[str, list[str]] = defaultdict(list)
    for concept in load_concepts():
        heads[_name_key(concept)].append(concept)
    return _group_concepts([*heads.values(), *_list_variants()])


def _group_concepts(together: Iterable[list[str]]) -> dict[str, str]:
    groups = _Groups()
    for members in together:
        if members:
            groups.join(members)
    return {concept: groups.find(concept) for concept in load_concepts()}


@functools.cache
def clipart_phrases() -> dict[str, str]:
    """Return {key: phrase} for clip art images whose title names a thing in ordinary words."""
    clipart = rows("clipart")
    vocabulary = ordinary_words(clipart, rows("emoji"))
    named = ((row["key"], clipart_phrase(row, vocabulary)) for row in clipart)
    return {key: phrase for key, phrase in named if phrase}
