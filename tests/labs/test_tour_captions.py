"""The tour's captions on a few scenes: texts in all formats, their marks, regions, and two small encoders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import tiny
from foveate.caption.prompts import CAPTION_KINDS
from foveate.core.results import parse_result
from foveate.core.runs import RunFolder
from foveate.pretrain.train import build_model
from foveate.records.collection import Collection
from foveate.report.pages.captions import TourCaptions
from foveate.vision.localizer.folder import save_model
from foveate_labs.tour import captions as module
from foveate_labs.tour.captions import Sizes, caption_part, sizes_of, tour_captions, with_captions
from foveate_labs.worlds.scenes import build_scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tour-captions") / "scenes"
    build_scenes(path, train=24, test=6, seed=3, size=96)
    return path


def test_sizes() -> None:
    assert sizes_of(8000, None) == Sizes()
    small = sizes_of(16, 6)
    assert (small.trained_on, small.steps, small.batch_size) == (16, 6, 16)


def test_captions_beside_the_collection(scenes: Path) -> None:
    collection = Collection.open(scenes)
    part = collection.rows("train")[:5]
    opened = with_captions(collection, {int(part[0]): "A red boat."}, part)
    assert opened.rows("train").tolist() == part.tolist()
    assert "A red boat." in [caption.text for caption in opened.read_captions(int(part[0]))]
    assert opened.table("captions").num_rows == collection.table("captions").num_rows + 1
    assert "A red boat." not in [one.text for one in Collection.open(scenes).read_captions(int(part[0]))]


def test_a_repeated_tour_trains_on_the_captions_of_the_first(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another device the model may write others, on which a training would not resume."""
    collection, texts = Collection.open(scenes), iter(("A red boat.", "A blue boat."))

    def write(captioner: object, collection: Collection, rows: np.ndarray, kinds: object) -> tuple[dict, dict]:
        return {int(rows[0]): {"ssc": next(texts)}}, {}

    monkeypatch.setattr(module, "_write_captions", write)
    part, stored = collection.rows("train")[:3], tmp_path / "captions.json"
    for _ in range(2):
        assert caption_part(None, collection, part, stored) == {int(part[0]): "A red boat."}  # type: ignore[arg-type]
    assert caption_part(None, collection, part[:2], stored) == {int(part[0]): "A blue boat."}  # type: ignore[arg-type]


@pytest.mark.slow
def test_from_the_shipped_model_to_the_page(scenes: Path, tmp_path: Path) -> None:
    model = build_model(tiny.recipe()).eval().requires_grad_(False)
    locator = save_model(model, tmp_path / "locator")
    before = Collection.open(scenes).table("captions").num_rows
    sizes = Sizes(3, 16, 4, 8)
    run = RunFolder.create(tmp_path / "run")
    found = tour_captions(Collection.open(scenes), run, locator=locator, seed=0, device="cpu", sizes=sizes)
    checked = parse_result(TourCaptions, json.loads(json.dumps(found, allow_nan=False)))
    assert len(checked.examples) == 3
    assert (run.path / checked.examples[0].image).is_file()
    # Also formats that no usable caption is of.
    assert [one["format"] for one in found["formats"]] == ["alt", *CAPTION_KINDS]
    assert all((one.n == 0) == (one.tokens is None) for one in checked.formats)
    # Without a whole caption there is no encoder that was trained with some.
    titles = ["AltText only", "half AltText, half short captions"][: 1 + bool(checked.encoder.captioned)]
    assert [one.title for one in checked.encoder.values] == titles
    assert all(0 <= one.value <= 1 for one in checked.encoder.values)
    assert Collection.open(scenes).table("captions").num_rows == before
    for example in found["examples"]:
        for region in example["regions"]:
            assert np.isfinite(region["box"]).all()
