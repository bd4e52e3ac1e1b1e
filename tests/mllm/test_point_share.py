"""Questions of imported data that point at their regions: one coin a question, and where the point lies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.mllm.data import draw_point, point_at_regions
from foveate.mllm.recipe import StageSettings
from foveate.records.boxes import PixelBox
from foveate.records.conversations import Conversation, Turn
from foveate.records.shapes import Mask, Point, Shape, Stroke, decode_mask, encode_mask

BOXES = (PixelBox(10, 20, 30, 60), PixelBox(100, 0, 160, 8))
PLACES = ("center", "uniform", "gaussian")


def talk(*regions: Shape, id: str = "a", source: str = "ferret") -> Conversation:
    marks = " ".join(["<region>"] * len(regions))
    question = Turn("user", f"<image>\nWhat are {marks}?", regions)
    return Conversation(id, ("image",), (question, Turn("assistant", "it is <region>", (BOXES[0],))), source=source)


def point(conversation: Conversation, *, share: float = 1.0, seed: int = 0, epoch: int = 0) -> tuple[Shape, ...]:
    pointed = point_at_regions(conversation, share=share, place="center", seed=seed, epoch=epoch)
    assert pointed.turns[1] == conversation.turns[1], "answers always have boxes"
    assert replace(pointed, turns=()) == replace(conversation, turns=())
    return pointed.turns[0].regions


def make_mask(mask_HW: np.ndarray) -> Mask:
    height, width = mask_HW.shape
    return Mask((height, width), tuple(encode_mask(mask_HW)["counts"]))


def test_one_coin_decides_for_all_regions_of_a_question() -> None:
    shares = []
    for number in range(400):
        regions = point(talk(*BOXES, id=str(number)), share=0.5)
        kinds = {type(region) for region in regions}
        assert len(kinds) == 1
        shares.append(kinds == {Point})
    # Five standard deviations.
    assert np.mean(shares) == pytest.approx(0.5, abs=0.125)
    assert StageSettings.model_fields["point_share"].default == 0.5
    assert point(talk(*BOXES), share=0.0) == BOXES


def test_points_are_drawn_anew_in_each_epoch_and_by_the_seed() -> None:
    assert point(talk(*BOXES)) == point(talk(*BOXES))
    others = [point(talk(*BOXES), epoch=1), point(talk(*BOXES), seed=1), point(talk(*BOXES, id="b"))]
    assert len({point(talk(*BOXES)), *others}) == 4


def test_a_region_that_is_named_twice_has_one_point() -> None:
    first, second, third = point(talk(BOXES[0], BOXES[1], BOXES[0]))
    assert first == third != second


def test_what_is_a_point_or_of_a_generated_scene_stays() -> None:
    shapes = (Point(1, 1), Stroke((Point(1, 1), Point(4, 4))))
    assert point(talk(*shapes)) == shapes
    assert isinstance(point(talk(*shapes, BOXES[0]))[2], Point)
    for source in ("scenes: refer", "image-sets: compare", "study mllm"):
        assert point(talk(*BOXES, source=source)) == BOXES
    assert all(isinstance(shape, Point) for shape in point(talk(*BOXES, source="dense referring, regions of scenes")))


@given(
    x=st.floats(0, 900), y=st.floats(0, 900), width=st.floats(0.1, 500), height=st.floats(0.1, 500),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_a_point_lies_in_its_box(x: float, y: float, width: float, height: float, seed: int) -> None:
    box = PixelBox(x, y, x + width, y + height)
    drawn = draw_point(box, np.random.default_rng(seed), place="center")
    assert isinstance(drawn, Point)
    assert box.x1 - 1e-9 <= drawn.x <= box.x2 + 1e-9
    assert box.y1 - 1e-9 <= drawn.y <= box.y2 + 1e-9


def test_points_of_a_box_are_spread_as_ferrets() -> None:
    rng = np.random.default_rng(0)
    points = [draw_point(PixelBox(0, 0, 200, 100), rng, place="center") for _ in range(2000)]
    xy_N2 = np.array([(each.x, each.y) for each in points if isinstance(each, Point)])
    assert xy_N2.mean(0) == pytest.approx([100, 50], abs=4)
    assert xy_N2.std(0) == pytest.approx([30, 15], rel=0.1)


@given(seed=st.integers(0, 9999), place=st.sampled_from(PLACES))
def test_a_point_lies_in_its_mask(seed: int, place: str) -> None:
    rng = np.random.default_rng(seed)
    mask_HW = rng.random((12, 17)) < 0.2
    mask_HW[rng.integers(12), rng.integers(17)] = True
    drawn = draw_point(make_mask(mask_HW), rng, place=place)
    assert isinstance(drawn, Point)
    assert mask_HW[int(drawn.y), int(drawn.x)]


def test_places_in_a_mask() -> None:
    ring_HW = np.zeros((41, 41), bool)
    ring_HW[:, :3] = ring_HW[:, -3:] = ring_HW[:3] = ring_HW[-3:] = True
    ring = make_mask(ring_HW)
    assert decode_mask({"size": list(ring.size), "counts": list(ring.counts)}).sum() == ring_HW.sum()
    near = {place: [] for place in PLACES}
    for place, distances in near.items():
        for seed in range(40):
            drawn = draw_point(ring, np.random.default_rng(seed), place=place)
            assert isinstance(drawn, Point)
            distances.append(np.hypot(drawn.x - 20, drawn.y - 20))
    # The nearest pixels of the ring are 18 from its center, its corners 28.
    assert max(near["center"]) <= 18.1
    assert max(near["uniform"]) > 24
    assert np.mean(near["center"]) < np.mean(near["gaussian"]) < np.mean(near["uniform"])
