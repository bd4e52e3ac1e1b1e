"""Crops of animals and info strips: one function for training and prediction."""

from __future__ import annotations

import functools
import io
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from foveate.records.boxes import Box
from foveate.records.collection import Collection
from foveate.records.geometry import View
from foveate.records.record import Region
from foveate.records.writer import CollectionWriter
from foveate.species.crops import (
    NANODET,
    CropSettings,
    Strips,
    camera_strips,
    choose_box,
    collection_boxes,
    crop_view,
    find_strips,
    is_in_strip,
)
from foveate.survey.store import survey_rows, write_survey
from foveate.survey.types import Deployment, Medium
from foveate_labs.worlds.traps.survey_collection import draw_trap_row
from foveate_labs.worlds.traps.world import TrapSettings, load_world

_BESIDE = Path(__file__).parents[3] / "shared" / "assets" / "camera-traps"
MICA = sorted((Path(os.environ.get("FOVEATE_CAMERA_TRAPS", _BESIDE)) / "frames").glob("mica-*"))
UNIT = st.floats(0, 1)


@given(UNIT, UNIT, UNIT, UNIT, st.floats(0, 1), st.floats(0, 0.15), st.floats(0, 0.15))
def test_a_crop_holds_its_box_and_no_strip(
    a: float, b: float, c: float, d: float, margin: float, top: float, bottom: float
) -> None:
    box = np.array([min(a, c), min(b, d), max(a, c), max(b, d)])
    crop = crop_view(box, width=400, height=300, margin=margin, strips=Strips(top, bottom)).crop
    if crop is None or box[0] == box[2] or box[1] == box[3] or box[3] <= top or box[1] >= 1 - bottom:
        return
    assert 0 <= crop.x1 <= box[0]
    assert box[2] <= crop.x2 <= 1
    assert top <= crop.y1 <= max(box[1], top)
    assert min(box[3], 1 - bottom) <= crop.y2 <= 1 - bottom


def test_margins_are_equally_wide_in_pixels() -> None:
    crop = crop_view([0.4, 0.4, 0.6, 0.5], width=1000, height=500, margin=0.1).crop
    assert crop is not None
    np.testing.assert_allclose(crop.to_array(), [0.38, 0.36, 0.62, 0.54])
    assert crop_view(None, width=10, height=10, margin=0.1) == View()


def test_the_best_box_is_cropped() -> None:
    boxes = [[0, 0, 0.1, 0.1], [0.2, 0.2, 0.8, 0.8], [0, 0, 1, 1]]
    assert choose_box(boxes, [0.9, 0.9, 0.3], min_score=0.2) is not None
    np.testing.assert_array_equal(choose_box(boxes, [0.9, 0.9, 0.3], min_score=0.2), boxes[1])  # type: ignore[arg-type]
    assert choose_box(boxes, [0.1, 0.1, 0.1], min_score=0.2) is None
    assert choose_box(np.zeros((0, 4)), [], min_score=0.0) is None


def draw_frame(seed: int, *, strip: int, night: bool, side: tuple[int, int] = (320, 240)) -> Image.Image:
    generator = np.random.default_rng(seed)
    level = 20 if night else 150
    pixels = generator.normal(level, 12, (side[1], side[0], 3)).clip(0, 255).astype(np.uint8)
    pixels[:80] = 0 if night else 255  # a sky without any detail
    image = Image.fromarray(pixels)
    if strip:
        draw = ImageDraw.Draw(image)
        draw.rectangle((0, side[1] - strip, side[0], side[1]), fill=(0, 0, 0))
        draw.text(
            (4, side[1] - strip + 3), f"2026-06-{seed:02d} 12:{seed:02d}:00  CAM-3  {seed}C", fill=(255, 255, 255)
        )
    return image


def encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


@pytest.mark.parametrize("strip", [0, 18, 30])
def test_strips_of_a_camera_are_found(strip: int) -> None:
    frames = [encode(draw_frame(seed, strip=strip, night=seed % 2 == 0)) for seed in range(6)]
    strips = camera_strips([*frames, b"no image"])
    assert strips.top == 0
    assert strips.bottom == pytest.approx(strip / 240, abs=0.012)


@functools.cache
def draw_cameras(*, strips: bool) -> dict[tuple[str, str], list[bytes]]:
    """Images of generated cameras, up to 12 of each, by name and the side of their strip."""
    settings = TrapSettings(train_cameras=12, validation_cameras=1, test_cameras=1, strips=strips)
    world, cameras = load_world(settings, 1), dict[tuple[str, str], list[bytes]]()
    for index in range(100):
        camera = world.locate("train", index).event.camera
        images = cameras.setdefault((camera.name, camera.strip), [])
        if len(images) < 12:
            images.append(draw_trap_row(settings, seed=1, split="train", index=index).data)
    return {camera: images for camera, images in cameras.items() if len(images) >= 3}


@pytest.mark.parametrize("strips", [True, False])
def test_strips_of_generated_cameras_are_exact(strips: bool) -> None:
    cameras = draw_cameras(strips=strips)
    assert {side for _, side in cameras} == {"top", "bottom"}
    for (name, side), images in cameras.items():
        top, bottom = (18, 0) if side == "top" else (0, 18)
        expected = (top, bottom) if strips else (0, 0)
        for count in range(3, len(images) + 1, 3):
            result = camera_strips(images[:count])
            assert (round(result.top * 240), round(result.bottom * 240)) == expected, (name, count)


@pytest.mark.skipif(not MICA, reason="no camera-traps/frames: name its parent with FOVEATE_CAMERA_TRAPS")
def test_strips_of_a_real_burst_at_night() -> None:
    result = camera_strips(path.read_bytes() for path in MICA)
    # 450 rows; the scene above the water is as dark as the strips.
    assert (round(result.top * 450), round(result.bottom * 450)) == (10, 10)


def test_too_few_frames_show_no_strip() -> None:
    assert find_strips(np.zeros((2, 64, 64), np.uint8)) == Strips()
    # All dark: what is plain goes on into the scene.
    assert find_strips(np.zeros((8, 64, 64), np.uint8)) == Strips()


def test_boxes_of_a_strip_and_its_logo_are_known() -> None:
    strips = Strips(top=0.02, bottom=0.03)
    logo, text, animal_at_edge = [0.88, 0.94, 1, 1], [0, 0, 0.5, 0.02], [0.3, 0.7, 0.8, 1]
    assert is_in_strip([logo, text, animal_at_edge, [0.2, 0.9, 0.3, 0.97]], strips).tolist() == [
        True,
        True,
        False,
        False,
    ]
    # Without a strip a low box at the edge is a mouse.
    assert not is_in_strip([logo, text], Strips()).any()


def build_camera(folder: Path, regions: list[list[Region]]) -> Path:
    """Write a camera with an image a day, each with some boxes."""
    with CollectionWriter(folder, source="cards") as writer:
        for day, boxes in enumerate(regions):
            medium = Medium(f"k{day}", "A", time=f"2026-05-{day + 1:02}T10:00:00", file=f"{day}.jpg")
            image = encode(draw_frame(day, strip=0, night=False))
            writer.add(f"k{day}", image, regions=boxes, extra=survey_rows(medium))
        write_survey(writer, deployments=[Deployment("A", "A")])
    return folder


def test_a_box_that_returns_is_not_cropped_and_another_detector_goes_first(tmp_path: Path) -> None:
    stone, megadetector = Box(0.1, 0.6, 0.3, 0.8), Box(0.5, 0.5, 0.7, 0.7)
    days = []
    for day in range(8):
        animal = Box(0.1 * day, 0.1, 0.1 * day + 0.2, 0.4)
        days.append([Region(stone, "object", 0.9, source=NANODET), Region(animal, "object", 0.5, source=NANODET)])
    days[7] = days[7][:1]
    days[6].append(Region(megadetector, "animal", 0.3, source="detector:megadetector"))
    with Collection.open(build_camera(tmp_path / "survey", days)) as collection:
        boxes = collection_boxes(collection, range(8), CropSettings())
    # The last image has nothing but the stone: it is shown whole.
    assert sorted(boxes) == list(range(7))
    np.testing.assert_allclose([boxes[day][0] for day in range(6)], [0.1 * day for day in range(6)], atol=1e-6)
    np.testing.assert_allclose(boxes[6], megadetector.to_array(), atol=1e-6)


def test_pixels_of_strips_may_be_given() -> None:
    settings = CropSettings(strips="crop", strip_px=(0, 24))
    assert settings.strip_px == (0, 24)
