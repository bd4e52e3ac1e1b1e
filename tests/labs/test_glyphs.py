"""The glyph world: a function of its seed, as the specification draws it, and a clear sentence without fonts."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from foveate.core.errors import UserError
from foveate_labs.worlds.builtin import CLASSES, FONTS, Glyphs, find_font_folder, load_glyphs
from naming import raises_naming


def test_images_are_a_function_of_their_names() -> None:
    first = load_glyphs("target", "train", per_class=2, classes=np.array([0, 35]))
    assert isinstance(first, Glyphs)
    assert first.images.shape == (4, 1, 24, 24)
    assert first.images.dtype == np.float32
    assert first.labels.tolist() == [0, 0, 35, 35]
    again = load_glyphs("target", "train", per_class=2, classes=np.array([35]))
    np.testing.assert_array_equal(again.images, first.images[2:])
    for other in (load_glyphs("target", "test", per_class=2, classes=np.array([0])),
                  load_glyphs("target", "train", per_class=2, classes=np.array([0]), seed=1),
                  load_glyphs("source", "train", per_class=2, classes=np.array([0]))):  # fmt: skip
        assert not np.array_equal(other.images, first.images[:2])
    assert len(set(CLASSES)) == 36


def test_source_is_clean_and_target_is_noisy() -> None:
    source, target = (load_glyphs(style, "x", per_class=1) for style in ("source", "target"))  # type: ignore[arg-type]
    corner = np.s_[:, 0, :3, :3]
    assert source.images[corner].std() == pytest.approx(0.06, rel=0.2)
    assert target.images[corner].std() > 0.2
    assert source.images.min() < -1, "noise is not clipped"
    assert source.images[:, 0, 8:16, 8:16].mean() > source.images.mean() + 0.2, "characters stand in the middle"


def test_missing_fonts_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all((find_font_folder() / f"{name}.ttf").is_file() for fonts in FONTS.values() for name in fonts)
    with raises_naming(UserError, "DejaVuSans.ttf", "10"):
        load_glyphs("source", "x", per_class=1, fonts=tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with raises_naming(UserError, "foveate[glyphs]"):
        find_font_folder()
    with raises_naming(UserError, "sorce"):
        load_glyphs("sorce", "x", per_class=1)  # type: ignore[arg-type]
