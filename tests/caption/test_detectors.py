"""Detectors: tiny models in the real formats, and the oracle."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

import tiny
from foveate.caption.vesl.detection import (
    DETECTORS,
    AnnotationDetector,
    AnnotationSettings,
    DetectorInput,
    find_detector,
    word_overlap,
)
from foveate.caption.vesl.embedding_detectors import (
    ClocDetector,
    ClocSettings,
    NanoDetDetector,
    NanoDetSettings,
    RegionScorer,
)
from foveate.caption.vesl.query_detectors import MllmDetector, MllmSettings, Owlv2Detector, Owlv2Settings
from foveate.core.errors import UserError
from foveate.pretrain.train import build_model
from foveate.records.boxes import intersection_over_union
from foveate.records.collection import Collection
from foveate.vision.localizer.folder import save_model
from foveate.vision.registry import seeded
from foveate_labs.worlds.scenes import draw_scene
from naming import raises_naming


def detector_input(row: int, image: Image.Image, key: str = "p") -> DetectorInput:
    return DetectorInput(row, key, image, image.width, image.height)


def clip_tokenizer(length: int) -> Any:
    """Bytes without merges: CLIP's real class, a vocabulary of 514."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=length)


def save_owlv2(folder: Path) -> Path:
    """A tiny random OWLv2 with its processor and tokenizer, in the real format."""
    from transformers import Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor

    shared = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text: dict[str, Any] = {"vocab_size": 514, "max_position_embeddings": 16, "eos_token_id": 513, "pad_token_id": 0}
    config = Owlv2Config(
        text_config=shared | text,
        vision_config=shared | {"image_size": 64, "patch_size": 16},
        projection_dim=32,
    )
    with seeded(0):
        model = Owlv2ForObjectDetection(config).eval()
    model.save_pretrained(folder)
    Owlv2ImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    clip_tokenizer(16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def owlv2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_owlv2(tmp_path_factory.mktemp("owlv2"))


def photographs() -> list[DetectorInput]:
    images = (data.coffee(), data.chelsea(), data.astronaut())
    return [detector_input(row, Image.fromarray(pixels), f"p{row}") for row, pixels in enumerate(images)]


PHRASES = [["a cup", "a table"], ["a cat"], ["a woman", "a flag", "a red rocket"]]


def test_owlv2_equals_the_pipeline_of_transformers(owlv2: Path) -> None:
    from transformers import AutoTokenizer, Owlv2ForObjectDetection, Owlv2ImageProcessor, Owlv2Processor

    detector = Owlv2Detector(Owlv2Settings(model=str(owlv2), threshold=0.0), "cpu")
    assert (detector.name, detector.input_px) == ("owlv2", 64)
    images = photographs()
    results = detector.detect(images, PHRASES)
    processor = Owlv2Processor(Owlv2ImageProcessor.from_pretrained(owlv2), AutoTokenizer.from_pretrained(str(owlv2)))
    model = Owlv2ForObjectDetection.from_pretrained(owlv2).eval()
    for image, queries, mine in zip(images, PHRASES, results, strict=True):
        inputs = processor(text=[queries], images=image.image, return_tensors="pt", max_length=16)
        with torch.no_grad():
            outputs = model(**inputs)
        theirs = processor.image_processor.post_process_object_detection(
            outputs, threshold=0.0, target_sizes=[(image.height, image.width)]
        )[0]
        boxes = theirs["boxes"].numpy().clip(0, (image.width, image.height) * 2)
        wide = (boxes[:, 2:] - boxes[:, :2] >= 1).all(axis=1)
        np.testing.assert_array_equal(mine.phrase_K, theirs["labels"].numpy()[wide])
        np.testing.assert_allclose(mine.scores_K, theirs["scores"].numpy()[wide], atol=1e-5)
        np.testing.assert_allclose(mine.boxes_K4 * ((image.width, image.height) * 2), boxes[wide], atol=0.05)


def test_owlv2_takes_other_sizes_and_refuses_wrong_checkpoints(owlv2: Path, tmp_path: Path) -> None:
    wider = Owlv2Detector(Owlv2Settings(model=str(owlv2), input_px=128, threshold=0.0), "cpu")
    result = wider.detect(photographs()[:1], PHRASES[:1])[0]
    assert len(result.boxes_K4) + result.thin == (128 // 16) ** 2
    with raises_naming(UserError, "input_px", "100", "16"):
        Owlv2Detector(Owlv2Settings(model=str(owlv2), input_px=100), "cpu")
    broken = Path(shutil.copytree(owlv2, tmp_path / "broken"))
    (broken / "model.safetensors").unlink()
    with raises_naming(UserError, str(broken), "safetensors"):
        Owlv2Detector(Owlv2Settings(model=str(broken)), "cpu")
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "clip"}')
    with raises_naming(UserError, "clip", "owlv2", "model_type"):
        Owlv2Detector(Owlv2Settings(model=str(other)), "cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(build_model(tiny.recipe()).eval(), tmp_path_factory.mktemp("model") / "model")


@pytest.mark.parametrize("rule", ["head", "candidates"])
def test_cloc_gives_each_phrase_its_box(model: Path, rule: str) -> None:
    """The box, and as score the cosine that the model itself gives the box and the phrase."""
    detector = ClocDetector(ClocSettings(model=str(model), rule=rule, threshold=0.0), "cpu")
    images = photographs()
    batched = detector.detect(images, PHRASES)
    scorer = RegionScorer(str(model), "cpu")
    for image, queries, result in zip(images, PHRASES, batched, strict=True):
        single = detector.detect([image], [queries])[0]
        np.testing.assert_allclose(result.boxes_K4, single.boxes_K4, atol=1e-5)
        np.testing.assert_array_equal(result.phrase_K, single.phrase_K)
        assert len(set(result.phrase_K.tolist())) == len(result.phrase_K)
        tokens, placements = scorer.encode_images([image])
        cosines = scorer.cosines(tokens, placements[0], 0, result.boxes_K4, scorer.embed(queries))
        assert result.similarity_K is not None
        np.testing.assert_allclose(result.similarity_K, cosines[np.arange(len(cosines)), result.phrase_K], atol=1e-5)
        assert (result.similarity_K > 0).all()


def test_cloc_refuses_rule_head_without_a_head(tmp_path: Path) -> None:
    clip = save_model(build_model(tiny.recipe(regions={"method": "none"})).eval(), tmp_path / "clip")
    assert ClocDetector(ClocSettings(model=str(clip)), "cpu").rule == "candidates"
    with raises_naming(UserError, "rule", "head", str(clip), "candidates"):
        ClocDetector(ClocSettings(model=str(clip), rule="head"), "cpu")


def test_nanodet_detects_and_the_model_names(model: Path) -> None:
    detector = NanoDetDetector(NanoDetSettings(model=str(model)), "cpu")
    results = detector.detect(photographs(), PHRASES)
    woman = results[2]
    expected = np.array([[12, 12, 296, 412]]) / 416
    assert intersection_over_union(woman.boxes_K4[:1], expected)[0] > 0.95
    assert woman.scores_K[0] == pytest.approx(0.737, abs=0.01)
    assert set(results[1].phrase_K.tolist()) == {0}
    scorer = RegionScorer(str(model), "cpu")
    tokens, placements = scorer.encode_images(photographs()[2:])
    cosines = scorer.cosines(tokens, placements[0], 0, woman.boxes_K4, scorer.embed(PHRASES[2]))
    np.testing.assert_array_equal(woman.phrase_K, cosines.argmax(axis=1))
    stretched = NanoDetDetector(NanoDetSettings(model=str(model), fit="stretch"), "cpu").detect(
        photographs()[:1], PHRASES[:1]
    )[0]
    cup = np.array([[99, 11, 296, 414]]) / 416
    assert intersection_over_union(stretched.boxes_K4, np.repeat(cup, len(stretched.boxes_K4), 0)).max() > 0.95
    strict = NanoDetDetector(NanoDetSettings(model=str(model), min_similarity=1.0), "cpu")
    assert not len(strict.detect(photographs(), PHRASES)[2].boxes_K4)


def test_without_a_model_the_shipped_encoder_chooses_the_phrase() -> None:
    detector = NanoDetDetector(NanoDetSettings(), "cpu")
    cup, nothing = detector.detect(photographs()[:1] * 2, [["a red boat", "a cup of coffee"], ["a red boat"]])
    assert set(cup.phrase_K.tolist()) == {1}
    assert (cup.similarity_K >= 0.5).all()
    assert not len(nothing.boxes_K4)
    assert detector.model.endswith("bridge")


def test_class_names_choose_the_phrase_where_they_are_asked_for() -> None:
    detector = NanoDetDetector(NanoDetSettings(model="names"), "cpu")
    woman, nothing = detector.detect(photographs()[2:] * 2, [["a red boat", "a person"], ["a red boat"]])
    assert intersection_over_union(woman.boxes_K4[:1], np.array([[12, 12, 296, 412]]) / 416)[0] > 0.95
    assert set(woman.phrase_K.tolist()) == {1}
    assert not len(nothing.boxes_K4)
    assert "class names" in detector.model


def test_the_oracle_returns_annotated_boxes(tiny_collection: Path) -> None:
    with Collection.open(tiny_collection) as collection:
        detector = AnnotationDetector(AnnotationSettings(), collection)
        row = collection.find_row("test-00")
        regions = collection.read_regions(row)
        phrases = ["nothing of it", *(f"a {region.phrase}" for region in regions)]
        result = detector.detect([DetectorInput(row, "test-00", None, 64, 64)], [phrases])[0]
        assert [phrases[index] for index in result.phrase_K] == phrases[1:]
        assert result.scores_K.tolist() == [1.0] * len(regions)
        np.testing.assert_array_equal(result.boxes_K4, np.stack([region.box.to_array() for region in regions]))
        assert not len(detector.detect([DetectorInput(row, "test-00", None, 64, 64)], [["a zebra"]])[0].boxes_K4)
        with raises_naming(UserError, "me"):
            AnnotationDetector(AnnotationSettings(sources=("me",)), collection)


def test_a_multimodal_model_is_asked_for_each_phrase(tmp_path: Path) -> None:
    scene = draw_scene(seed=0, split="test", index=8, size=448)
    box = next(placed.box for placed in scene.regions if placed.phrase == "keyboard")
    assert box is not None
    detector = MllmDetector(MllmSettings(), "cpu")
    shown, other = detector.detect(
        [detector_input(0, scene.image), detector_input(1, Image.new("RGB", (64, 48)))],
        [["a zebra", "the keyboard", "a keyboard"], ["a keyboard"]],
    )
    # The zebra scores below the limit that was measured for mini; both keyboards are one question.
    assert shown.phrase_K.tolist() == [1]
    assert intersection_over_union(shown.boxes_K4, box.to_array()[None])[0] > 0.5
    assert 0.5 < shown.scores_K[0] < 1
    assert not len(other.boxes_K4)
    assert detector.model == "mini"
    with raises_naming(UserError, "model"):
        MllmDetector(MllmSettings(model=str(tmp_path)), "cpu")


def test_word_overlap_counts_common_words() -> None:
    assert word_overlap("the", "a") == 0.0
    assert word_overlap("A Red car", "car, red") == pytest.approx(1 / 3)
    assert word_overlap("dog", "dog") == 1.0


def test_detectors_are_found_by_name_and_the_oracle_is_marked() -> None:
    assert sorted(DETECTORS) == ["annotations", "cloc", "mllm", "nanodet", "owlv2"]
    assert [name for name in DETECTORS if find_detector(name).oracle] == ["annotations"]
    with raises_naming(UserError, "owl", "owlv2"):
        find_detector("owl")
