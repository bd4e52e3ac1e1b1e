"""Exact questions about regions of scenes: name them, tell them apart, relate them, find things, find all of them.

A question points with a box, a point, a stroke or a mask; an answer always with boxes. Questions with two answers are
decided by a coin, as those of `foveate_labs.worlds.scenes.questions` are; what is denied is a near miss where there is
one ("is there a red cup?" beside a red plate).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

import numpy as np

from foveate.core.errors import choose as check_choice
from foveate.core.seeds import uniform
from foveate.multimodal.questions import expand
from foveate.records.boxes import raster_key
from foveate.records.shapes import Mask, Shape, encode_mask
from foveate_labs.worlds.questions import Form, Question
from foveate_labs.worlds.scenes import pools
from foveate_labs.worlds.scenes.contrasts import draw_contrast
from foveate_labs.worlds.scenes.language import Relation, add_article, be, is_plural
from foveate_labs.worlds.scenes.questions import SceneAsker
from foveate_labs.worlds.scenes.scene import Scene, SceneObject
from foveate_labs.worlds.scenes.strokes import draw_point, draw_stroke

# How questions about regions are worded: a small grammar instead of lists.
#
# A pattern such as "(What|Which thing) is (at|in) <region>?" stands for all its readings. A model that has met a name
# at
# every place of a question, behind many beginnings, reads new wordings of the same words; from short lists it does not.
# A fifth of the readings, chosen by their hash, are held out for tests; no training question has one of them.


HELD_OUT_SHARE = 0.2


def make_form(name: str, patterns: Iterable[str], sentence: str | Mapping[str, str]) -> Form:
    """Split the readings of patterns into prompts for training and held-out ones; every pattern is trained on."""
    sources = {reading: pattern for pattern in patterns for reading in expand(pattern)}
    # By a hash, so that neither the machine nor the order of patterns decides what is held out.
    ranked = sorted(sources, key=lambda reading: uniform("region wording", name, reading))
    remaining = Counter(sources.values())
    held_out: list[str] = []
    for reading in ranked:
        # The last reading of a pattern stays in training: its words must be known when tests combine them anew.
        if len(held_out) < HELD_OUT_SHARE * len(ranked) and remaining[sources[reading]] > 1:
            held_out.append(reading)
            remaining[sources[reading]] -= 1
    return Form(tuple(reading for reading in ranked if reading not in held_out), tuple(held_out), sentence)


_SEE = "(can you see|do you see|is there|is it)"
_AT = "(at|in|inside)"
_NAME_IT = "(Name|Say|Tell me|Write)"
_PATTERNS: dict[str, tuple[tuple[str, ...], str | Mapping[str, str]]] = {
    "refer": (
        (
            f"(What|Which thing) (is|{_SEE}) {_AT} <region>( in the image|)?",
            f"(In the image, |)(what|which thing) (is|{_SEE}) {_AT} <region>?",
            "<region>(:| in the image:) (what|which thing) (is it|is this|do you see|can you see)?",
            f"{_NAME_IT} (what is|the thing that is) {_AT} <region>( in the image|).",
            f"{_AT} <region>, (what|which thing) {_SEE}?",
            "(What|Which thing) does <region>( in the image|) show?",
        ),
        "It is {a_x}.",
    ),
    "refer: which": (
        (
            "Is (the thing at |the thing in |)<region>( in the image|) {first} or {second}?",
            "<region>: is (it|this) {first} or {second}?",
            "{first} or {second}: which (of them |)is (at|in) <region>?",
            "(Which is|What is|What do you see|What can you see) (at|in) <region>, {first} or {second}?",
            "(In the image, |)does <region> show {first} or {second}?",
        ),
        "It is {a_x}.",
    ),
    "refer: yes or no": (
        (
            "Is (the thing at |the thing in |)<region>( in the image|) {stated}?",
            "<region>: is (it|this) {stated}?",
            "{stated}: (is it|is that|do you see it|can you see it) (at|in) <region>?",
            "(In the image, |)(is there|do you see|can you see) {stated} (at|in) <region>?",
            "(In the image, |)does <region> show {stated}?",
        ),
        {"yes": "Yes, it is {a_x}.", "no": "No, it is {a_x}."},
    ),
    "refer: first or second": (
        (
            "(Which|Which region) shows the {x}, <region> or <region>?",
            "Is the {x} (at|in) <region> or (at|in) <region>?",
            "<region> or <region>: (which|where) is the {x}?",
            "(In the image, |)is it <region> or <region> that shows the {x}?",
            "The {x}: (is it|do you see it|can you see it) (at|in) <region> or <region>?",
            "Where is the {x}, (at|in) <region> or (at|in) <region>?",
        ),
        "The {x} is at the {answer}.",
    ),
    "relation": (
        (
            "(How is|Where is) <region> placed(, seen| as seen|) from <region>?",
            "Where is <region>, seen from <region>?",
            "(Where is|How is) the thing (at|in) <region> placed, seen from <region>?",
            "(Seen|) from <region>, where (is|do you see|can you see) <region>?",
            "<region> and <region>: where is the first, seen from the second?",
            f"{_NAME_IT} where <region> is, seen from <region>.",
        ),
        "The {x} is {answer} the {y}.",
    ),
    "relation: yes or no": (
        (
            "Is <region> {stated} <region>( in the image|)?",
            "(In the image, |)is <region> {stated} <region>?",
            "<region>: is it {stated} <region>?",
            "(Do you see|Can you see) <region> {stated} <region>?",
            "Is the thing (at|in) <region> {stated} the thing (at|in) <region>?",
            "<region> and <region>: is the first {stated} the second( in the image|)?",
        ),
        {"yes": "Yes, the {x} is {relation} the {y}.", "no": "No, the {x} is {relation} the {y}."},
    ),
    "ground": (
        (
            "(In the image, |)(where {is_x}|where do you see|where can you see) the {x}?",
            "The {x}: where (is it|do you see it|can you see it)( in the image|)?",
            "(Find|Show|Point at|Box) the {x}( in the image|).",
            "(Find|Show|Point at|Box) (in the image |)the {x}.",
            "Where in the image {is_x} the {x}?",
            "Where {is_x} the {x}( in the image|)?",
            f"{_NAME_IT} where the {{x}} {{is_x}}( in the image|).",
            "{x}(: where|, where is it|: the box)?",
        ),
        "The {x} {is_x} at <region>.",
    ),
    # Asks whether and where at once: the sentence of a "no" has a box too, that of the near miss.
    "ground: yes or no": (
        (
            "(In the image, |)(do you see|can you see) {stated}? (Where|If so, where|Show it).",
            "(In the image, {is_stated}|{Is_stated}) there {stated}? (Where|If so, where|Show it).",
            "{stated}: (is there one|do you see one|can you see one)( in the image|)? (Where|Show it).",
            "{Is_stated} {stated} in the image? (Where|If so, where|Show it).",
            "(Show|Find|Box) {stated}, if there is one( in the image|).",
        ),
        {"yes": "Yes, {stated} {is_near} at <region>.", "no": "No, but there {is_near} {near} at <region>."},
    ),
    "ground all": (
        (
            "(Box|Find|Show|Point at) (all things|each thing) of this text( in the image|): {caption}",
            "{caption} (Box|Find|Show|Point at) (all things|each thing) that (the text|this) names.",
            "Where (is each thing|are all things) of this text( in the image|)? {caption}",
            "{caption} Where (is each thing|are all things)( in the image|)?",
        ),
        "{grounded}",
    ),
    "detect": (
        (
            "(Find|Box|Show|Name and box) (all things|each thing)( in the image|)( in order|, row by row|).",
            "(What|Which things) (is there|can you see|do you see)( in the image|)? (Box|Show) (all|each)( in order|).",
            "(In the image, |)(which things|what) (can you see|do you see), and where?",
        ),
        "{listed}",
    ),
}
FORMS = {name: make_form(name, patterns, sentence) for name, (patterns, sentence) in _PATTERNS.items()}


def list_patterns() -> list[str]:
    """List the patterns of all questions about regions; see `expand`."""
    return [pattern for patterns, _ in _PATTERNS.values() for pattern in patterns]


KINDS = ("refer", "relation", "ground", "ground all", "detect")
# The same relation, seen from the other thing.
_INVERSE = {"left of": "right of", "above": "below", "inside": "around", "overlapping": "overlapping"}
_OPPOSITES = {"left of": "right of", "above": "below", "inside": "around"}
_OPPOSITES |= {inverse: name for name, inverse in _OPPOSITES.items()}


def ask_regions(
    scene: Scene, rng: np.random.Generator, *, split: str, kinds: Collection[str] = KINDS
) -> list[Question]:
    """Ask everything about the regions of a scene that has a certain answer, grouped by kind.

    Args:
        rng: decides the wording, the shapes that point, and which of two answers is true.
        split: "test" takes the wordings that no training question has.
        kinds: a part of KINDS.

    Raises:
        UserError: the split or a kind is unknown.
    """
    check_choice(split, pools.SPLITS, "split")
    asker = _RegionAsker(scene, rng, held_out=split == "test")
    questions: list[Question] = []
    for kind in kinds:
        check_choice(kind, KINDS, "kind")
        getattr(asker, f"ask_{kind.replace(' ', '_')}")(questions)
    return questions


class _RegionAsker(SceneAsker):
    forms = FORMS

    def point_at(self, placed: SceneObject) -> Shape:
        """Draw how a question points at a thing: with its box, a point, a stroke or its mask."""
        share = self.rng.random()
        if share < 0.4:
            return self.region(placed)
        if share < 0.6:
            return draw_point(placed.mask_HW, self.rng)
        if share < 0.8:
            return draw_stroke(placed.mask_HW, self.rng)
        encoded = encode_mask(placed.mask_HW)
        height, width = encoded["size"]
        return Mask((height, width), tuple(encoded["counts"]))

    def ask_refer(self, questions: list[Question]) -> None:
        questions += [self.write_name("refer", placed, self.point_at(placed)) for placed in self.named]
        self._ask_first_or_second(questions)

    def _ask_first_or_second(self, questions: list[Question]) -> None:
        # The wordings of this form have verbs in the singular only.
        unique = [placed for placed in self.scene.regions if not is_plural(placed.phrase)]
        if len(unique) < 2:
            return
        first, second = (unique[int(index)] for index in self.rng.permutation(len(unique))[:2])
        answer = "first" if self.coin() else "second"
        fields = {"x": (first if answer == "first" else second).phrase, "answer": answer}
        regions = self.point_at(first), self.point_at(second)
        questions.append(
            self.write("refer: first or second", answer, fields, regions=regions, choices=("first", "second"))
        )

    def ask_relation(self, questions: list[Question]) -> None:
        for relation in _pick_clear(self.scene.relations):
            first, second = self.scene.regions[relation.first], self.scene.regions[relation.second]
            name = relation.name
            if self.coin():
                first, second, name = second, first, _INVERSE[name]
            if is_plural(first.phrase):
                continue
            regions = self.point_at(first), self.point_at(second)
            fields = {"x": first.phrase, "y": second.phrase, "relation": name, "answer": name}
            # Overlapping has no opposite that could be stated instead.
            if name in _OPPOSITES and self.coin():
                stated = name, _OPPOSITES[name]
                questions.append(self.decide("relation: yes or no", fields, regions=regions, stated=stated))
            else:
                questions.append(self.write("relation", name, fields, regions=regions))

    def ask_ground(self, questions: list[Question]) -> None:
        for placed in self.scene.regions:
            fields = {"x": placed.phrase, "is_x": be(placed.phrase)}
            questions.append(self.write("ground", "<region>", fields, regions=(self.region(placed),)))
            contrast = draw_contrast(self.rng, self.scene, placed)
            if contrast is not None:
                near, verbs = add_article(placed.phrase), (be(placed.phrase), be(contrast))
                questions.append(
                    self.decide(
                        "ground: yes or no",
                        {"near": near, "is_near": verbs[0]},
                        # For a "no" as well: only as a sentence can the answer point at what is there instead.
                        regions=(self.region(placed),),
                        way="sentence",
                        stated=(near, add_article(contrast)),
                        is_stated=verbs,
                        Is_stated=(verbs[0].title(), verbs[1].title()),
                    )
                )

    def ask_ground_all(self, questions: list[Question]) -> None:
        caption = next(caption.text for caption in self.scene.captions if caption.kind == "exact")
        things = {add_article(placed.phrase): placed for placed in self.scene.regions}
        grounded, phrases = mark_phrases(caption, tuple(things))
        if phrases:
            regions = tuple(self.region(things[phrase]) for phrase in phrases)
            fields = {"caption": f"{caption}.", "grounded": f"{grounded}."}
            questions.append(self.write("ground all", fields["grounded"], fields, regions=regions, way="short"))

    def ask_detect(self, questions: list[Question]) -> None:
        # Raster order: by the upper edge, then by the left one.
        # Includes copies, which are not regions of the scene: a list without one of two equal things would be wrong.
        boxes = sorted(
            ((self.region(placed), placed.phrase) for placed in self.visible), key=lambda pair: raster_key(pair[0])
        )
        if boxes:
            listed = ", ".join(f"{phrase} <region>" for _, phrase in boxes)
            regions = tuple(box for box, _ in boxes)
            questions.append(self.write("detect", listed, {"listed": listed}, regions=regions, way="short"))


def _pick_clear(relations: Collection[Relation]) -> list[Relation]:
    """Return the relations of pairs between which only one holds."""
    pairs = [frozenset((relation.first, relation.second)) for relation in relations]
    return [relation for relation, pair in zip(relations, pairs, strict=True) if pairs.count(pair) == 1]


def mark_phrases(caption: str, phrases: Collection[str]) -> tuple[str, list[str]]:
    """Put `<region>` behind the first mention of each phrase; return the text and the phrases in its order.

    >>> mark_phrases("An owl beside a red apple", ("a red apple", "an owl", "an apple"))
    ('An owl <region> beside a red apple <region>', ['an owl', 'a red apple'])
    """
    spans: dict[int, tuple[int, str]] = {}
    # The longest first: "a cat" must not be marked in "a cat toy".
    for phrase in sorted(phrases, key=len, reverse=True):
        for match in re.finditer(rf"(?<!\w){re.escape(phrase)}(?!\w)", caption, re.IGNORECASE):
            if all(match.end() <= start or end <= match.start() for start, (end, _) in spans.items()):
                spans[match.start()] = match.end(), phrase
                break
    for _, (end, _) in sorted(spans.items(), reverse=True):
        caption = f"{caption[:end]} <region>{caption[end:]}"
    return caption, [phrase for _, (_, phrase) in sorted(spans.items())]
