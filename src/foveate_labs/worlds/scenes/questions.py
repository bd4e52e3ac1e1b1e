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
from foveate_labs.worlds.scenes.language import NUMERALS, add_article, is_countable, is_plural, pluralize
from foveate_labs.worlds.scenes.question_forms import FORMS
from foveate_labs.worlds.scenes.scene import VISIBLE, Scene, SceneObject
from foveate_labs.worlds.scenes.shapes import load_shapes

KINDS = ("name", "where", "is there", "color", "count", "position")
_CLEAR = 0.1  # distance from the middle of the image, as a fraction of it, from which a side is certain
_APART = 0.02  # free distance of two boxes from which one is beside the other
_SIDES = (("left", "right"), ("top", "bottom"))
_RELATIONS = (("left of", "right of"), ("above", "below"))
_FURTHER = (("left", "right"), ("up", "down"))


def ask_scene(scene: Scene, rng: np.random.Generator, *, split: str, kinds: Collection[str] = KINDS) -> list[Question]:
    """Ask everything about a scene that has a certain answer, grouped by kind.

    Args:
        scene: of `draw_scene` or `draw_counting_scene`; numbers are asked only of the latter, where every number is as
            likely.
        rng: decides the wording and which of two answers is true.
        split: "test" takes the wordings that no training question has.
        kinds: a part of KINDS.

    Raises:
        UserError: the split or a kind is unknown.
    """
    check_choice(split, pools.SPLITS, "split")
    asker = _Asker(scene, rng, held_out=split == "test")
    questions: list[Question] = []
    for kind in kinds:
        check_choice(kind, KINDS, "kind")
        getattr(asker, f"ask_{kind.replace(' ', '_')}")(questions)
    return questions


class SceneAsker:
    """Base of what asks about one scene: its things, coins, and questions worded by `forms`."""

    forms: Mapping[str, Form] = FORMS

    def __init__(self, scene: Scene, rng: np.random.Generator, *, held_out: bool) -> None:
        self.scene, self.rng, self.held_out = scene, rng, held_out
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
            fields = {"x": placed.phrase, "is_x": be(placed.phrase)}
            questions.append(self.write("where", "<region>", fields, regions=(self.region(placed),)))

    def ask_is_there(self, questions: list[Question]) -> None:
        for placed in self.named:
            contrast = draw_contrast(self.rng, self.scene, placed)
            if contrast is not None:
                true, false = add_article(placed.phrase), add_article(contrast)
                verbs = (be(placed.phrase).title(), be(contrast).title())
                questions.append(self.decide("is there", {}, stated=(true, false), Is_stated=verbs))

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
            fields |= {"is_x": verb, "Is_x": verb.title()}
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
            fields = _describe_count(name, count)
            questions.append(self.write("count", NUMERALS[count], fields))
            other = self._draw_count(count)
            if other is None:
                continue
            if self.coin():
                questions.append(self.choose("count: which", fields, true=NUMERALS[count], false=NUMERALS[other]))
            else:
                stated = [_describe_count(name, number) for number in (count, other)]
                pairs = {
                    "stated_xs": (stated[0]["n_xs"], stated[1]["n_xs"]),
                    "Are_stated": (stated[0]["are_n"].title(), stated[1]["are_n"].title()),
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
        fields = {"x": placed.phrase, "is_x": be(placed.phrase), "side": true}
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
        fields = {"x": placed.phrase, "is_x": be(placed.phrase), "y": other.phrase, "relation": true}
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


def be(name: str) -> str:
    """Return the verb of a name: "is", or "are" of a plural."""
    return "are" if is_plural(name) else "is"


def _describe_count(name: str, count: int) -> dict[str, str]:
    several = pluralize(name)
    n_xs = f"{NUMERALS[count]} {name if count == 1 else several}"
    return {"xs": several, "n_xs": n_xs, "are_n": "is" if count == 1 else "are"}
