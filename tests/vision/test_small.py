"""The encoders `small`: one dot product is the weighted sum of what `bridge` and a trained CLOC score."""

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
from foveate.core.hub import DEFAULT_ENCODER
from foveate.core.paths import DATA
from foveate.records.builtin import families
from foveate.search.api import Model, open_model
from foveate.search.locate import encode_image, locate_phrases, propose
from foveate.vision.localizer.inference import candidate_boxes
from foveate.vision.localizer.sources import find_model, fingerprint_folder
from foveate.vision.registry import build_image_encoder
from foveate.vision.small import FLOOR_SHARE, LEVEL, PROMPTER_WEIGHT, SENTENCE_WIDTH, SmallEncoder, SmallTextEncoder
from naming import raises_naming

SAMPLES = Path(str(importlib.resources.files("skimage"))) / "data"
PHOTOGRAPHS = ("chelsea.png", "coffee.png", "rocket.jpg")
DRAWINGS = ("pineapple", "guitar", "umbrella")


@pytest.fixture(scope="module")
def model() -> Model:
    return open_model("small", device="cpu")


@pytest.fixture(scope="module")
def encoder(model: Model) -> SmallEncoder:
    encoder = model.network.image_encoder
    assert isinstance(encoder, SmallEncoder)
    return encoder


@pytest.fixture(scope="module")
def drawings() -> list[bytes]:
    """An emoji of each thing on white."""
    found = {}
    for row in families.rows("emoji"):
        found.setdefault(families.concept_of_emoji(row), row["image"])
    files = []
    for name in DRAWINGS:
        cutout = Image.open(io.BytesIO(found[name])).convert("RGBA").resize((160, 160))
        image = Image.new("RGB", (224, 224), "white")
        image.paste(cutout, (32, 32), cutout)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        files.append(buffer.getvalue())
    return files


def random_parts(rows: int, encoder: SmallEncoder) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(rows)
    return (
        torch.randn(rows, SENTENCE_WIDTH, generator=rng),
        torch.randn(rows, encoder.embed_dim - SENTENCE_WIDTH - 1, generator=rng),
    )


def test_one_dot_product_is_the_weighted_sum_of_both_scores(model: Model, encoder: SmallEncoder) -> None:
    bridge, trained = random_parts(6, encoder)
    share = torch.tensor([0.0, 0.2, 0.5, 0.8, 0.97, 1.0])
    images = encoder.join(bridge, trained, share)
    text_encoder = model.network.text_encoder
    assert isinstance(text_encoder, SmallTextEncoder)
    sentences = text_encoder.frozen_features(["a cat", "something to drink"])
    texts = text_encoder(sentences)
    z_bridge = (F.normalize(bridge, dim=-1) @ sentences.T - encoder.bridge_level_2[0]) / encoder.bridge_level_2[1]
    own = F.normalize(text_encoder.proj(sentences), dim=-1)
    z_trained = (F.normalize(trained, dim=-1) @ own.T - encoder.trained_level_2[0]) / encoder.trained_level_2[1]
    expected = share[:, None].sqrt() * z_bridge + (1 - share[:, None]).sqrt() * z_trained
    # The scales are stored in half precision.
    assert torch.allclose(images @ texts.T, expected, atol=0.02, rtol=0.002)
    # An image's vector has nearly unit length whatever its share, so a cosine orders images as the sum does.
    lengths = images.norm(dim=-1)
    assert 1 <= lengths.min()
    assert lengths.max() < 1.03
    assert texts[:, -1].tolist() == [LEVEL, LEVEL]


def test_a_share_of_one_is_bridge_and_a_share_of_zero_the_trained_part(encoder: SmallEncoder) -> None:
    bridge, trained = random_parts(3, encoder)
    photograph = encoder.join(bridge, trained, torch.ones(3))
    drawing = encoder.join(bridge, trained, torch.zeros(3))
    assert torch.equal(photograph[:, :SENTENCE_WIDTH], F.normalize(bridge, dim=-1))
    assert photograph[:, SENTENCE_WIDTH:-1].abs().max() == 0
    assert drawing[:, :SENTENCE_WIDTH].abs().max() == 0
    assert torch.equal(drawing[:, SENTENCE_WIDTH:-1], F.normalize(trained, dim=-1))


def test_photographs_and_drawings_are_told_apart(model: Model, encoder: SmallEncoder, drawings: list[bytes]) -> None:
    photographs = [encode_image(model.network, (SAMPLES / name).read_bytes()) for name in PHOTOGRAPHS]
    drawn = [encode_image(model.network, data) for data in drawings]
    both = [propose(model.network, encoded) for encoded in (photographs[0], drawn[0])]
    assert [proposals is not None and proposals.has_floors for proposals in both] == [True, False]
    assert all(encoded.tokens.tokens[0, 0, -1] > FLOOR_SHARE for encoded in photographs)
    assert all(encoded.tokens.tokens[0, 0, -1] < FLOOR_SHARE for encoded in drawn)


def test_a_proposal_scores_bridge_and_the_z_of_the_prompter(
    model: Model, encoder: SmallEncoder, drawings: list[bytes]
) -> None:
    texts = model.network.embed_texts(["a cat", "a violin", "a pineapple"])
    sentences = F.normalize(texts[:, :SENTENCE_WIDTH], dim=-1)
    own_texts = F.normalize(texts[:, SENTENCE_WIDTH:-1], dim=-1)
    mean, std = encoder.trained_level_2
    for data in ((SAMPLES / "chelsea.png").read_bytes(), drawings[0]):
        encoded = encode_image(model.network, data)
        proposals = propose(model.network, encoded)
        assert proposals is not None
        own = encoder.bridge.propose(encoded.pixels, encoder.split(encoded.tokens.tokens[0])[0])
        assert torch.equal(proposals.boxes_K4, own.boxes_K4)
        owner = torch.zeros(len(own.boxes_K4), dtype=torch.int64)
        vectors = encoder.embed_boxes(encoded.tokens, own.boxes_K4, owner)[:, SENTENCE_WIDTH:-1]
        z = (own_texts @ F.normalize(vectors, dim=-1).T - mean) / std
        weight = PROMPTER_WEIGHT * float(1 - encoded.tokens.tokens[0, 0, -1]) ** 0.5
        scores = proposals.score(texts)
        # The scales of texts are stored in half precision.
        assert torch.allclose(scores, own.score(sentences) + weight * z, atol=5e-3)
        # A floor of bridge is compared with what bridge scores the chosen box; one by names with the whole score.
        best = scores.argmax(dim=1)
        judged = own.score(sentences) if proposals.has_floors else scores
        assert torch.allclose(proposals.judge(texts), judged.gather(1, best[:, None])[:, 0], atol=5e-3)


def test_both_kinds_of_folder_are_searched(model: Model, drawings: list[bytes], tmp_path: Path) -> None:
    """Photographs and drawings in one folder: each is the nearest to what it shows."""
    paths = [SAMPLES / name for name in PHOTOGRAPHS]
    for name, data in zip(DRAWINGS, drawings, strict=True):
        paths.append(tmp_path / f"{name}.png")
        paths[-1].write_bytes(data)
    images = model.encode_images(paths)
    texts = model.encode_text(["a cat", "something to drink", "a rocket", *DRAWINGS])
    assert np.linalg.norm(images, axis=1) == pytest.approx(1)
    assert (texts @ images.T).argmax(axis=1).tolist() == list(range(len(paths)))
    assert np.array_equal(images, model.encode_images(paths))


def test_boxes_of_both_kinds_are_embedded(model: Model, encoder: SmallEncoder, drawings: list[bytes]) -> None:
    encoded = encode_image(model.network, drawings[0])
    boxes = torch.from_numpy(candidate_boxes()[:5])
    index = torch.zeros(5, dtype=torch.int64)
    vectors = model.network.encode_regions(encoded.tokens, boxes, index)
    assert vectors.shape == (5, encoder.embed_dim)
    assert torch.equal(vectors, model.network.encode_regions(encoded.tokens, boxes, index))
    located = locate_phrases(model.network, drawings[0], ["a pineapple"])[0]
    assert located.rule == "candidates"
    assert located.has_match
    assert {"head", "candidates"} <= set(located.boxes)
    found = locate_phrases(model.network, (SAMPLES / "chelsea.png").read_bytes(), ["a cat", "a violin"])
    assert [each.rule for each in found] == ["candidates", "candidates"]
    assert [each.has_match for each in found] == [True, False]


def test_features_are_those_of_one_pass(encoder: SmallEncoder) -> None:
    rng = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (2, 3, 672, 672), generator=rng, dtype=torch.uint8)
    features = encoder.frozen_features(pixels)
    assert features.shape == (2, *encoder.feature_shape)
    assert torch.equal(features, encoder.frozen_features(pixels))
    size = encoder.bridge.feature_shape[0]
    assert torch.equal(features[:, :size], encoder.bridge.frozen_features(pixels))
    assert torch.equal(encoder(features).pooled, encoder(pixels).pooled)
    assert encoder.frozen_features(pixels[:0]).shape == (0, *encoder.feature_shape)


def test_the_shipped_model_is_found_by_its_name() -> None:
    assert DEFAULT_ENCODER == "small"
    source = find_model("small")
    assert not source.is_local
    assert source.localizes
    assert source.fingerprint() == fingerprint_folder(DATA / "small") != find_model("bridge").fingerprint()
    assert sum(path.stat().st_size for path in (DATA / "small").iterdir()) < 5_000_000
    with raises_naming(UserError, "embed_dim", "384"):
        build_image_encoder({"kind": "small", "embed_dim": 384})
