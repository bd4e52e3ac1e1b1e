"""The encoder `bridge`: sentence vectors of classes, weighted by what a classifier and a detector see."""

from __future__ import annotations

import importlib.resources
import io
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from foveate.core.errors import UserError
from foveate.core.files import read_json
from foveate.core.paths import DATA
from foveate.search.api import Model, open_model
from foveate.search.locate import encode_image, locate_phrases, propose
from foveate.vision.bridge import MAX_PROPOSALS, BridgeEncoder
from foveate.vision.lite0 import load_class_head, load_lite0
from foveate.vision.localizer.sources import find_model, fingerprint_folder
from foveate.vision.registry import build_image_encoder, build_text_encoder
from naming import raises_naming

SAMPLES = Path(str(importlib.resources.files("skimage"))) / "data"
NAMES = read_json(DATA / "bridge" / "names.json")


@pytest.fixture(scope="module")
def model() -> Model:
    return open_model("bridge", device="cpu")


@pytest.fixture(scope="module")
def encoder(model: Model) -> BridgeEncoder:
    encoder = model.network.image_encoder
    assert isinstance(encoder, BridgeEncoder)
    return encoder


def unit(vectors: torch.Tensor) -> torch.Tensor:
    return F.normalize(vectors, dim=-1)


def test_the_classifier_is_imagenets() -> None:
    image = Image.open(SAMPLES / "coffee.png").convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
    head = load_class_head()
    with torch.no_grad():
        features = head.features(load_lite0()(pixels)[1])
        probabilities = head(features.mean(dim=(2, 3)))
    assert features.shape == (1, 1280, 7, 7)
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)
    assert NAMES["classes"][int(probabilities.argmax())] == "espresso"
    assert probabilities.max() > 0.8


def test_classes_without_probability_change_nothing(encoder: BridgeEncoder) -> None:
    probabilities = torch.zeros(1, 1000)
    probabilities[0, :4] = torch.tensor([0.5, 0.3, 0.15, 0.05])
    before = encoder.embed(probabilities)
    vectors = encoder.class_vectors_CE.clone()
    try:
        encoder.class_vectors_CE[4:] = torch.randn(996, 384)
        assert torch.equal(encoder.embed(probabilities), before)
        # Neither do classes of the detector that it did not see.
        assert torch.equal(encoder.embed(probabilities, torch.zeros(1, 80)), before)
    finally:
        encoder.class_vectors_CE.copy_(vectors)


def test_permuting_classes_with_their_names_changes_nothing(encoder: BridgeEncoder) -> None:
    rng = torch.Generator().manual_seed(0)
    probabilities = torch.randn(8, 1000, generator=rng).mul(4).softmax(dim=-1)
    before, vectors = encoder.embed(probabilities), encoder.class_vectors_CE.clone()
    order = torch.randperm(1000, generator=rng)
    try:
        encoder.class_vectors_CE.copy_(vectors[order])
        assert torch.allclose(encoder.embed(probabilities[:, order]), before, atol=1e-6)
        # Permuting the names alone is the control: nothing of what the image shows is left.
        assert (unit(encoder.embed(probabilities)) * unit(before)).sum(dim=-1).max() < 0.9
    finally:
        encoder.class_vectors_CE.copy_(vectors)


def test_the_name_of_a_class_finds_what_looks_like_it(model: Model, encoder: BridgeEncoder) -> None:
    """Generated features: each of 100 images is .7 of one class, and the rest of it lies on random others."""
    rng = torch.Generator().manual_seed(1)
    classes = torch.randperm(1000, generator=rng)[:100]
    probabilities = 0.3 * torch.randn(100, 1000, generator=rng).mul(3).softmax(dim=-1)
    probabilities[torch.arange(100), classes] += 0.7
    images = unit(encoder.embed(probabilities))
    texts = torch.from_numpy(model.encode_text([NAMES["classes"][number] for number in classes]))
    first = (texts @ images.T).argmax(dim=1)
    assert (first == torch.arange(100)).float().mean() >= 0.95
    shuffled = torch.randperm(100, generator=rng)
    assert ((texts @ images[shuffled].T).argmax(dim=1) == torch.arange(100)).float().mean() <= 0.05


def test_an_image_is_nearest_to_what_it_shows(model: Model) -> None:
    vectors = model.encode_images([SAMPLES / "chelsea.png", SAMPLES / "coffee.png", SAMPLES / "rocket.jpg"])
    texts = model.encode_text(["a cat", "something to drink", "a rocket", "a bicycle"])
    assert (vectors @ texts.T).argmax(axis=1).tolist() == [0, 1, 2]
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1)


def test_bytes_and_normalized_pixels_are_one_image(encoder: BridgeEncoder) -> None:
    rng = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (2, 3, 672, 672), generator=rng, dtype=torch.uint8)
    features = encoder.frozen_features(pixels)
    assert features.shape == (2, *encoder.feature_shape)
    assert torch.equal(features, encoder.frozen_features(encoder.normalized(pixels)))
    assert torch.equal(encoder(features).pooled, encoder(pixels).pooled)
    assert encoder.frozen_features(pixels[:0]).shape == (0, *encoder.feature_shape)
    bright = encoder.propose(pixels[0], encoder(features).tokens[0])
    again = encoder.propose(encoder.normalized(pixels)[0], encoder(features).tokens[0])
    assert torch.equal(bright.vectors_KE, again.vectors_KE)


def test_boxes_are_proposed_even_where_nothing_is(model: Model, encoder: BridgeEncoder, tmp_path: Path) -> None:
    Image.new("RGB", (90, 40), "white").save(tmp_path / "white.png")
    for path in (tmp_path / "white.png", SAMPLES / "chelsea.png"):
        encoded = encode_image(model.network, path.read_bytes())
        proposals = propose(model.network, encoded)
        assert proposals is not None
        boxes = proposals.boxes_K4
        assert 1 <= len(boxes) == len(proposals.vectors_KE) == len(proposals.bias_K) <= MAX_PROPOSALS
        assert ((boxes >= 0) & (boxes <= 1)).all()


def test_a_thing_is_located_and_an_absent_one_is_not(model: Model) -> None:
    """A cat and a cup side by side: each has its half, and what neither shows is not found."""
    cat, coffee = (
        Image.open(SAMPLES / name).convert("RGB").resize((400, 300)) for name in ("chelsea.png", "coffee.png")
    )
    both = Image.new("RGB", (900, 300), "white")
    both.paste(cat, (0, 0))
    both.paste(coffee, (500, 0))
    phrases = ["a cat", "a cup of coffee", "a submarine", "a violin"]
    found = locate_phrases(model.network, _encode(both), phrases)
    assert found[0].box[2] < 0.55
    assert found[1].box[0] > 0.45
    assert [each.has_match for each in found] == [True, True, False, False]
    assert all(each.floor is not None for each in found)


def _encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_the_shipped_model_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = find_model("bridge")
    assert not source.is_local
    assert source.localizes
    assert source.fingerprint() == fingerprint_folder(DATA / "bridge")
    # Its sentence vectors are MiniLM's own, so that the names' vectors and a query's are of one space.
    assert build_text_encoder({"kind": "minilm", "projection": "none", "embed_dim": 384}).embed_dim == 384
    with raises_naming(UserError, "embed_dim", "192"):
        build_text_encoder({"kind": "minilm", "projection": "none", "embed_dim": 192})
    with raises_naming(UserError, "image_size", "224"):
        build_image_encoder({"kind": "bridge", "image_size": 224})
    # A folder of that name in the way changes nothing.
    (tmp_path / "bridge").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_model("bridge").fingerprint() == source.fingerprint()
