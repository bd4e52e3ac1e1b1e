"""Questions on several generated scenes: compare two, choose one of several, learn a new word from examples."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from foveate.core.errors import choose
from foveate.core.seeds import generator
from foveate.language.forbidden_words import INVENTED_WORDS
from foveate.records.conversations import IMAGE
from foveate_labs.worlds.asked_images import AskedImage, Position, write_asked_images
from foveate_labs.worlds.builtin import Cutout
from foveate_labs.worlds.questions import PEOPLE, Question, to_conversation, write_question
from foveate_labs.worlds.scenes import pools
from foveate_labs.worlds.scenes.contrasts import draw_name, excludes, says_nothing
from foveate_labs.worlds.scenes.counting import MAX_COPIES, draw_copies, draw_things, load_countable, named_words
from foveate_labs.worlds.scenes.grounds import draw_ground
from foveate_labs.worlds.scenes.language import NUMERALS, add_article, pluralize
from foveate_labs.worlds.scenes.questions import FORMS
from foveate_labs.worlds.scenes.scene import Scene
from foveate_labs.worlds.scenes.scene_collection import LICENSE, make_scene_row
from foveate_labs.worlds.scenes.shapes import load_shapes

SETS = ("compare", "compare: both", "compare: same number", "compare: more", "which image", "episode")
ORDINALS = ("first", "second", "third", "fourth")
_FILLED, _FEW = 0.5, 3  # how often there is another thing, and the largest number of copies


@dataclass(frozen=True)
class ImageSet:
    """Scenes in the order of the `<image>`s of a question, and the question."""

    scenes: tuple[Scene, ...]
    question: Question


def draw_image_set(
    form: str,
    *,
    seed: int,
    split: str,
    index: int,
    size: int = 224,
    shuffled_labels: bool = False,
    people: float = 0.0,
) -> ImageSet:
    """Draw scenes and a question on them; every two-way answer has even odds.

    Args:
        form: one of SETS.
        split: as for `draw_scene`; "test" takes the wordings that no training question has.
        shuffled_labels: give the examples of an "episode" labels at random: a control that shows whether a model reads
            them. The answer stays the true one.
        people: share of the questions, episodes excepted, that are worded like people's.

    Raises:
        UserError: the form or split is unknown.
    """
    choose(form, SETS, "form")
    choose(split, pools.SPLITS, "split")
    rng = generator("image set", form, seed, split, index)
    drawer = _Drawer(rng, split, size, people)
    if form == "episode":
        return drawer.draw_episode(shuffled_labels=shuffled_labels)
    if form == "which image":
        return drawer.draw_choice()
    return drawer.draw_comparison(form)


class _Drawer:
    def __init__(self, rng: np.random.Generator, split: str, size: int, people: float) -> None:
        self.rng, self.split, self.size, self.people = rng, split, size, people

    def coin(self) -> bool:
        return bool(self.rng.random() < 0.5)

    def draw_pair(self) -> tuple[Cutout, Cutout]:
        """Draw two things neither of which can be called the other, by a symmetric rule."""
        # Only because `draw_things` asks for a ground; scenes get their own, which show neither thing.
        ground = draw_ground(self.rng, size=8, held_out=self.split == "test")
        while True:
            (first,) = draw_things(self.rng, self.split, replace(ground, shows=frozenset()), count=1)
            name = draw_name(self.rng, "counting", first.name, first.slice)
            # Both are drawn again: another contrast for the same thing would break the symmetry (see `contrasts`).
            if name is None or says_nothing(name) or says_nothing(first.name) or not excludes(first.name, name):
                continue
            variants = load_variants(first.slice)[name] if name not in load_shapes() else (load_shapes()[name],)
            second = variants[int(self.rng.integers(len(variants)))]
            return (first, second) if self.coin() else (second, first)

    def draw_scene(self, copies: Sequence[tuple[Cutout, int]], absent: Sequence[Cutout]) -> Scene:
        """Draw a scene with copies of things, at times with another one, and surely without `absent`."""
        named = named_words([*absent, *(cutout for cutout, _ in copies)])
        ground = draw_ground(self.rng, size=self.size, held_out=self.split == "test")
        while ground.shows & named:
            ground = draw_ground(self.rng, size=self.size, held_out=self.split == "test")
        copies = list(copies)
        if self.rng.random() < _FILLED:
            (other,) = draw_things(self.rng, self.split, ground, count=1)
            if all(excludes(other.name, cutout.name) for cutout in [*absent, *(cutout for cutout, _ in copies)]):
                copies.append((other, int(self.rng.integers(1, _FEW + 1))))
        return draw_copies(self.rng, self.split, ground, copies, size=self.size, absent=named)

    def few(self) -> int:
        return int(self.rng.integers(1, _FEW + 1))

    def ask(
        self, form: str, short: str, scenes: Sequence[Scene], *, choices: tuple[str, ...], **fields: str
    ) -> ImageSet:
        # [1::-1] is second, first.
        first, second = ORDINALS[:2] if self.coin() else ORDINALS[1::-1]
        fields = {"first": first, "second": second, "answer": short, **fields}
        held_out = self.split == "test"
        question = write_question(
            self.rng, FORMS, form, short, held_out=held_out, choices=choices, fields=fields, people=self.people
        )
        prompt = f"{IMAGE}\n" * len(scenes) + question.prompt
        return ImageSet(tuple(scenes), replace(question, prompt=prompt))

    def draw_comparison(self, form: str) -> ImageSet:
        thing, other = self.draw_pair()
        stated = add_article(thing.name)
        if form == "compare":
            answer = int(self.rng.integers(2))
            things = (thing, other) if answer == 0 else (other, thing)
            scenes = [self.draw_scene([(t, self.few())], [thing, other]) for t in things]
            return self.ask(form, ORDINALS[answer], scenes, choices=ORDINALS[:2], stated=stated)
        if form == "compare: both":
            both = self.coin()
            things = [thing, thing if both else other]
            # Otherwise the image that lacks the thing would always be the second.
            things = things if self.coin() else things[::-1]
            scenes = [self.draw_scene([(t, self.few())], [thing, other]) for t in things]
            return self.ask(form, "yes" if both else "no", scenes, choices=("yes", "no"), stated=stated)
        low, high = sorted(int(n) + 1 for n in self.rng.permutation(MAX_COPIES)[:2])
        counts = (low, high) if self.coin() else (high, low)
        same = form == "compare: same number" and self.coin()
        # counts[0] is the lower or the higher with even odds: equal numbers are, on average, as large as unequal ones.
        scenes = [self.draw_scene([(thing, counts[0] if same else count)], [thing]) for count in counts]
        several = pluralize(thing.name)
        if form == "compare: more":
            answer = ORDINALS[0] if counts[0] > counts[1] else ORDINALS[1]
            return self.ask(form, answer, scenes, choices=ORDINALS[:2], xs=several)
        n_xs = f"{NUMERALS[counts[0]]} {several if counts[0] > 1 else thing.name}"
        return self.ask(form, "yes" if same else "no", scenes, choices=("yes", "no"), xs=several, n_xs=n_xs)

    def draw_choice(self) -> ImageSet:
        thing, other = self.draw_pair()
        count = int(self.rng.integers(3, len(ORDINALS) + 1))
        answer = int(self.rng.integers(count))
        things = [thing if i == answer else other for i in range(count)]
        for i in range(count):
            if i != answer and self.coin():
                (things[i],) = draw_things(
                    self.rng, self.split, draw_ground(self.rng, size=8, held_out=self.split == "test"), count=1
                )
                things[i] = things[i] if excludes(thing.name, things[i].name) else other
        scenes = [self.draw_scene([(t, self.few())], [thing, t]) for t in things]
        choices = ORDINALS[:count]
        return self.ask("which image", ORDINALS[answer], scenes, choices=choices, stated=add_article(thing.name))

    def draw_episode(self, *, shuffled_labels: bool) -> ImageSet:
        """Draw four examples of two new words, two each, and a query."""
        pair = self.draw_pair()
        labels = [INVENTED_WORDS[i] for i in self.rng.permutation(len(INVENTED_WORDS))[:2]]
        classes = [int(i) % 2 for i in self.rng.permutation(4)]
        classes.append(int(self.rng.integers(2)))
        scenes = tuple(self.draw_scene([(pair[c], 1)], pair) for c in classes)
        # Drawn in either case, so that both variants have the same images.
        random_labels = [labels[int(self.rng.integers(2))] for _ in range(4)]
        true_labels = [labels[c] for c in classes]
        prompt = f"{IMAGE}\nWhat is this?"
        examples = tuple(zip([prompt] * 4, random_labels if shuffled_labels else true_labels[:4], strict=True))
        choices = (labels[0], labels[1])
        answer = true_labels[-1]
        return ImageSet(
            scenes, Question("episode", "episode", prompt, answer, answer, choices=choices, examples=examples)
        )


@functools.cache
def load_variants(slice_name: str) -> dict[str, tuple[Cutout, ...]]:
    """Return the cut-outs of each countable name of a slice."""
    return {concept[0].name: concept for family in load_countable(slice_name).families for concept in family}


# Write sets of scenes with one question each into a collection.


def build_image_sets(
    target: Path,
    *,
    train: int,
    validation: int = 0,
    test: int = 0,
    seed: int = 0,
    size: int = 224,
    workers: int = 1,
    people: float = 0.0,
) -> None:
    """Write sets of two to five scenes into the collection at `target`; existing ones are not drawn again.

    The forms of SETS take turns. The images of a set are one group, and their question is a conversation of the group
    "multi-image".

    Args:
        train, validation, test: number of sets of each split.
        seed: seed of the series.
        size: side in pixels.
        workers: processes that draw; the result does not depend on it.
        people: see `question_collection.build_questions`.

    Raises:
        UserError: a number is negative, or workers is below 1.
    """
    write_asked_images(
        target,
        functools.partial(draw_asked_set, seed=seed, size=size, people=people),
        functools.partial(_make_key, seed=seed),
        counts={"train": train, "validation": validation, "test": test},
        source="image-sets",
        license=LICENSE,
        workers=workers,
    )


def _make_key(position: Position, *, seed: int) -> str:
    # That of the first image, which is written last: it holds the conversation, so it tells that the set is complete.
    return f"set-{position[0]}-{seed}-{position[1]:06d}"


def draw_asked_set(position: Position, *, seed: int, size: int, people: float = 0.0) -> list[AskedImage]:
    """Draw set number `position[1]` of split `position[0]`; its first image comes last, with the conversation."""
    split, index = position
    form = SETS[index % len(SETS)]
    share = float(people > 0) if split == "test" else people
    image_set = draw_image_set(form, seed=seed, split=split, index=index, size=size, people=share)
    name = _make_key(position, seed=seed)
    keys = tuple(name if number == 0 else f"{name}-{number}" for number in range(len(image_set.scenes)))
    # As in the ids of scenes; an episode has no wording of its own.
    id = f"{name}/{PEOPLE}" if share == 1 and form != "episode" else name
    conversation = to_conversation(image_set.question, id=id, images=keys, source=f"image-sets: {form}")
    images = []
    for key, scene in zip(keys, image_set.scenes, strict=True):
        row = make_scene_row(scene, key=key, split=split)
        labels = {**row.labels, "source": "image-sets"}
        conversations = (conversation,) if key == name else ()
        images.append(
            AskedImage(key, row.data, row.captions, row.regions, labels, row.extra, conversations, group=name)
        )
    return images[::-1]
