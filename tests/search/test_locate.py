"""Where is a phrase: the errors, and boxes that come back in fractions of the original image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from foveate.core.errors import UserError
from foveate.pretrain.train import build_model
from foveate.records.boxes import PixelBox
from foveate.records.geometry import View
from foveate.search.locate import PhraseBoxes, encode_image, find_decode_side, locate, read_image
from foveate.vision.localizer.model import LocalizingModel
from foveate.vision.preprocess import render_file
from naming import raises_naming


def build(method: str) -> LocalizingModel:
    return build_model(tiny.recipe(regions={"method": method})).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model() -> LocalizingModel:
    return build("prompter")


def image(size: tuple[int, int]) -> bytes:
    return tiny.image_bytes(tiny.draw([("red disc", PixelBox(5, 5, 25, 25))], size=size, seed=0))


def answer_at(model: LocalizingModel, monkeypatch: pytest.MonkeyPatch, box: Sequence[float]) -> None:
    """Makes the head answer `box` of the model input."""
    monkeypatch.setattr(model, "ground", lambda tokens, texts, index: torch.tensor([list(box)]))


@pytest.mark.parametrize("size", [(64, 64), (200, 50), (30, 90), (301, 299)])
def test_boxes_map_back_to_the_original(
    size: tuple[int, int], model: LocalizingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = np.array([[0.25, 0.1, 0.5, 0.8]])
    placement = View().fit(*size, model.image_encoder.preprocess.size)
    inside, _ = placement.to_input(truth)
    answer_at(model, monkeypatch, inside[0].tolist())
    found = locate(model, image(size), "a red disc")
    assert (found.width, found.height) == size
    np.testing.assert_allclose(found.boxes["head"], truth[0], atol=1e-4)
    for name, box in found.boxes.items():
        score = found.scores[name]
        assert 0 <= box[0] < box[2] <= 1, name
        assert 0 <= box[1] < box[3] <= 1, name
        assert score is not None, name
        assert -1 <= score <= 1, name
    assert set(found.boxes) == {"head", "candidates", "center", "random"}


def test_a_large_image_keeps_its_size(model: LocalizingModel) -> None:
    found = locate(model, tiny.image_bytes(Image.new("RGB", (900, 300), "red")), "red")
    assert (found.width, found.height) == (900, 300)


@pytest.mark.parametrize("geometry", ["center_crop", "stretch"])
def test_a_long_image_is_cropped_from_pixels_that_the_input_needs(
    geometry: str, model: LocalizingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the images of an index, and not from pixels of twice the input's side, which has a few rows then."""
    preprocess = replace(model.image_encoder.preprocess, geometry=geometry)
    monkeypatch.setattr(model.image_encoder, "preprocess", preprocess)
    noise = np.random.default_rng(0).integers(0, 256, (100, 800, 3), dtype=np.uint8)
    data = tiny.image_bytes(Image.fromarray(noise))
    encoded = encode_image(model, data)
    assert (encoded.width, encoded.height) == (800, 100)
    tokens = model.encode_image_tokens(render_file(data, preprocess)[0][None]).tokens
    torch.testing.assert_close(encoded.tokens.tokens, tokens)
    assert find_decode_side(model) is None, "a server leaves the decoding to the model"


def test_rules(model: LocalizingModel, monkeypatch: pytest.MonkeyPatch) -> None:
    data = image((64, 48))
    answer_at(model, monkeypatch, (0.2, 0.3, 0.6, 0.7))
    for rule in ("head", "candidates"):
        found = locate(model, data, "a red disc", rule=rule)
        assert isinstance(found, PhraseBoxes)
        assert found.rule == rule
        assert found.box == found.boxes[rule]
        monkeypatch.setattr(model, "locate_rule", rule)
        assert locate(model, data, "a red disc").rule == rule
    assert locate(model, data, "a red disc", seed=1).boxes["random"] != found.boxes["random"]
    assert locate(model, data, "a red disc", seed=0) == locate(model, data, "a red disc", seed=0)


CORNERS = ((0.0, 0.0, 0.0, 0.0), (1.0, 1.0, 1.0, 1.0))
ON_PADDING, A_LINE = (0.3, 0.1, 0.6, 0.12), (0.4, 0.5, 0.4, 0.9)


@pytest.mark.parametrize("box", [*CORNERS, ON_PADDING, A_LINE])
def test_an_answer_without_area_has_no_score(
    box: tuple[float, ...], model: LocalizingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wholly on the padding of a flat image, or a line: shown as it is, never NaN, and never the answer."""
    answer_at(model, monkeypatch, box)
    found = locate(model, image((200, 50)), "a red disc")
    assert found.scores["head"] is None
    assert found.scores["candidates"] is not None
    assert found.rule == "candidates"


@pytest.mark.parametrize("method", ["none", "roi"])
def test_models_without_a_head(method: str) -> None:
    model = build(method)
    with raises_naming(UserError, "head"):
        locate(model, image((64, 64)), "a red disc", rule="head")
    found = locate(model, image((64, 64)), "a red disc", rule="candidates")
    assert set(found.boxes) == {"candidates", "center", "random"}
    assert locate(model, image((64, 64)), "a red disc").rule == "candidates", "also before it was evaluated"


def test_one_image_forward(model: LocalizingModel) -> None:
    seen: list[int] = []
    hook = model.image_encoder.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    locate(model, image((64, 64)), "a red disc")
    hook.remove()
    assert seen == [1]


@pytest.mark.parametrize("phrase", ["", "  ", "\n\t"])
def test_empty_phrases(phrase: str, model: LocalizingModel) -> None:
    with raises_naming(UserError, "phrase"):
        locate(model, image((64, 64)), phrase)


def test_phrases_in_any_script_and_length(model: LocalizingModel) -> None:
    for phrase in ("красный круг", "赤い丸", "🔴", "very " * 5000 + "red"):
        assert locate(model, image((64, 64)), phrase).box


@pytest.mark.parametrize("data", [b"", b"not an image", image((64, 64))[:60]])
def test_unreadable_images(data: bytes, model: LocalizingModel) -> None:
    with raises_naming(UserError, "image"):
        locate(model, data, "a red disc")


def test_read_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    assert read_image(tmp_path / "a.png") == b"x"
    with raises_naming(UserError, "b.png"):
        read_image(tmp_path / "b.png")
    with pytest.raises(UserError, match="cannot be read"):
        read_image(tmp_path)


def test_a_box_in_pixels_of_an_oblong_image() -> None:
    boxes = PhraseBoxes("a", "head", {"head": [0.1, 0.2, 0.5, 0.6]}, {"head": 0.3, "candidates": 0.3}, 200, 100)
    assert boxes.pixel_box == pytest.approx((20, 20, 100, 60))
