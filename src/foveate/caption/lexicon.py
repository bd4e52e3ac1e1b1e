"""A small lexicon of the English of captions: all closed classes, and common adjectives, verbs and adverbs.

The rule tagger and the splitter of captions use it. A word in none of the lists is a noun, unless its ending is that of
another class.
"""

from __future__ import annotations

import re

CLOSED = {
    word: tag
    for tag, listed in {
        "DT": "a an the this that these those each every some any no all both another either neither half",
        "PRP$": "my your his her its our their",
        "PRP": "i you he she it we they me him us them himself herself itself themselves something someone "
        "somebody anyone anything nothing everyone everything one",
        "IN": "of in on at by for with from into onto over under above below beneath behind beside besides between "
        "among amid against across along around through throughout during before after near toward towards "
        "inside outside within without upon atop off past beyond until since because while although though if "
        "unless whether as than like via per about despite except next out up down",
        "TO": "to",
        "CC": "and or but nor yet plus & versus",
        "MD": "can could may might must shall should will would",
        "EX": "there",
        "WDT": "which whatever",
        "WP": "who whom what whoever",
        "WP$": "whose",
        "WRB": "when where why how",
        "VBZ": "is has does 's",
        "VBP": "are am have do 're 've",
        "VBD": "was were had did",
        "VB": "be",
        "VBG": "being having doing",
        "VBN": "been done",
        "RB": "not n't very too also just only almost nearly quite rather so then here again always never often "
        "away apart together aside forward forwards backward upright upward downward sideways ahead abroad "
        "indoors outdoors overhead underneath nearby well still even perhaps maybe once twice",
        "CD": "one two three four five six seven eight nine ten eleven twelve thirteen fifteen twenty thirty forty "
        "fifty hundred thousand million",
    }.items()
    for word in listed.split()
}
# "one" is in two classes above: captions use it as a number far more often than as a pronoun.
CLOSED["one"] = "CD"

# Tagged as prepositions, as in the Treebank, but they open a clause.
CONJUNCTIONS = frozenset("until since because while although though if unless whether as than".split())

ADJECTIVES = frozenset(
    """
    red green blue yellow black white purple orange pink grey gray brown golden silver beige violet turquoise maroon
    teal navy crimson scarlet tan cream ivory dark light bright pale vivid dull shiny glossy matte colorful colourful
    multicolored multicoloured transparent translucent opaque
    big small large little tiny huge giant enormous massive vast tall short long high low wide narrow thin thick broad
    slim fat deep shallow flat steep round square rectangular triangular circular oval curved straight pointed sharp
    blunt smooth rough soft hard fluffy furry hairy curly wavy spiky striped spotted dotted checkered plaid floral
    patterned plain
    old new young ancient modern vintage antique classic contemporary traditional historic rustic retro fresh rotten
    ripe raw
    hot cold warm cool icy frozen wet dry damp muddy sandy rocky grassy snowy rainy sunny cloudy foggy misty stormy
    windy dusty hazy clear calm still quiet loud noisy busy crowded empty full open closed shut broken whole clean
    dirty messy neat tidy
    happy sad angry tired sleepy hungry thirsty scared surprised excited bored calm proud shy brave lazy smart cute
    pretty beautiful handsome ugly lovely elegant fancy fine nice good bad great best better worst worse main major
    minor single double triple several many few various numerous other same different similar own such
    left right front back upper lower top bottom middle central inner outer far near distant nearby adjacent opposite
    parallel vertical horizontal diagonal first second third last next final early late
    wooden metallic woolen woollen earthen electric digital solar royal natural wild domestic rural urban local
    tropical arctic
    bare bald naked nude blond blonde brunette chubby slender skinny muscular elderly adult male female pregnant
    barefoot
    sweet sour salty spicy bitter creamy crispy crunchy juicy delicious tasty
    real fake true false simple complex basic easy difficult heavy safe dangerous strange weird funny famous popular
    public private common rare special typical unique perfect complete partial dense lush leafy sparse
    alive dead asleep awake alone
    """.split()
)
_ADJECTIVE_ENDINGS = re.compile(
    r"(?:.{3}(?:ous|ful|less|ish|ible|able|ive|ian|ese|esque)|.+-.+(?:ed|en|ing|tier|story|colored|coloured|shaped|"
    r"sized|like|style|and-.+)|.{3}(?:est))"
)
# Nouns that end like adjectives.
_NOT_ADJECTIVES = frozenset(
    """
    table vegetable cable fable stable sundae olive archive drive hive native detective relative octave fish dish
    radish goldfish starfish jellyfish rubbish dervish librarian musician magician electrician guardian physician
    pedestrian politician comedian technician canadian cheese geese chest forest nest vest guest harvest quest priest
    interest contest tablecloth parish squash trellis locomotive motive
    """.split()
)
# Nouns and verbs in -ly.
_ADVERB_NOUNS = frozenset(
    """
    family butterfly dragonfly fly firefly belly jelly lily italy assembly bully ally supply lullaby monopoly reply
    anomaly folly ply melly
    """.split()
)
# Adjectives in -ly.
_LY_ADJECTIVES = frozenset(
    """
    curly friendly woolly ugly early silly lovely lonely lively elderly daily weekly monthly bubbly wrinkly prickly
    scaly hilly chilly smelly oily holy
    """.split()
)

# Adjectives that are nouns where no noun follows: "a traffic light", "the town square".
NOMINAL = frozenset("light back front top bottom middle square oval adult male female orange cream antique".split())

_VERBS = """
    sit stand lie lay lean hang float fly ride carry hold wear eat drink read write draw paint sing dance jump run
    walk swim climb crawl kneel sleep rest wait watch look stare gaze smile laugh cry speak talk listen play throw
    catch kick hit push pull lift drop pour cut slice chop cook bake stir mix serve fill contain include feature show
    display depict portray appear seem become remain stay keep put place set give take bring send receive buy sell
    pay open close shut lock tie wrap cover surround border face overlook rise fall grow bloom blossom shine glow
    sparkle reflect flow drift sail drive park fix repair build make create use point wave reach touch grab grip hug
    kiss feed pet groom clean wash sweep wipe brush dry check examine inspect celebrate perform compete race chase
    follow lead enter leave arrive depart pass cross approach gather line decorate adorn illuminate light dive leap
    hover perch roost graze nest bark bite chew lick peck dig hide peek emerge extend stretch spread connect attach
    join separate divide share enjoy learn teach study work type scroll browse consist belong say tell guard protect
    attack fight shoot aim blow burn melt freeze drip splash spray drink rain snow stack pile arrange balance support
    resemble match dominate add complement create provide suggest indicate convey evoke stir unload load ring
    """.split()
_THIRD_ONLY = frozenset(
    """
    sits stands lies lays leans hangs flies rides carries holds wears eats reads writes sings climbs crawls kneels
    sleeps waits looks stares gazes smiles laughs cries speaks talks listens throws catches kicks hits pushes pulls
    lifts pours stirs serves fills contains includes features shows displays depicts portrays appears seems becomes
    remains stays keeps puts gives takes brings sends receives buys sells pays opens closes ties wraps covers
    surrounds overlooks rises falls grows shines glows sparkles reflects flows drifts drives fixes repairs builds
    makes creates uses reaches touches grabs hugs kisses feeds sweeps wipes checks examines inspects celebrates
    performs competes chases follows leads enters leaves arrives departs passes approaches gathers decorates adorns
    illuminates dives leaps hovers perches grazes bites chews licks pecks digs hides peeks emerges extends stretches
    spreads connects attaches joins separates divides enjoys learns teaches consists belongs says tells protects
    attacks fights blows burns melts freezes drips splashes sprays resembles dominates adds complements provides
    suggests indicates conveys evokes unloads floats walks plays lies sails jumps runs swims guards rings watches
    """.split()
)
_IRREGULAR_PAST = frozenset(
    """
    sat stood lay hung flew rode held wore ate drank wrote drew sang ran swam slept took brought sent bought sold
    paid kept gave made built shone grew fell rose drove spoke threw caught fed led left hid dug blew froze said saw
    told fought bit tore stuck spread cut
    """.split()
)
PARTICIPLES = frozenset(
    """
    worn eaten drunk written drawn sung swum taken brought sent bought sold kept given made built grown fallen risen
    driven spoken thrown caught fed led left hidden dug blown frozen told bitten torn stuck spread cut seen
    shown known held hung set put laid bent lit shut sewn woven knitted broken swept overgrown
    """.split()
)


def _third(verb: str) -> str:
    if re.search(r"(?:s|x|z|ch|sh)$", verb):
        return f"{verb}es"
    return f"{verb[:-1]}ies" if re.search(r"[^aeiou]y$", verb) else f"{verb}s"


# Third-person forms that are verbs after any noun, whatever follows; others may be plurals ("lemon slices").
THIRD_ONLY = _THIRD_ONLY
BASE_FORMS = frozenset(_VERBS)
THIRD_FORMS = frozenset(map(_third, _VERBS)) | _THIRD_ONLY
PAST_FORMS = _IRREGULAR_PAST
# Forms that the clean recipe cuts off the end of a phrase: captions use them as verbs, hardly ever as nouns.
VERB_FORMS = _THIRD_ONLY | frozenset("consists sleep float gather reflect carry stand".split())


def tagged(*tags: str) -> frozenset[str]:
    """Return the words of closed classes."""
    return frozenset(word for word, tag in CLOSED.items() if tag in tags)


def is_adjective(word: str) -> bool:
    """Whether the word is an adjective by the lexicon or by its ending."""
    if word in ADJECTIVES or word in _LY_ADJECTIVES:
        return True
    return word not in _NOT_ADJECTIVES and _ADJECTIVE_ENDINGS.fullmatch(word) is not None


def is_adverb(word: str) -> bool:
    """Whether the word ends like an adverb, and is none of the nouns and adjectives that do so, too."""
    return len(word) > 4 and word.endswith("ly") and word not in _ADVERB_NOUNS and word not in _LY_ADJECTIVES
