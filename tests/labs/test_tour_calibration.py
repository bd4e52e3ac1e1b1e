"""The tour's calibration on a few colored images in two styles: what is trained, shown and counted."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate.core.results import parse_result
from foveate.core.runs import RunFolder
from foveate.records.collection import Collection
from foveate.records.record import Caption
from foveate.records.writer import CollectionWriter
from foveate.report.pages.calibrate import TourCalibration
from foveate.vision.lite0 import Lite0Encoder
from foveate.vision.registry import seeded
from foveate_labs.studies.calibration_worlds import held_out
from foveate_labs.tour import calibration as tested

COLORS = {"food": (220, 60, 40), "plant": (40, 170, 60), "sky": (60, 90, 220), "tool": (120, 120, 120)}
CONCEPTS = 24


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tour-calibration") / "emoji"
    random = np.random.default_rng(0)
    with CollectionWriter(path, license="CC0-1.0", source="test") as writer:
        for subcategory, color in COLORS.items():
            for number in range(CONCEPTS):
                for style, shift in (("noto", 0), ("twemoji", 30)):
                    pixels = np.array(color) + shift + random.normal(0, 40, (32, 32, 3))
                    buffer = io.BytesIO()
                    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
                    labels = {"source": "emoji", "style": style, "subcategory": subcategory}
                    group = f"emoji {subcategory} {number}"
                    title = Caption(f"{subcategory} {number}", "title", "test")
                    key = f"{style}-{subcategory}-{number}"
                    writer.add(key, buffer.getvalue(), captions=[title], labels=labels, group=group, split="train")
    return path


def test_from_features_to_the_section(emoji: Path, tmp_path: Path) -> None:
    collection = Collection.open(emoji)
    with seeded(0):
        encoder = Lite0Encoder(image_size=32, width=16, embed_dim=16).eval()
    run = RunFolder.create(tmp_path / "run")
    arguments = {"encoder": encoder, "cache": tmp_path / "cache", "seed": 0, "device": "cpu", "epochs": 2}
    found = tested.tour_calibration(collection, run, **arguments)
    checked = parse_result(TourCalibration, json.loads(json.dumps(found, allow_nan=False)))
    groups = {group for group in collection.groups if held_out(group)}
    assert checked.samples == len(groups), "each held-out thing is tested once, in the other style"
    assert checked.trained.pretrained == len(COLORS) * CONCEPTS - len(groups)
    assert checked.trained.classes == len(checked.classes.seen) + len(checked.classes.absent) == len(COLORS)
    assert {"before", "after", "star"} <= {row.key for row in checked.rows}
    assert sum(one.samples for one in checked.changes.values()) == checked.samples
    for name, one in checked.changes.items():
        assert one.righted + one.spoiled <= one.changed <= one.samples
        shown = [example for example in checked.examples if example.group == name]
        assert len(shown) == min(one.changed, tested.NUM_EXAMPLES[name])
    for example in checked.examples:
        assert (run.path / example.image).is_file()
        assert example.answers.after != example.answers.calibrated
        assert (example.label in checked.classes.absent) == (example.group == "absent")
    # Called again it answers the same, and trains nothing.
    stamp = (run.path / tested.FOLDER / "before.safetensors").stat().st_mtime_ns
    assert tested.tour_calibration(collection, run, **arguments) == found
    assert (run.path / tested.FOLDER / "before.safetensors").stat().st_mtime_ns == stamp


def test_without_a_feasible_gamma_a_free_method_stands_in_and_the_notes_say_it(
    emoji: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from foveate.calibrate import estimator
    from foveate.calibrate.pseudo import InfeasibleError

    def infeasible(*_: object, **__: object) -> None:
        raise InfeasibleError("no gamma is feasible in any of the 3 pseudo runs")

    monkeypatch.setattr(estimator, "estimate", infeasible)
    with seeded(0):
        encoder = Lite0Encoder(image_size=32, width=16, embed_dim=16).eval()
    run = RunFolder.create(tmp_path / "run")
    found = tested.tour_calibration(
        Collection.open(emoji), run, encoder=encoder, cache=tmp_path / "cache", seed=0, device="cpu", epochs=1
    )
    assert list(found["gammas"]) == ["alg", "best_gap"]
    assert any("no gamma is feasible in any of the 3 pseudo runs" in note for note in found["notes"])
    assert tested.short_epochs(None) is None
    assert tested.short_epochs(20) == 1
