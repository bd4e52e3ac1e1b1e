"""`smollm2-mini`: what the package holds of it, and that it names regions with the language model that it needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from foveate.core.errors import UserError
from foveate.core.files import read_json
from foveate.core.model_folder import read_shapes
from foveate.core.paths import DATA
from foveate.language import open
from foveate.language.open import FILE_SHA256
from foveate.metrics.text_answers import normalize_vqa
from foveate.multimodal.ask import Mllm
from foveate.multimodal.opening import open_mllm
from foveate.multimodal.prepare import Question
from foveate.records.boxes import PixelBox, pairwise_iou
from foveate_labs.worlds.scenes.scene import draw_scene
from naming import raises_naming

FOLDER = DATA / "smollm2-mini"


def test_the_package_has_what_was_trained_alone() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 13_000_000
    config = read_json(FOLDER / "config.json")
    assert config["model"]["language"]["source"] == "smollm2"
    assert config["language_sha256"] == FILE_SHA256
    held = [name for name in read_shapes(FOLDER / "model.safetensors") if name.startswith("language_model.")]
    assert held
    assert all(".lora_" in name for name in held)


def test_without_its_language_model_the_error_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open, "PACKAGE", "no_such_package")
    monkeypatch.setattr(open, "cached_smollm2", lambda: tmp_path / "missing.gguf")
    with raises_naming(UserError, "smollm2", "foveate mllm fetch smollm2"):
        open_mllm("smollm2-mini")


def corners(box: PixelBox) -> list[float]:
    return [box.x1, box.y1, box.x2, box.y2]


@pytest.mark.slow
def test_it_names_regions_and_points_at_names_by_the_image(smollm2_file: Path) -> None:
    model = open_mllm("smollm2-mini")
    assert isinstance(model, Mllm)
    known = set(read_json(FOLDER / "names.json"))
    things = []
    for index in range(40):
        # Held-out backgrounds, and another series than that of its training.
        scene = draw_scene(seed=7, split="test", index=index)
        shown = [placed for placed in scene.regions if placed.phrase in known and placed.box is not None]
        if shown:
            box = shown[0].box
            assert box is not None
            things.append((np.asarray(scene.image), box.to_pixels(*scene.image.size), shown[0].phrase))
    assert len(things) >= 25

    def share_named(images: list[np.ndarray]) -> float:
        answers = model.ask_all(
            [Question(image, "What is <1>?", [box]) for image, (_, box, _) in zip(images, things, strict=True)],
            max_tokens=14,
        )
        right = [
            normalize_vqa(answer.text) == normalize_vqa(name)
            for answer, (_, _, name) in zip(answers, things, strict=True)
        ]
        return sum(right) / len(right)

    images = [image for image, _, _ in things]
    assert share_named(images) >= 0.4
    assert share_named([*images[1:], images[0]]) <= 0.1

    answers = model.ask_all([Question(image, f"Where is the {name}?", []) for image, _, name in things], max_tokens=14)
    hits = [
        bool(answer.boxes) and float(pairwise_iou([corners(answer.boxes[0])], [corners(box)])[0, 0]) >= 0.5
        for answer, (_, box, _) in zip(answers, things, strict=True)
    ]
    assert sum(hits) / len(hits) >= 0.4
