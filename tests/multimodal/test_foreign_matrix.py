"""Every cell of the matrix of families: what it says can be done is done, what it denies is refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.core.errors import UserError
from foveate.language.generate import GenerationSettings
from foveate.mllm.tuning.samples import encode_conversation
from foveate.multimodal.foreign import BATCHED, ForeignMllm, open_foreign
from foveate.multimodal.foreign_boxes import FAMILIES, UNITS, read_boxes, write_values
from foveate.multimodal.opening import find_native_folder
from foveate.multimodal.pointing import choose_region_prompt, prompt_regions
from foveate.multimodal.prepare import Dialog
from foveate.records.boxes import PixelBox
from foveate.records.conversations import Conversation, Turn
from foveate.records.importers.coordinates import CoordinateFrame
from foveate.serve.adapters.multimodal import open_adapter
from foveate.video.families import GRIDS
from foveate.video.networks import FAMILIES as VIDEO_FAMILIES
from foveate.video.networks import open_network
from foveate.video.watching import watch
from multimodal.foreign_matrix import CLIPS_ALONE, COLUMNS, MATRIX, PAGE, REASONS, UNTRIED, fill_page
from multimodal.foreign_models import BUILDERS, save

QUESTION = "what is in the image"
BOX = PixelBox(10, 8, 40, 32)


class Opened:
    """A model of a family, its folder, and two images."""

    def __init__(self, family: str, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.family, self.folder, self.patch = family, folder, patch
        self.model: ForeignMllm = open_foreign(str(folder))
        self.images = [
            Image.fromarray(np.random.default_rng(seed).integers(0, 255, size, dtype=np.uint8))
            for seed, size in enumerate([(40, 50, 3), (60, 30, 3)])
        ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("matrix")
    return {family: save(family, root / family) for family in MATRIX}


def ask(opened: Opened) -> None:
    model = opened.model
    inputs = model._inputs(opened.images[:1], [("user", QUESTION)])
    with torch.inference_mode():
        ids = model.model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    answer = model.ask(opened.images[0], QUESTION, max_tokens=4)
    written = model.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
    # Random answers of Kosmos-2 are full of places, which are read as boxes.
    assert answer.text == (read_boxes(written, CoordinateFrame("0-1", 50, 40))[0] if answer.boxes else written)


def stream(opened: Opened) -> None:
    expected = opened.model.ask(opened.images[0], QUESTION, max_tokens=4).text
    assert "".join(opened.model.stream(opened.images[0], QUESTION, max_tokens=4)) == expected


def chat(opened: Opened) -> None:
    talk = opened.model.chat(opened.images[0])
    talk.ask(QUESTION, max_tokens=3)
    assert talk.ask("is it red", max_tokens=3).tokens
    assert len(talk.turns) == 4


def batch(opened: Opened) -> None:
    assert opened.family in BATCHED
    dialogs = [Dialog([image], [Turn("user", f"<image>\n{QUESTION}")]) for image in opened.images]
    settings = [GenerationSettings(max_new_tokens=4)] * 2
    together = opened.model.answer_dialogs(dialogs, generation=settings)
    assert together == [opened.model.answer_dialogs([dialog], generation=settings[:1])[0] for dialog in dialogs]


def boxes(opened: Opened) -> None:
    model, image = opened.model, opened.images[0]
    assert model.unit not in (None, "none")
    frame = model._frame(image, model._inputs([image], [("user", QUESTION)]), unit=model.unit)
    moved = frame.from_pixels(BOX)
    assert isinstance(moved, PixelBox)
    values = [moved.x1, moved.y1, moved.x2, moved.y2]
    written = write_values(values, model.unit, family=opened.family)
    opened.patch.setattr(type(model.processor.tokenizer), "decode", lambda *_, **__: f"disc {written}")
    (box,) = model.ask(image, QUESTION, max_tokens=2).boxes
    # Kosmos-2's cells are 1.6 x 1.25 pixels.
    assert (box.x1, box.y1, box.x2, box.y2) == pytest.approx((10, 8, 40, 32), abs=1)


def regions(opened: Opened) -> None:
    model = opened.model
    expected = "coordinates" if FAMILIES[opened.family].unit != "none" else "draw"
    assert choose_region_prompt(model) == expected
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        question = prompt_regions(model, opened.images[0], "what is <1>", [BOX])
        assert model.ask(*question[:2], regions=question.regions, max_tokens=3).tokens


def image_sets(opened: Opened) -> None:
    # The order of the images matters to what is read.
    inputs = [opened.model._inputs(images, [("user", QUESTION)]) for images in (opened.images, opened.images[::-1])]
    assert opened.model.ask(opened.images, QUESTION, max_tokens=3).tokens
    first, second = (each["pixel_values"] for each in inputs)
    assert first.shape != second.shape or not torch.equal(first, second)


def video(opened: Opened) -> None:
    # That frames are read and answered as transformers does is tried in tests/video/test_video_families.py.
    viewing = watch(open_network(opened.folder, device="cpu"), opened.images, fit=True)
    assert viewing.ask(QUESTION, max_tokens=3).tokens
    assert sum(viewing.record["tokens"].values()) == len(viewing.video_LD)


def serve(opened: Opened) -> None:
    adapter = open_adapter(opened.folder, name="it", device="cpu", precision="fp32", max_tokens=8)
    assert isinstance(adapter.model, ForeignMllm)
    dialog = Dialog(opened.images[:1], [Turn("user", f"<image>\n{QUESTION}")])
    (answer,) = adapter.model.answer_dialogs([dialog], generation=[GenerationSettings(max_new_tokens=3)])
    assert answer.text == opened.model.ask(opened.images[0], QUESTION, max_tokens=3).text
    # Over HTTP, and about clips: tests/serve/test_served_clips.py.
    assert adapter.answers_clips is ("video" not in MATRIX[opened.family].no)


def tune(opened: Opened) -> None:
    # That an adapter is trained and asked is tried, for each of these families, in tests/mllm/test_tuning.py.
    talk = Conversation("1", ("0",), (Turn("user", f"<image>\n{QUESTION}"), Turn("assistant", "a red disc")))
    assert encode_conversation(opened.model, opened.images[:1], talk).learned_T.sum() >= 3


def export(opened: Opened) -> None:
    assert find_native_folder(opened.folder) is not None


CHECKS: dict[str, Callable[[Opened], None]] = {
    "ask": ask, "stream": stream, "chat": chat, "batch": batch, "boxes": boxes, "regions": regions,
    "image sets": image_sets, "video": video, "serve": serve, "tune": tune, "export": export,
}  # fmt: skip


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("family", MATRIX)
def test_cell(family: str, column: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Opened(family, folders[family], monkeypatch)
    if column not in MATRIX[family].no:
        CHECKS[column](opened)
        return
    assert MATRIX[family].no[column] in REASONS
    with pytest.raises((UserError, AssertionError)):
        CHECKS[column](opened)


def test_the_page_shows_the_matrix_of_all_families() -> None:
    assert MATRIX.keys() == BUILDERS.keys()
    # A family that gets a unit of boxes or a path for clips gets a row, or is named below the table.
    named = [*MATRIX, *UNTRIED, *CLIPS_ALONE]
    assert sorted(named) == sorted(UNITS.keys() | VIDEO_FAMILIES.keys() | GRIDS.keys())
    assert CHECKS.keys() == set(COLUMNS)
    text = PAGE.read_text(encoding="utf-8")
    assert fill_page(text) == text, "run python tests/multimodal/foreign_matrix.py"
