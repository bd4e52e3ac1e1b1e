"""Frames become the pixels that the official code gives, on any Pillow."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate.vision.preprocess import Preprocess, squash

GOLDENS = Path(__file__).parents[2] / "goldens" / "slowfast"
PREPROCESS = json.loads((GOLDENS / "preprocess.json").read_text())
ARRAYS = np.load(GOLDENS / "preprocess.npz")


@pytest.mark.parametrize("case", PREPROCESS["cases"], ids=lambda case: f"{case['image']}-{case['target']}")
def test_golden_pixels(case: dict) -> None:
    image, side = Image.fromarray(ARRAYS[case["image"]]), case["target"]
    assert image.size == (case["width"], case["height"])
    squashed = squash(image, side)
    stride = 24 if "pixels_stride24" in case else 1
    resized_HW3 = np.asarray(squashed)
    assert np.array_equal(resized_HW3[::stride, ::stride], ARRAYS[case["resized_uint8"]])
    assert hashlib.sha256(resized_HW3.tobytes()).hexdigest() == case["resized_uint8_sha256"]

    preprocess = Preprocess(size=side, mean=tuple(PREPROCESS["mean"]), std=tuple(PREPROCESS["std"]))
    pixels_3HW = preprocess.normalize(preprocess.pixels(squashed)).numpy()
    expected = ARRAYS[case["pixels_stride24" if stride > 1 else "pixels"]]
    np.testing.assert_allclose(pixels_3HW[:, ::stride, ::stride], expected, rtol=0, atol=1e-6)
    assert hashlib.sha256(pixels_3HW.tobytes()).hexdigest() == case["pixel_sha256"]
    assert pixels_3HW.mean((1, 2)) == pytest.approx(case["channel_mean"], abs=1e-5)
    # Neither bilinear nor both passes in one call of a Pillow that turns their order around.
    assert not np.array_equal(np.asarray(image.resize((side, side), Image.Resampling.BILINEAR)), resized_HW3)


def test_palette_gray_and_alpha_are_rgb_before_they_are_resized() -> None:
    image = Image.fromarray(ARRAYS["wide_img"])
    for mode in ("P", "L"):
        converted = image.convert(mode)
        assert squash(converted, 28).tobytes() == squash(converted.convert("RGB"), 28).tobytes()
    assert squash(image, (20, 30)).size == (30, 20)
