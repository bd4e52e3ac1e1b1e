"""Answers about photographs: a stage in front of the shipped models, which know nothing but generated scenes.

`foveate.multimodal.picture_check` tells a picture that is like the scenes from any other. Of any other picture the
answer is what `foveate.vision.recognition` knows: what is in it, where a thing is, whether it is there. Every other
question is refused with a remedy. There is no second language model here: questions are recognized by their form.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch

from foveate.multimodal.answers import NOT_FOUND, Answer, says_yes, write_corners
from foveate.multimodal.choose import Choice
from foveate.multimodal.picture_check import load_picture_check
from foveate.multimodal.reading import read_question
from foveate.records.boxes import Box, PixelBox
from foveate.records.conversations import IMAGE
from foveate.records.images import ImageInput, encode_input
from foveate.records.region_prompts import GROUNDING_REQUEST
from foveate.records.rows import clean_text
from foveate.records.shapes import Shape, enclosing_box
from foveate.vision.recognition import MIN_PRESENT, Evidence, Match, Recognizer, Thing, load_names, normalize_phrase

SOURCE = "recognition"
REMEDY = (
    "Ask what is in it, where something is, or whether something is there. An image-text model answers more: "
    "--model OWNER/NAME"
)
UNKNOWN = f"I do not know this kind of image. {REMEDY}"
UNDECIDED = f"I cannot know which of these answers is right about this kind of image. {REMEDY}"
UNRECOGNIZED = f"I do not recognize what is in this image. {REMEDY}"

Form = Literal["what", "where", "is there", "describe", "region", ""]
_PICTURE = r"(?:image|picture|photo|photograph|pic|scene|shot|snapshot|frame|drawing)s?"
_HERE = rf"(?:(?:in|on|inside|within|of) )?(?:(?:the|this|that|my|our) )?(?:{_PICTURE}|here)"
_NOUNS = r"(?:things?|objects?|items?|animals?|stuff|everything|contents?|subject|species|kind|bird|fruit|tool|vehicle)"
_PLEASE = re.compile(
    r"^(?:(?:please|hey|hi|hello|ok|okay|so|now|kindly)\b[ ,]*|(?:can|could|would|will) you (?:please |kindly )?"
    r"(?=find|locate|show|point|mark|box|highlight|detect|draw|give|tell|name|list|describe|identify|spot|put|say)|"
    r"(?:tell|show|let) me (?=where|what|whether|if)(?:(?:whether|if) (?=there|you|the))?|"
    r"i (?:want|would like|need) (?:you )?to (?:know )?|i wonder (?:if|whether)?|do you know |"
    r"i(?:'m| am) looking for (?=where)|would you say (?:that )?(?=there))"
)
_TAIL = re.compile(
    r"(?:^|(?<=[.?!,;] )|(?<= ))(?:please|thanks?(?: you)?|if so,? where(?: is it| are they)?|and where(?: is it)?|"
    r"(?:answer|use|reply|respond|write|give)\b[^.?!]*\b(?:briefly|phrase|sentence|words?|yes or no|detail))[.?! ]*$"
)
_FORMS: tuple[tuple[Form, str], ...] = (
    (
        "describe",
        rf"(?:describe|caption|summari[sz]e)\b.*|(?:write|give(?: me)?)(?: me)? (?:a|the) (?:\w+ ){{0,2}}"
        rf"(?:caption|description|summary)\b.*|what does (?:the|this) {_PICTURE} (?:show|depict|contain)",
    ),
    (
        "what",
        rf"what(?:'s| is| are)?(?: it)?(?: that)? (?:shown|visible|depicted|there|this|that|it|these|those|{_HERE})"
        rf"(?: (?:that|which|is|are|shown|called|visible|there|{_HERE}|a|{_PICTURE}))*|"
        rf"(?:what|which)(?: {_NOUNS}| kind of \w+| sort of \w+| type of \w+)+(?: (?:is|are|do|can|does|you|see|i|we|"
        rf"this|that|it|these|there|shown|visible|recognize|{_HERE}|the|{_PICTURE}|have|contain|show|depicted))*|"
        rf"what (?:do|can|could|did) (?:you|i|we) (?:see|recognize|find|spot|notice|make out)(?: {_HERE})?|"
        rf"(?:name|list|identify|tell me|say|recognize|detect|find|show me)(?: me)?(?: (?:the|all|main|each|every|of|"
        rf"what|is|are|this|it|{_NOUNS}|{_HERE}|you|see|can|and|their|boxes|visible|shown|a|{_PICTURE}))+|"
        rf"what(?: {_PICTURE})? is (?:this|it)|what(?: is|'s)? (?:am|are) (?:i|we) (?:looking at|seeing)|"
        rf"what is the (?:main |central )?(?:{_NOUNS})(?: (?:in|on|shown|of|{_HERE}))*|"
        r"(?:is|are) there (?:any|some)things?|do you see anything|"
        r"(?:is|are|what is|which(?: \w+)? is) (?:it|this|that|these|those|there)[,:]? [\w -]+ or [\w -]+",
    ),
)
_PATTERNS = tuple((form, re.compile(pattern)) for form, pattern in _FORMS)
# What follows a name and is left out where the whole is not understood: "the man in a red shirt". No place or color.
_MODIFIER = re.compile(
    r" (?:of|with|wearing|(?:in|on) an?|on the|beside the|next to the) "
    r"(?!(?:image|picture|photo|which|what|left|right|top|bottom|upper|lower|first|second|half|side|edge|color)\b)"
    r"(?:an? |the )?[\w'-]+(?: (?!(?:in|on|here|there|any\w*|is|are|appear|visible|shown|part|can|at|inside|within|"
    r"image|depicted|present)\b)[\w'-]+)?(?=[ ,.?!]|$)"
)


@dataclass(frozen=True, slots=True)
class Request:
    """The form of a question, and the phrase that it is about."""

    form: Form
    phrase: str = ""


def read_request(question: str, *, num_regions: int = 0) -> Request:
    """Recognize the form of a question; "" where nothing here answers it.

    >>> read_request("Can you find the red car in this picture, please?")
    Request(form='where', phrase='red car')
    >>> read_request("Do you see any dogs?")
    Request(form='is there', phrase='dog')
    >>> read_request("How many dogs are there?").form
    ''
    """
    text = clean_text(question.replace(IMAGE, " ").replace(GROUNDING_REQUEST, " ")).casefold().replace("\u2019", "'")
    # "Is there a deer? If so, where is it?" asks whether it is there.
    asked = _TAIL.sub("", text) or text
    names = _list_names()
    reading = read_question(asked, names=names) or read_question(_MODIFIER.sub("", asked), names=names)
    if reading is not None:
        if reading.form == "name":
            return Request("region" if num_regions == 1 else "")
        known = reading.form in ("where", "is there") and not num_regions
        return Request(cast(Form, reading.form), reading.name) if known else Request("")
    if num_regions:
        return Request("")
    previous = ""
    text = re.sub(r"^(what|there)'s\b", r"\1 is", text)
    while previous != text:
        previous = text
        text = _PLEASE.sub("", _TAIL.sub("", text).rstrip(" .?!,")).strip()
    return Request(next((form for form, pattern in _PATTERNS if pattern.fullmatch(text)), ""))


@functools.cache
def _list_names() -> tuple[str, ...]:
    """Return the names that recognition knows."""
    graph = load_names()
    return tuple(dict.fromkeys([*graph.words, *graph.detector, *graph.aliases]))


class PictureReader:
    """Answer questions about pictures that are unlike the scenes of a shipped model's training.

    Args:
        device: of the networks, which are opened when the first such picture comes.

    Attributes:
        max_images: what the networks said of so many images is kept, the last ones.
    """

    max_images = 8

    def __init__(self, *, device: str | None = None) -> None:
        self.device = device
        self._recognizer: Recognizer | None = None
        # The last images: a conversation asks about one again and again.
        self._evidence: dict[bytes, Evidence] = {}

    def are_unlike(self, vectors: Sequence[torch.Tensor]) -> bool:
        """Return whether one of several pictures, by their vectors (see `picture_check`), is unlike the scenes."""
        return bool(vectors) and bool(load_picture_check().are_unlike(torch.stack(list(vectors))).any())

    def answer(self, images: Sequence[ImageInput], question: str, regions: Sequence[Shape] = ()) -> Answer:
        """Answer a question about pictures, of which one at least is unlike the scenes."""
        request = read_request(question, num_regions=len(regions))
        if len(images) != 1 or not request.form:
            return Answer(UNKNOWN, source=SOURCE)
        data = encode_input(images[0])
        if request.form == "region":
            return self._name_region(data, regions[0])
        evidence = self.read(data)
        if request.form == "where":
            return self._locate(evidence, request.phrase)
        if request.form == "is there":
            return self._confirm(evidence, request.phrase)
        things = self.recognizer.list_things(evidence)
        if request.form == "describe" and things:
            return Answer(write_caption("dsc", things), source=SOURCE)
        return _list(things, evidence.size)

    def choose(
        self, images: Sequence[ImageInput], question: str, options: Sequence[str], regions: Sequence[Shape] = ()
    ) -> Choice:
        """Choose from options, which are yes and no or names of things; each has the share of its evidence."""
        undecided = Choice((1 / len(options),) * len(options), SOURCE, UNDECIDED)
        request = read_request(question, num_regions=len(regions))
        if len(images) != 1 or not request.form:
            return undecided
        data = encode_input(images[0])
        if request.form == "is there" and {option.casefold().strip(" .!") for option in options} == {"yes", "no"}:
            match = self._find(self.read(data), request.phrase)
            # Where no class has the name, a likeness of words has a floor and no odds.
            if not match.is_known:
                return undecided
            # Even odds at the floor, from which on a thing counts as there.
            score = min(max(match.score, 0.01), 0.99)
            yes = score * (1 - MIN_PRESENT) / (score * (1 - MIN_PRESENT) + (1 - score) * MIN_PRESENT)
            return Choice(tuple(yes if says_yes(option) else 1 - yes for option in options), SOURCE)
        if request.form not in ("what", "region"):
            return undecided
        scores = self._weigh(data, options, regions) if all(map(self._is_name, options)) else []
        if max(scores, default=0.0) < MIN_PRESENT:
            return undecided
        return Choice(tuple(score / sum(scores) for score in scores), SOURCE)

    def _is_name(self, option: str) -> bool:
        text, _, _ = self.recognizer.graph.find_nodes(option)
        # "A red car" is decided as a car is: every word must be of the name.
        return bool(text) and len(text.split()) == len(normalize_phrase(option).split())

    def _weigh(self, data: bytes, names: Sequence[str], regions: Sequence[Shape]) -> list[float]:
        """Return the evidence of each name, in a region or the whole image; none where it cannot be weighed."""
        evidence = self.read(data)
        if not regions:
            return [self._find(evidence, name).score for name in names]
        box = _read_region(regions[0], evidence.size)
        if box is None:
            return []
        nodes_of = [nodes for _, nodes, _ in map(self.recognizer.graph.find_nodes, names)]
        # Names that the detector alone has say nothing of a crop.
        if not all(nodes_of):
            return []
        mass_N = self.recognizer.classify_region(data, box)
        return [float(mass_N[nodes].max()) for nodes in nodes_of]

    @property
    def recognizer(self) -> Recognizer:
        """The networks, opened at first use."""
        if self._recognizer is None:
            self._recognizer = Recognizer.open(device=self.device)
        return self._recognizer

    def read(self, image: bytes) -> Evidence:
        """Run the networks on an image, unless it is one of the last."""
        key = hashlib.sha256(image).digest()
        if key not in self._evidence:
            evidence = self.recognizer.read(image)
            while len(self._evidence) >= self.max_images:
                del self._evidence[next(iter(self._evidence))]
            self._evidence[key] = evidence
        return self._evidence[key]

    def caption(self, image: bytes, kind: str, *, alt: str = "") -> str:
        """Write a caption that states only what was recognized; "" where nothing was."""
        evidence = self.read(image)
        things = self.recognizer.list_things(evidence, max_things=8)
        return write_caption(kind, things, alt=alt) if things else ""

    def _locate(self, evidence: Evidence, phrase: str) -> Answer:
        match = self._find(evidence, phrase)
        if not match.has_match or match.thing.box is None:
            return Answer(NOT_FOUND, rejected=(match.score,), source=SOURCE)
        box = _to_pixels(match.thing.box, evidence.size)
        text = f"probably at {write_corners(box)} ({_write_score(match)})"
        return _make(text, [(box, phrase, match.score)])

    def _confirm(self, evidence: Evidence, phrase: str) -> Answer:
        match = self._find(evidence, phrase)
        if not match.has_match:
            return Answer(f"no, probably not ({_write_score(match)})", source=SOURCE)
        if match.thing.box is None:
            return Answer(f"yes, probably ({_write_score(match)})", source=SOURCE)
        box = _to_pixels(match.thing.box, evidence.size)
        return _make(f"yes, probably ({_write_score(match)}) at {write_corners(box)}", [(box, phrase, match.score)])

    def _find(self, evidence: Evidence, phrase: str) -> Match:
        return self.recognizer.find(evidence, phrase)

    def _name_region(self, image: bytes, region: Shape) -> Answer:
        box = _read_region(region, self.read(image).size)
        if box is None:
            return Answer(f"I cannot name so small a region of this kind of image. {REMEDY}", source=SOURCE)
        things = self.recognizer.name_region(image, box)
        if not things:
            return Answer(UNRECOGNIZED, source=SOURCE)
        names = ", ".join(f"{add_article(thing.name)} ({_write(thing.score)})" for thing in things)
        return Answer(f"probably: {names}", source=SOURCE)


MIN_REGION = 0.05  # of the image's shorter side


def _read_region(region: Shape, size: tuple[int, int]) -> Box | None:
    """Return the box of a region in [0, 1] of an image of a size; None where it is too small to be named."""
    pixels = enclosing_box(region)
    if pixels is None or min(pixels.x2 - pixels.x1, pixels.y2 - pixels.y1) < MIN_REGION * min(size):
        return None
    width, height = size
    return Box(
        max(pixels.x1 / width, 0), max(pixels.y1 / height, 0), min(pixels.x2 / width, 1), min(pixels.y2 / height, 1)
    )


def _list(things: Sequence[Thing], size: tuple[int, int]) -> Answer:
    """Return the answer that lists things with their scores and boxes."""
    if not things:
        return Answer(UNRECOGNIZED, source=SOURCE)
    parts, rows = [], []
    for thing in things:
        text = f"{add_article(thing.name)} ({_write(thing.score)})"
        if thing.box is not None:
            box = _to_pixels(thing.box, size)
            text += f" {write_corners(box)}"
            rows.append((box, thing.name, thing.score))
        parts.append(text)
    return _make(f"probably: {', '.join(parts)}", rows)


def _make(text: str, rows: Sequence[tuple[PixelBox, str, float]]) -> Answer:
    boxes, phrases, scores = (tuple(column) for column in zip(*rows, strict=True)) if rows else ((), (), ())
    return Answer(text, boxes=boxes, images=(0,) * len(rows), phrases=phrases, box_scores=scores, source=SOURCE)


def _to_pixels(box: Box, size: tuple[int, int]) -> PixelBox:
    return box.to_pixels(*size)


def _write(score: float) -> str:
    # Never 1: nothing here is certain.
    return f"{min(max(score, 0.0), 0.99):.2f}".removeprefix("0")


def _write_score(match: Match) -> str:
    return _write(match.score) if match.is_known else "by likeness of words alone"


_MASS = frozenset("food water broccoli corn wool bread ice landscape furniture armor coral".split())
_PAIRS = frozenset("binoculars jeans pajamas scissors sunglasses tights goggles maracas french clogs".split())


def add_article(name: str) -> str:
    """Return a name with its article.

    >>> add_article("otter"), add_article("unicycle"), add_article("sunglasses"), add_article("glass")
    ('an otter', 'a unicycle', 'sunglasses', 'a glass')
    """
    last = name.split()[-1].casefold()
    if last in _MASS or last in _PAIRS:
        return name
    first = name.casefold()
    is_vowel = first[:1] in "aeio" or (first[:1] == "u" and not first.startswith(("uni", "us", "ur", "ut")))
    return f"{'an' if is_vowel and not first.startswith(('eu', 'one')) else 'a'} {name}"


# Captions that state only what was recognized.


def write_caption(kind: str, things: Sequence[Thing], *, alt: str = "") -> str:
    """Write a caption of a format from recognized things, the surest first.

    Args:
        kind: one of the formats; "ssc" names the main thing, "dsc" also places it and names others, "dsc_plus" lists
            all with places, sizes and scores. alt: of the image; "afc" quotes it, since nothing here can check it.
    """
    main, *others = things
    sentences = [f"This is probably {add_article(main.name)}{_say_kind(main)}."]
    if kind == "ssc":
        return sentences[0]
    if main.box is not None:
        sentences.append(f"It is {_place(main.box)}.")
    if kind == "dsc_plus":
        sentences[0] = (
            f"This is probably {add_article(main.name)}{_say_kind(main)}, with a score of {_write(main.score)}."
        )
        for thing in others:
            where = f" {_place(thing.box)}" if thing.box is not None else ""
            sentences.append(
                f"There is probably {add_article(thing.name)}{where}, with a score of {_write(thing.score)}."
            )
        sentences.append("Nothing else was recognized.")
    elif others:
        # Two horses are one entry: "a horse and a horse" reads like a fault.
        named = list(dict.fromkeys(thing.name for thing in others))[:3]
        names = [f"another {name}" if name == main.name else add_article(name) for name in named]
        listed = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
        sentences.append(f"There is probably also {listed}.")
    if kind == "afc" and alt:
        sentences.append(f'Its alt-text says "{clean_text(alt)[:120]}".')
    return " ".join(sentences)


def _say_kind(thing: Thing) -> str:
    """Return the common name behind a rare one: "a macaw, a kind of parrot"."""
    if not thing.parent or thing.parent.casefold() in thing.name.casefold() or thing.parent in ("animal", "human"):
        return ""
    return f", a kind of {thing.parent}"


def _place(box: Box) -> str:
    """Say where a box lies and how much of the image it covers."""
    x, y = (box.x1 + box.x2) / 2, (box.y1 + box.y2) / 2
    across = "left" if x < 0.38 else "right" if x > 0.62 else ""
    down = "upper" if y < 0.38 else "lower" if y > 0.62 else ""
    area = (box.x2 - box.x1) * (box.y2 - box.y1)
    if area > 0.6:
        return "all over the image"
    if not across and not down:
        return "in the middle"
    if across and down:
        return f"in the {down} {across} part"
    return f"on the {across}" if across else f"in the {down} part"
