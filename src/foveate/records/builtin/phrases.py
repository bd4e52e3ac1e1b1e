"""Turn raw names and titles into phrases that name a cut-out, in ordinary words only."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from foveate.records.text import split_words

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


def singular(word: str) -> str:
    """Return a crude singular, good enough to match "apples" and "apple"."""
    for ending, replacement in (("ies", "y"), ("ches", "ch"), ("shes", "sh"), ("sses", "ss"), ("xes", "x")):
        if word.endswith(ending) and len(word) > len(ending) + 1:
            return word[: -len(ending)] + replacement
    return word[:-1] if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3 else word


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
