"""The images of the study `mllm`: answers are true of the image, draws repeat, and nothing leaks between splits."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate.records.boxes import PixelBox
from foveate.records.collection import Collection
from foveate.records.conversations import Conversation, Conversations
from foveate_labs.studies import mllm_worlds
from foveate_labs.studies.mllm_worlds import draw_asked_page, draw_asked_scene, draw_asked_thing, draw_named_screen
from foveate_labs.worlds.asked_images import AskedImage


def only(images: list[AskedImage]) -> AskedImage:
    (image,) = images
    return image


def of_kind(image: AskedImage, kind: str) -> list[Conversation]:
    return [talk for talk in image.conversations if talk.id.startswith(f"{kind}/")]


def read_answer(talk: Conversation) -> str:
    return talk.turns[-1].text


def test_names_are_single_words_of_different_things() -> None:
    things = mllm_worlds.load_things()
    assert len(things) == len({variants[0].name for variants in things}) == mllm_worlds.NUM_NAMES
    assert all(len(variants) > 1 and variants[0].name.isalpha() for variants in things)


@pytest.mark.parametrize("index", range(1, 9))
def test_answers_are_true_of_a_scene(index: int) -> None:
    image = only(draw_asked_scene(("test", index)))
    assert image.data == only(draw_asked_scene(("test", index))).data
    shown = {region.phrase: region.box.to_pixels(224, 224) for region in image.regions}
    for talk in of_kind(image, "name"):
        (box,) = talk.turns[0].regions
        assert isinstance(box, PixelBox)
        truth = shown.get(read_answer(talk))
        assert truth is None or abs(truth.x1 - box.x1) <= 0.5
    names = {read_answer(talk) for talk in of_kind(image, "name")}
    for talk in of_kind(image, "is_there"):
        stated = talk.turns[0].text.removeprefix("<image>\nIs there a ").removesuffix("?")
        assert (stated in names) == (read_answer(talk) == "yes")
    (count,) = of_kind(image, "count")
    assert read_answer(count) == ("zero one two three four".split())[len(names)]
    before = {read_answer(t) for t in of_kind(only(draw_asked_scene(("test", index - 1))), "name")}
    for talk in of_kind(image, "which_image"):
        stated = talk.turns[0].text.partition("shows a ")[2].partition(",")[0]
        assert stated in (before - names if read_answer(talk) == "first" else names - before)
        assert talk.images == (f"scene-test-{index - 1:06d}", image.key)


def test_two_answers_have_even_odds() -> None:
    answers = Counter(
        read_answer(talk)
        for index in range(1, 41)
        for talk in of_kind(only(draw_asked_scene(("train", index))), "is_there")
    )
    assert 0.3 < answers["yes"] / answers.total() < 0.7


def test_captions_are_for_training_alone_and_change_no_question() -> None:
    plain, captioned = (only(draw_asked_scene(("train", 3), formats=formats)) for formats in ((), ("alt", "dsc_plus")))
    assert captioned.data == plain.data
    assert captioned.conversations[: len(plain.conversations)] == plain.conversations
    added = captioned.conversations[len(plain.conversations) :]
    assert [talk.group for talk in added] == ["text", "text"]
    assert len(read_answer(added[1])) > len(read_answer(added[0]))
    assert not of_kind(only(draw_asked_scene(("test", 3), formats=("alt",))), "caption-alt")


@pytest.mark.parametrize("index", range(6))
def test_boxes_of_a_page_hold_what_is_drawn(index: int) -> None:
    image = only(draw_asked_page(("train", index)))
    pixels = np.asarray(Image.open(io.BytesIO(image.data)).convert("RGB"), dtype=float)
    height, width = pixels.shape[:2]
    assert max(height, width) == mllm_worlds.PAGE
    paper = np.median(pixels.reshape(-1, 3), axis=0)
    ink = np.abs(pixels - paper).max(axis=2) > 60
    for region in image.regions:
        box = region.box.to_pixels(width, height)
        ink[int(box.y1) - 1 : int(box.y2) + 2, int(box.x1) - 1 : int(box.x2) + 2] = False
    assert ink.mean() < 0.002, "nothing but thing and word is drawn"
    part = of_kind(image, "shown")[0].id.split("/")[2]
    assert part == ("small" if int(image.labels["thing"]) < mllm_worlds.SMALL_THING else "large")


def test_an_episode_is_answered_by_the_label_of_the_same_thing() -> None:
    index = mllm_worlds.EXAMPLES + 5
    image = only(draw_asked_thing(("test", index)))
    (episode,), (shuffled,) = of_kind(image, "episode"), of_kind(image, "shuffled")
    labels = [line.split()[-1].rstrip(".") for line in episode.turns[0].text.splitlines() if line.startswith("This")]
    own = [int(key.rsplit("-", 1)[1]) % mllm_worlds.NUM_NAMES == 5 for key in episode.images]
    assert own == [*(label == read_answer(episode) for label in labels), True]
    assert sum(own[:4]) == 2
    assert len(set(episode.images)) == 5
    assert shuffled.images == episode.images
    assert not of_kind(only(draw_asked_thing(("train", index))), "shuffled")


def test_screens_say_what_is_asked_and_align_types() -> None:
    image = only(draw_named_screen(("train", 3)))
    kinds = {talk.id.split("/")[0] for talk in image.conversations}
    assert kinds <= {
        "name_widget", "widget_type", "find_widget", "tap", "state", "how_many", "selected_tab", "widget_there"
    }  # fmt: skip
    assert all(region.phrase == region.label for region in image.regions)


def test_an_interrupted_build_goes_on(tmp_path: Path) -> None:
    mllm_worlds.build_pages(tmp_path / "pages", train=3, test=0)
    mllm_worlds.build_pages(tmp_path / "pages", train=5, test=2)
    with Collection.open(tmp_path / "pages") as collection:
        assert len(collection.rows("train")) == 5
        assert len(list(Conversations(collection, split="test"))) == 2 * 3
