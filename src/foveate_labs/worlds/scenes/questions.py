"""Exact questions on scenes: names, places, presence, colors, numbers and positions.

Every question with two answers is decided by a coin after both answers were possible (see `contrasts`), so guessing the
most frequent answer is right half of the time, whatever the question says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping

import numpy as np

from foveate.core.errors import choose as check_choice
from foveate.records.boxes import Box, PixelBox
from foveate.records.shapes import Shape
from foveate_labs.worlds.questions import Form, Question, Way, write_question
from foveate_labs.worlds.scenes import pools
from foveate_labs.worlds.scenes.contrasts import (
    draw_color_contrast,
    draw_contrast,
    list_colors,
    singular_words,
    split_color,
)
from foveate_labs.worlds.scenes.counting import MAX_COPIES
from foveate_labs.worlds.scenes.language import (
    NUMERALS,
    add_article,
    be,
    describe_count,
    is_countable,
    pluralize,
)
from foveate_labs.worlds.scenes.scene import VISIBLE, Scene, SceneObject
from foveate_labs.worlds.scenes.shapes import load_shapes

# The words of the held-out prompts are all in prompts of training, so that a small vocabulary has them; their order is
# new. A key is the kind, then after a colon the way of asking; `write_question` takes the kind from it.
# Names occur at every position of a question: a model that saw them only at the end looked for the last token.
FORMS: dict[str, Form] = {
    "name": Form(
        (
            "What is <region>?",
            "What is in <region>?",
            "What does <region> show?",
            "Name the thing in <region>.",
            "Which thing is at <region>?",
            "Say what <region> shows.",
            "At <region>, what thing is there?",
            "<region>: what is it?",
        ),
        ("What is at <region>?", "What thing does <region> show?", "Which thing is in <region>?"),
        "It shows {a_x}.",
    ),
    "name: which": Form(
        (
            "Is <region> {first} or {second}?",
            "Does <region> show {first} or {second}?",
            "<region>: is it {first} or {second}?",
            "At <region>, is there {first} or {second}?",
        ),
        ("What is <region>, {first} or {second}?", "What does <region> show, {first} or {second}?"),
        "It shows {a_x}.",
    ),
    "name: yes or no": Form(
        (
            "Is <region> {stated}?",
            "Does <region> show {stated}?",
            "Is the thing at <region> {stated}?",
            "<region>: is it {stated}?",
            "At <region>, is there {stated}?",
        ),
        ("Is the thing in <region> {stated}?", "Is {stated} at <region>?"),
        {"yes": "Yes, it shows {a_x}.", "no": "No, it shows {a_x}."},
    ),
    "where": Form(
        (
            # {is_x} is "is" or "are": some names are plural, such as "chopsticks".
            "Where is the {x}?",
            "Find the {x}.",
            "Where in the image is the {x}?",
            "Show the place of the {x}.",
            "The {x}: where is it?",
            "Point at the {x} in the image.",
            "Where can you see the {x}?",
            "Is the {x} in the image? Show the place.",
            "In the image, where {is_x} the {x} placed?",
            "Say where the {x} {is_x} placed.",
        ),
        ("Find the place of the {x}.", "Show where the {x} is."),
        "The {x} {is_x} at <region>.",
    ),
    "is there": Form(
        (
            "{Is_stated} there {stated}?",
            "{Is_stated} there {stated} in the image?",
            "Does the image show {stated}?",
            "Can you see {stated}?",
            "In the image, can you see {stated}?",
            "{Is_stated} there {stated} that you can see?",
            "Do you see {stated} in the image?",
        ),
        ("Can you see {stated} in the image?", "Does the image have {stated}?"),
        {"yes": "Yes, the image shows {stated}.", "no": "No, the image does not show {stated}."},
    ),
    "color": Form(
        (
            "What color {is_x} the {x}?",
            "Which color {is_x} the {x}?",
            "Name the color of the {x}.",
            "The {x}: which color is it?",
            "Of what color {is_x} the {x}?",
            "Say what color the {x} {is_x}.",
        ),
        ("What is the color of the {x}?", "The {x}: what color {is_x} the thing?"),
        "The {x} {is_x} {color}.",
    ),
    "color: region": Form(
        (
            "What color is <region>?",
            "Which color is the thing at <region>?",
            "Name the color of <region>.",
            "<region>: what color is it?",
            "Say what color <region> is.",
        ),
        ("What is the color of <region>?", "What color is the thing in <region>?"),
        "It is {color}.",
    ),
    "color: which": Form(
        (
            "{Is_x} the {x} {first} or {second}?",
            "What color {is_x} the {x}, {first} or {second}?",
            "The {x}: {first} or {second}?",
            "Of the colors {first} and {second}, which color {is_x} the {x}?",
        ),
        ("Which color {is_x} the {x}, {first} or {second}?", "Is the color of the {x} {first} or {second}?"),
        "The {x} {is_x} {color}.",
    ),
    "color: yes or no": Form(
        (
            "{Is_x} the {x} {stated}?",
            "Is the color of the {x} {stated}?",
            "The {x}: {is_x} the thing {stated}?",
            "In the image, {is_x} the {x} {stated}?",
            "Does the {x} have the color {stated}?",
        ),
        ("Is {stated} the color of the {x}?", "Does the image show the {x} in {stated}?"),
        {"yes": "Yes, the {x} {is_x} {color}.", "no": "No, the {x} {is_x} {color}."},
    ),
    "count": Form(
        (
            "How many {xs} are there?",
            "How many {xs} does the image show?",
            "Count the {xs}.",
            "How many {xs} can you see in the image?",
            "How many {xs} does the image have?",
            "The {xs}: how many are there?",
            "There are how many {xs}?",
            "In the image, how many {xs} are there?",
            "Say how many {xs} you can see.",
        ),
        ("How many {xs} are in the image?", "Count the {xs} in the image.", "How many {xs} can you see?"),
        "There {are_n} {n_xs}.",
    ),
    "count: which": Form(
        (
            "Are there {first} or {second} {xs}?",
            "How many {xs} are there, {first} or {second}?",
            "The {xs}: are there {first} or {second}?",
            "Does the image show {first} or {second} {xs}?",
            "In the image, can you see {first} or {second} {xs}?",
        ),
        ("How many {xs} does the image show, {first} or {second}?", "Can you see {first} or {second} {xs}?"),
        "There {are_n} {n_xs}.",
    ),
    "count: yes or no": Form(
        (
            "{Are_stated} there {stated_xs}?",
            # "Exactly", because an image of three cups also shows two.
            "Does the image show exactly {stated_xs}?",
            "{Are_stated} there exactly {stated_xs}?",
            "Exactly {stated_xs}: does the image show that?",
            "Can you see that there are exactly {stated_xs}?",
        ),
        ("Does the image have exactly {stated_xs}?", "Can you see exactly {stated_xs}?"),
        {"yes": "Yes, there {are_n} {n_xs}.", "no": "No, there {are_n} {n_xs}."},
    ),
    "count: more": Form(
        (
            "Are there more {first} or more {second}?",
            "Which are there more of, {first} or {second}?",
            "Does the image show more {first} or more {second}?",
            "The {first} and the {second}: which are there more of?",
            "In the image, are there more {first} or more {second}?",
        ),
        ("Of which are there more, {first} or {second}?", "Can you see more {first} or more {second}?"),
        "There are more {xs}.",
    ),
    "count: more, yes or no": Form(
        (
            "Are there more {first} than {second}?",
            "Does the image show more {first} than {second}?",
            "More {first} than {second}: does the image show that?",
            "Are there, in the image, more {first} than {second}?",
        ),
        ("Can you see more {first} than {second}?", "Does the image have more {first} than {second}?"),
        {"yes": "Yes, there are more {xs}.", "no": "No, there are more {xs}."},
    ),
    "position": Form(
        (
            "Is the {x} in the {first} half or the {second} half of the image?",
            "In which half of the image is the {x}, {first} or {second}?",
            "Which half of the image shows the {x}, the {first} or the {second} half?",
            "The {x}: in the {first} half or the {second} half?",
            "Is it the {first} half or the {second} half where the {x} is?",
            "Do you see the {x} in the {first} half or in the {second} half?",
        ),
        (
            "Which half of the image is the {x} in, {first} or {second}?",
            "Can you see the {x} in the {first} or the {second} half of the image?",
        ),
        "The {x} {is_x} in the {side} half.",
    ),
    "position: yes or no": Form(
        (
            "Is the {x} in the {stated} half of the image?",
            "Does the {stated} half of the image show the {x}?",
            "The {x}: is it in the {stated} half of the image?",
            "Is it the {stated} half of the image that shows the {x}?",
            "Do you see the {x} in the {stated} half?",
            "In the {stated} half of the image, is there the {x}?",
        ),
        ("Can you see the {x} in the {stated} half of the image?", "Is the {stated} half where the {x} is?"),
        {"yes": "Yes, the {x} {is_x} in the {side} half.", "no": "No, the {x} {is_x} in the {side} half."},
    ),
    "position: relation": Form(
        (
            "Is the {x} {first} or {second} the {y}?",
            "Is the {x} placed {first} or {second} the {y}?",
            "The {x}: {first} or {second} the {y}?",
            "Do you see the {x} {first} or {second} the {y}?",
            "Is it {first} or {second} the {y} that you see the {x}?",
            "In the image, is the {x} {first} or {second} the {y}?",
        ),
        ("How is the {x} placed, {first} or {second} the {y}?", "Where is the {x}, {first} or {second} the {y}?"),
        "The {x} {is_x} {relation} the {y}.",
    ),
    "position: relation, yes or no": Form(
        (
            "Is the {x} {stated} the {y}?",
            "Is the {x} placed {stated} the {y}?",
            "Can you see the {x} {stated} the {y}?",
            "The {x}: is it {stated} the {y}?",
            "Do you see the {x} {stated} the {y}?",
            "In the image, is the {x} {stated} the {y}?",
            "Is it {stated} the {y} where you see the {x}?",
            "Does the image have the {x} {stated} the {y}?",
        ),
        ("Does the image show the {x} {stated} the {y}?", "Is it the {x} that is {stated} the {y}?"),
        {"yes": "Yes, the {x} {is_x} {relation} the {y}.", "no": "No, the {x} {is_x} {relation} the {y}."},
    ),
    "position: further": Form(
        (
            "Which is further {side}, the {first} or the {second}?",
            "Is it the {first} or the {second} that is further {side}?",
            "The {first} or the {second}: which is further {side}?",
            "In the image, is the {first} or the {second} further {side}?",
            "Of the {first} and the {second}, which is further {side}?",
        ),
        (
            "Is the {first} or the {second} further {side}?",
            "Which thing is further {side}, the {first} or the {second}?",
        ),
        "The {x} {is_x} further {side}.",
    ),
    # From here on questions are about several images; `<image>` is put in front of them by `image_sets`.
    "compare": Form(
        (
            "Which image shows {stated}, the {first} or the {second}?",
            "Is {stated} in the {first} or the {second} image?",
        ),
        (
            "In which image can you see {stated}, the {first} or the {second}?",
            "Does the {first} or the {second} image show {stated}?",
        ),
        "The {answer} image shows {stated}.",
    ),
    "compare: both": Form(
        ("Do both images show {stated}?", "Is {stated} in both images?"),
        ("Can you see {stated} in both images?", "Do both images have {stated}?"),
        {"yes": "Yes, both images show {stated}.", "no": "No, one image does not show {stated}."},
    ),
    "compare: same number": Form(
        ("Do both images show the same number of {xs}?", "Is the number of {xs} in both images the same?"),
        ("Do both images have the same number of {xs}?", "Can you see the same number of {xs} in both images?"),
        {"yes": "Yes, both images show {n_xs}.", "no": "No, one image shows more {xs}."},
    ),
    "compare: more": Form(
        (
            "Which image shows more {xs}, the {first} or the {second}?",
            "Are more {xs} in the {first} or the {second} image?",
        ),
        (
            "Does the {first} or the {second} image show more {xs}?",
            "In which image can you see more {xs}, the {first} or the {second}?",
        ),
        "The {answer} image shows more {xs}.",
    ),
    "which image": Form(
        ("Which image shows {stated}?", "In which image is {stated}?", "Find the image with {stated}."),
        ("In which image can you see {stated}?", "Which is the image with {stated}?"),
        "The {answer} image shows {stated}.",
    ),
}


KINDS = ("name", "where", "is there", "color", "count", "position")
_CLEAR = 0.1  # distance from the middle of the image, as a fraction of it, from which a side is certain
_APART = 0.02  # free distance of two boxes from which one is beside the other
_SIDES = (("left", "right"), ("top", "bottom"))
_RELATIONS = (("left of", "right of"), ("above", "below"))
_FURTHER = (("left", "right"), ("up", "down"))


def ask_scene(
    scene: Scene, rng: np.random.Generator, *, split: str, kinds: Collection[str] = KINDS, people: float = 0.0
) -> list[Question]:
    """Ask everything about a scene that has a certain answer, grouped by kind.

    Args:
        scene: of `draw_scene` or `draw_counting_scene`; numbers are asked only of the latter, where every number is as
            likely.
        rng: decides the wording and which of two answers is true.
        split: "test" takes the wordings that no training question has.
        kinds: a part of KINDS.
        people: share of questions that are worded like people's.

    Raises:
        UserError: the split or a kind is unknown.
    """
    check_choice(split, pools.SPLITS, "split")
    asker = _Asker(scene, rng, held_out=split == "test", people=people)
    questions: list[Question] = []
    for kind in kinds:
        check_choice(kind, KINDS, "kind")
        getattr(asker, f"ask_{kind.replace(' ', '_')}")(questions)
    return questions


class SceneAsker:
    """Base of what asks about one scene: its things, coins, and questions worded by `forms`."""

    forms: Mapping[str, Form] = FORMS

    def __init__(self, scene: Scene, rng: np.random.Generator, *, held_out: bool, people: float = 0.0) -> None:
        self.scene, self.rng, self.held_out, self.people = scene, rng, held_out, people
        self.things = [placed for placed in scene.objects if placed.kind == "thing"]
        size = scene.image.width
        self.visible = [
            placed
            for placed in self.things
            # At least 6 pixels wide and high, as the smallest regions of scenes with small things.
            if placed.visible >= VISIBLE and placed.box and min(placed.box.width, placed.box.height) * size >= 6
        ]
        # One of each name, whether or not it is unique; any of its copies.
        shuffled = [self.visible[index] for index in rng.permutation(len(self.visible))]
        self.named = list({placed.phrase: placed for placed in shuffled}.values())

    def coin(self) -> bool:
        return bool(self.rng.random() < 0.5)

    def order(self, first: str, second: str) -> tuple[str, str]:
        return (first, second) if self.coin() else (second, first)

    def region(self, placed: SceneObject) -> PixelBox:
        assert placed.box is not None
        # The edges were whole pixels; the fractions of the box give them back only up to rounding.
        corners = placed.box.to_pixels(self.scene.image.width, self.scene.image.height)
        return PixelBox(*(float(round(edge)) for edge in (corners.x1, corners.y1, corners.x2, corners.y2)))

    def write(
        self,
        form: str,
        short: str,
        fields: dict[str, str],
        *,
        regions: tuple[Shape, ...] = (),
        choices: tuple[str, ...] | None = None,
        way: Way = "drawn",
    ) -> Question:
        return write_question(
            self.rng,
            self.forms,
            form,
            short,
            held_out=self.held_out,
            regions=regions,
            choices=choices,
            fields=fields,
            way=way,
            people=self.people,
        )

    def decide(
        self,
        form: str,
        fields: dict[str, str],
        *,
        regions: tuple[Shape, ...] = (),
        way: Way = "drawn",
        **stated: tuple[str, str],
    ) -> Question:
        """Ask for "yes" or "no" of one of two statements, each with even odds; `stated` has (true, false) fields."""
        # One coin for all fields, so that a verb belongs to the name that is stated.
        is_true = self.coin()
        fields = {**fields, **{name: pair[not is_true] for name, pair in stated.items()}}
        return self.write(form, "yes" if is_true else "no", fields, regions=regions, choices=("yes", "no"), way=way)

    def choose(
        self,
        form: str,
        fields: dict[str, str],
        *,
        true: str,
        false: str,
        format_choice: Callable[[str], str] = str,
        regions: tuple[Shape, ...] = (),
    ) -> Question:
        """Ask which of two statements is true, in random order."""
        first, second = self.order(true, false)
        fields = {**fields, "first": format_choice(first), "second": format_choice(second)}
        return self.write(form, true, fields, regions=regions, choices=(first, second))

    def write_name(self, form: str, placed: SceneObject, region: Shape) -> Question:
        """Ask for the name of a thing: openly, or half the time beside a near miss, as a choice or a yes or no."""
        name, regions = placed.phrase, (region,)
        fields = {"a_x": add_article(name)}
        share = self.rng.random()
        contrast = draw_contrast(self.rng, self.scene, placed) if share < 0.5 else None
        if contrast is None:
            return self.write(form, name, fields, regions=regions)
        if share < 0.25:
            return self.choose(
                f"{form}: which", fields, true=name, false=contrast, format_choice=add_article, regions=regions
            )
        stated = add_article(name), add_article(contrast)
        return self.decide(f"{form}: yes or no", fields, regions=regions, stated=stated)


class _Asker(SceneAsker):
    """Writes the questions of `KINDS`; each `ask_` method appends those of its kind."""

    def ask_name(self, questions: list[Question]) -> None:
        questions += [self.write_name("name", placed, self.region(placed)) for placed in self.named]

    def ask_where(self, questions: list[Question]) -> None:
        for placed in self.scene.regions:
            fields = {"x": placed.phrase, "a_x": add_article(placed.phrase), "is_x": be(placed.phrase)}
            questions.append(self.write("where", "<region>", fields, regions=(self.region(placed),)))

    def ask_is_there(self, questions: list[Question]) -> None:
        for placed in self.named:
            contrast = draw_contrast(self.rng, self.scene, placed)
            if contrast is not None:
                true, false = add_article(placed.phrase), add_article(contrast)
                verbs = (be(placed.phrase).title(), be(contrast).title())
                names = (placed.phrase, contrast)
                several = (pluralize(placed.phrase), pluralize(contrast))
                questions.append(
                    self.decide(
                        "is there",
                        {},
                        stated=(true, false),
                        Is_stated=verbs,
                        stated_x=names,
                        stated_xs=several,
                    )
                )

    def ask_color(self, questions: list[Question]) -> None:
        for placed in self.named:
            split = split_color(placed.phrase)
            # Things that scenes show in only one color are skipped: the name alone would give the answer.
            if split is None or len(list_colors(self.scene.kind, placed)) < 2:
                continue
            color, base = split
            if placed.phrase in load_shapes() and self.rng.random() < 0.3:
                questions.append(self.write("color: region", color, {"color": color}, regions=(self.region(placed),)))
            others = {other.phrase for other in self.things} - {placed.phrase}
            # Without its color a name may fit another thing, too: "the apple" beside an apple pie.
            if any(singular_words(base) & singular_words(other) for other in others):
                continue
            several = sum(other.phrase == placed.phrase for other in self.things) > 1
            if several and not is_countable(base):
                continue
            verb = "are" if several else be(base)
            fields = {"x": pluralize(base) if several else base, "color": color}
            fields |= {"a_x": fields["x"] if several else add_article(base), "is_x": verb, "Is_x": verb.title()}
            questions.append(self.write("color", color, fields))
            contrast = draw_color_contrast(self.rng, self.scene, placed)
            if contrast is not None and self.coin():
                questions.append(self.choose("color: which", fields, true=color, false=contrast))
            elif contrast is not None:
                questions.append(self.decide("color: yes or no", fields, stated=(color, contrast)))

    def ask_count(self, questions: list[Question]) -> None:
        if self.scene.kind != "counting":
            return
        counts = Counter(placed.phrase for placed in self.things)
        for name, count in counts.items():
            fields = describe_count(name, count)
            questions.append(self.write("count", NUMERALS[count], fields))
            other = self._draw_count(count)
            if other is None:
                continue
            if self.coin():
                questions.append(self.choose("count: which", fields, true=NUMERALS[count], false=NUMERALS[other]))
            else:
                stated = [describe_count(name, number) for number in (count, other)]
                pairs = {
                    "stated_xs": (stated[0]["n_xs"], stated[1]["n_xs"]),
                    "Are_stated": (stated[0]["are_n"].title(), stated[1]["are_n"].title()),
                    "are_stated": (stated[0]["are_n"], stated[1]["are_n"]),
                }
                questions.append(self.decide("count: yes or no", fields, **pairs))
        # With equal numbers, neither is more.
        if len(counts) == 2 and len(set(counts.values())) == 2:
            more, fewer = (pluralize(name) for name, _ in counts.most_common())
            if self.coin():
                questions.append(self.choose("count: more", {"xs": more}, true=more, false=fewer))
            else:
                pairs = {"first": (more, fewer), "second": (fewer, more)}
                questions.append(self.decide("count: more, yes or no", {"xs": more}, **pairs))

    def _draw_count(self, count: int) -> int | None:
        """Draw another number by a symmetric rule; None if it would be beyond the range."""
        if self.coin():
            other = int(self.rng.integers(1, MAX_COPIES + 1))
        else:
            other = count + (1 if self.coin() else -1)
        # Another draw instead of None would favor some pairs at the ends of the range: the rule would not be symmetric.
        return other if other != count and 1 <= other <= MAX_COPIES else None

    def ask_position(self, questions: list[Question]) -> None:
        unique = [placed for placed in self.scene.regions if placed.box]
        for placed in unique:
            self._ask_half(questions, placed)
        order = self.rng.permutation(len(unique))
        # Each thing is in at most two pairs: all pairs of five would outweigh every other kind.
        for first, second in zip(order, np.roll(order, 1), strict=True):
            if first != second and (len(unique) > 2 or first < second):
                self._ask_pair(questions, unique[int(first)], unique[int(second)])

    def _ask_half(self, questions: list[Question], placed: SceneObject) -> None:
        assert placed.box is not None
        axis = int(self.rng.integers(2))
        middle = placed.box.center[axis] - 0.5
        if abs(middle) < _CLEAR:
            return
        true, false = _SIDES[axis] if middle < 0 else _SIDES[axis][::-1]
        name = placed.phrase
        fields = {"x": name, "a_x": add_article(name), "is_x": be(name), "side": true}
        questions.append(
            self.choose("position", fields, true=true, false=false)
            if self.coin()
            else self.decide("position: yes or no", fields, stated=(true, false))
        )

    def _ask_pair(self, questions: list[Question], placed: SceneObject, other: SceneObject) -> None:
        if self.coin():
            placed, other = other, placed
        box, other_box = placed.box, other.box
        assert box is not None
        assert other_box is not None
        axes = [axis for axis in range(2) if _gap(box, other_box, axis) > _APART]
        if not axes:
            return
        axis = axes[int(self.rng.integers(len(axes)))]
        before = box.center[axis] < other_box.center[axis]
        true, false = _RELATIONS[axis] if before else _RELATIONS[axis][::-1]
        name = placed.phrase
        fields = {"x": name, "a_x": add_article(name), "is_x": be(name), "y": other.phrase, "relation": true}
        share = self.rng.random()
        if share < 0.35:
            questions.append(self.choose("position: relation", fields, true=true, false=false))
        elif share < 0.7:
            questions.append(self.decide("position: relation, yes or no", fields, stated=(true, false)))
        else:
            # The direction is drawn, and it determines the answer, so either thing is the answer equally often.
            end = self.coin()
            front, back = (placed, other) if before != end else (other, placed)
            fields = {"x": front.phrase, "is_x": be(front.phrase), "side": _FURTHER[axis][end]}
            questions.append(self.choose("position: further", fields, true=front.phrase, false=back.phrase))


def _gap(a: Box, b: Box, axis: int) -> float:
    """Return the free distance of two boxes on an axis, negative if they meet."""
    (low_a, high_a), (low_b, high_b) = (((c.x1, c.x2), (c.y1, c.y2))[axis] for c in (a, b))
    return max(low_a, low_b) - min(high_a, high_b)
