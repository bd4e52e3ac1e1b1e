"""Words of questions about images: those that decide a form, those that are masked, and those that say nothing."""

from __future__ import annotations

from collections.abc import Mapping

_COLOR_CUES = frozenset(("color",))
_MORE_CUES = frozenset("more most larger greater outnumber numerous frequent".split())
_SAME_CUES = frozenset("same equal equally as".split())
_BOTH_CUES = frozenset("both each every".split())
_COUNT_CUES = frozenset("many number count".split())
# Whoever has one of these asks for a place.
_PLACE_WORDS = frozenset("where position location coordinates".split())
_PLACE_CUES = frozenset(
    "where find place placed position location located coordinates box mark show point region part look see identify "
    "zoom get spotted looking coordinate".split()
)
# Words without which a question has not a form, and words with which it has another one.
CUES: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "name": (frozenset(), _COLOR_CUES),
    "where": (_PLACE_CUES, _COLOR_CUES | _COUNT_CUES),
    "is there": (frozenset(), _COLOR_CUES | _COUNT_CUES | _PLACE_WORDS | {"which"}),
    "color": (_COLOR_CUES, _COUNT_CUES),
    "color: region": (_COLOR_CUES, _COUNT_CUES),
    "count": (_COUNT_CUES, _COLOR_CUES),
    "count: more": (_MORE_CUES, frozenset(("than", "outnumber"))),
    "count: more, yes or no": (_MORE_CUES, frozenset()),
    "position: further": (frozenset(("further", "more")), frozenset()),
    "compare": (frozenset(), _MORE_CUES | _SAME_CUES | _BOTH_CUES),
    "compare: both": (_BOTH_CUES, _MORE_CUES | _SAME_CUES),
    "compare: same number": (_SAME_CUES, frozenset()),
    "compare: more": (_MORE_CUES, _SAME_CUES),
}

# Masks. A thing, a color, a number, a side, a relation of two things, an image, a region.
THING, COLOR, NUMBER, SIDE, RELATION, ORDER, PLACE = "X", "C", "N", "S", "R", "O", "<region>"
COLORS = frozenset(
    "red orange yellow green blue purple pink brown black white gray grey violet golden silver turquoise beige".split()
)
NUMBERS = {word: word for word in "two three four five six seven eight nine ten".split()}
NUMBERS |= {str(index): word for index, word in enumerate(("one", *NUMBERS), 1)}
SIDES = {"left": "left", "right": "right", "top": "top", "bottom": "bottom", "upper": "top", "lower": "bottom"}
FURTHER = {"up": "up", "down": "down", "top": "up", "bottom": "down"}
RELATIONS = {"above": "above", "over": "above", "below": "below", "under": "below"}
RELATIONS |= {"beneath": "below", "underneath": "below"}
ORDERS = ("first", "second", "third", "fourth")
# Words with one meaning in questions about images.
SYNONYMS = {
    **dict.fromkeys(("picture", "photo", "photograph", "pic", "scene", "snapshot", "drawing"), "image"),
    **dict.fromkeys(("pictures", "photos", "photographs", "pics", "scenes"), "images"),
    **dict.fromkeys(("locate", "spot", "detect", "seek", "search"), "find"),
    **dict.fromkeys(("draw", "highlight", "outline", "frame", "circle", "put", "select"), "mark"),
    **dict.fromkeys(("bbox", "rectangle", "boundingbox"), "box"),
    **dict.fromkeys(("colour", "colored", "coloured", "colors", "colours"), "color"),
    **dict.fromkeys(("contain", "contains", "include", "includes", "have", "has", "got", "display", "depict"), "show"),
    **dict.fromkeys(("shown", "present", "depicted", "displayed", "seen", "included", "contained"), "visible"),
    **dict.fromkeys(("looking", "search", "searching", "finding", "locating"), "find"),
    **dict.fromkeys(("lie", "lies", "stand", "stands", "sit", "sits", "standing", "located", "situated"), "placed"),
    **dict.fromkeys(("farther",), "further"),
    **dict.fromkeys(("recognise", "recognize", "classify"), "identify"),
    **dict.fromkeys(("round",), "around"),
    **dict.fromkeys(("whereabouts", "whereabout"), "where"),
    **dict.fromkeys(("whether",), "if"),
    **dict.fromkeys(("is", "are", "was", "were"), "is"),
    **dict.fromkeys(("a", "an", "any", "some"), "a"),
    **dict.fromkeys(("the", "that", "this", "these", "those"), "the"),
    **dict.fromkeys(("does", "did"), "do"),
    **dict.fromkeys(("us", "him", "her", "them"), "me"),
    **dict.fromkeys(("i", "we", "one"), "you"),
}
# These say nothing about what is asked.
EMPTY = frozenset(
    "please kindly hey hi hello ok okay so now well thanks thank thx just really actually very much excuse dear "
    "quick quickly question exactly".split()
)
# Words of questions that no wording has, so that they are not taken for things.
STOP = frozenset(
    "what where which who why when how whose is are was were be been being do does did have has had can could will "
    "would shall should may might must i you he she it we they me him her us them my your his its our their this that "
    "these those a an the of in on at to from by with for about into onto and or but not no yes if then than as so too "
    "also there here any some all every each both either neither one ones other another more most less least many much "
    "few image picture photo thing things object objects item items something anything someone anyone somebody anybody "
    "show see look find tell give say know want need like think get put make take describe caption happening going "
    "doing mean made taken used everything everyone else old big small large time day kind sort type text read written "
    "write says sentence words".split()
)
