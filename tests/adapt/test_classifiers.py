"""Classifiers of three formats: opened strictly, saved and opened again alike; samples and their answers."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from foveate.calibrate.fine_tuning import predict_classifier
from foveate.calibrate.fold import fold
from foveate.core.errors import UserError
from foveate.metrics.class_groups import ClassGroups
from foveate.records.collection import Collection
from foveate.records.geometry import View
from foveate.records.writer import CollectionWriter
from foveate.training.augment import augment_images
from foveate.training.classification import ClassificationDataset, array_images
from foveate.training.epochs import Augmentation
from foveate.training.labeled_images import open_labeled_images
from foveate.vision.classifier import Classifier, classifier_formats, open_classifier, save_classifier
from foveate.vision.classifiers.foveate import EncoderClassifier, classifier_of
from foveate.vision.localizer.model import LocalizingModel
from foveate.vision.preprocess import read_image
from foveate.vision.registry import build_image_encoder
from naming import raises_naming
from tiny import recipe

NAMES = ["ant", "bee", "cat"]
ENCODER = {
    "kind": "open_clip", "model": "ViT-B-32", "embed_dim": 16,
    "vision": {"layers": 1, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 32},
}  # fmt: skip


def timm_folder(folder: Path) -> Path:
    import timm

    folder.mkdir()
    arguments = {"img_size": 32, "depth": 1}
    model = timm.create_model("test_vit", pretrained=False, num_classes=3, **arguments)
    save_file(model.state_dict(), folder / "model.safetensors")
    settings = {"input_size": [3, 32, 32], "mean": [0.4] * 3, "std": [0.2] * 3, "interpolation": "bilinear"}
    said = {"architecture": "test_vit", "num_classes": 3, "model_args": arguments, "pretrained_cfg": settings}
    (folder / "config.json").write_text(json.dumps({**said, "label_names": NAMES}))
    return folder


def transformers_folder(folder: Path) -> Path:
    narrow = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = ViTConfig(**narrow, image_size=32, patch_size=16, id2label=dict(enumerate(NAMES)))
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def foveate_folder(folder: Path) -> Path:
    network = EncoderClassifier(build_image_encoder(ENCODER), settings=ENCODER, classes=3)
    preprocess = network.encoder.preprocess
    save_classifier(Classifier(network, head_name="head", names=NAMES, preprocess=preprocess, format="foveate"), folder)
    return folder


MAKERS = {"timm": timm_folder, "transformers": transformers_folder, "foveate": foveate_folder}


def test_every_format_is_tried() -> None:
    assert set(classifier_formats()) == set(MAKERS)


@pytest.mark.parametrize("name", MAKERS)
def test_saved_and_opened_again_alike(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = MAKERS[name](tmp_path / "model")
    first = open_classifier(folder, device="cpu")
    assert (first.format, list(first.names)) == (name, NAMES)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        logits, features = first.logits_and_features(pixels)
        torch.testing.assert_close(features @ first.head.weight.T + first.head.bias, logits)
    with torch.no_grad():
        first.head.bias += 1
    again = open_classifier(save_classifier(first, tmp_path / "again", source=folder), device="cpu")
    with torch.inference_mode():
        torch.testing.assert_close(again(pixels), logits + 1)
    done = fold(folder, gamma=2.0, groups=ClassGroups.of([0], classes=3), to=tmp_path / "folded")
    with torch.inference_mode():
        shifted = open_classifier(done.path, device="cpu")(pixels)
        torch.testing.assert_close(shifted - logits, torch.tensor([[0.0, 2.0, 2.0]] * 2), atol=1e-5, rtol=0)
    with raises_naming(UserError, tmp_path / "again"):
        save_classifier(first, tmp_path / "again", source=folder)


@pytest.mark.parametrize("name", MAKERS)
def test_missing_and_extra_tensors_are_refused(name: str, tmp_path: Path) -> None:
    folder = MAKERS[name](tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    head = next(key for key in state if key.endswith(("head.weight", "classifier.weight")))
    for change, tensor in (
        ({**state, "strange.weight": torch.zeros(1)}, "strange.weight"),
        ({key: value for key, value in state.items() if key != head}, head),
    ):
        save_file(change, folder / "model.safetensors", metadata={"format": "pt"})
        with raises_naming(UserError, folder / "model.safetensors" if name != "transformers" else folder, tensor):
            open_classifier(folder, device="cpu")


def test_a_classifier_on_one_of_our_encoders(tmp_path: Path) -> None:
    model = LocalizingModel(recipe())
    classifier = classifier_of(model, NAMES)
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    again = open_classifier(save_classifier(classifier.eval(), tmp_path / "model"), device="cpu")
    with torch.inference_mode():
        torch.testing.assert_close(again(pixels), classifier(pixels))
        embedding = model.eval().encode_image_tokens(pixels).pooled
        torch.testing.assert_close(classifier.head(embedding), classifier(pixels))
    assert all(parameter.requires_grad for parameter in classifier.parameters())


def test_folders_that_are_no_classifier(tmp_path: Path) -> None:
    with raises_naming(UserError, "config.json"):
        open_classifier(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with raises_naming(UserError, tmp_path / "config.json", "timm", "transformers"):
        open_classifier(tmp_path)
    (tmp_path / "config.json").write_text('{"architecture": "tset_vit", "num_classes": 3}')
    with raises_naming(UserError, "tset_vit"):
        open_classifier(tmp_path)
    with raises_naming(UserError, "'0'", "ReLU"):
        Classifier(nn.Sequential(nn.ReLU()), head_name="0", names=NAMES)
    with raises_naming(UserError, "'0'", "3", "2"):
        Classifier(nn.Sequential(nn.Linear(2, 3)), head_name="0", names=["a", "a", "b"])
    arrays = Classifier(nn.Sequential(nn.Linear(2, 3)), head_name="0", names=NAMES)
    with raises_naming(UserError, "in memory"):
        save_classifier(arrays, tmp_path / "new")
    with raises_naming(UserError, "floating-point"):
        arrays(torch.zeros(1, 2, dtype=torch.uint8))


@pytest.fixture
def images(tmp_path: Path) -> Collection:
    with CollectionWriter(tmp_path / "images", license="CC0-1.0", source="test") as writer:
        for number in range(6):
            buffer = io.BytesIO()
            Image.new("RGB", (40, 30), (40 * number, 20, 90)).save(buffer, "PNG")
            labels = {"animal": NAMES[number % 3]} if number < 5 else {}
            writer.add(f"p{number}", buffer.getvalue(), labels=labels, split="train" if number else "test")
    return Collection.open(tmp_path / "images")


def test_images_of_a_collection_for_a_classifier(images: Collection, tmp_path: Path) -> None:
    classifier = open_classifier(timm_folder(tmp_path / "model"), device="cpu")
    assert classifier.preprocess is not None
    preprocess = classifier.preprocess

    def load(row: int, view: View) -> torch.Tensor:
        return read_image(images, row, preprocess, view)[0]

    labeled = open_labeled_images(images, "animal", NAMES, splits=["train"], load=load)
    rows = labeled.rows("train")
    assert rows.tolist() == [1, 2, 3, 4]
    assert labeled.labels_N[rows].tolist() == [1, 2, 0, 1]
    assert ((labeled.splits == "train") & (labeled.labels_N < 0)).sum() == 1, "an image of the split has no label"
    predictions = predict_classifier(classifier, labeled, np.array([3, 1]))
    assert predictions.logits.shape == (2, 3)
    assert predictions.labels.tolist() == [0, 1]
    assert predictions.rows.tolist() == [3, 1]
    with torch.inference_mode():
        expected = classifier(labeled.load(3, View())[None]).numpy()
    np.testing.assert_allclose(predictions.logits[:1], expected, atol=1e-5)
    plain = ClassificationDataset(labeled, augment_images(labeled, Augmentation()))
    cropped = ClassificationDataset(labeled, augment_images(labeled, Augmentation(crop=0.3)))
    assert torch.equal(cropped.sample(1, 0, 7)["inputs"], cropped.sample(1, 0, 7)["inputs"])
    batch = cropped.collate([cropped.sample(row, 0, 0) for row in (1, 3)])
    assert batch["inputs"].shape == (2, 3, 32, 32)
    assert batch["labels"].tolist() == [1, 0]
    varied = ClassificationDataset(labeled, augment_images(labeled, Augmentation(crop=0.3, color=0.3)))
    assert not torch.equal(varied.sample(1, 0, 7)["inputs"], varied.sample(1, 1, 7)["inputs"])
    assert torch.equal(plain.sample(1, 1, 7)["inputs"], labeled.load(1, View())), "without augmentation nothing varies"
    with raises_naming(UserError, "bee", "2", "bea"):
        open_labeled_images(images, "animal", ["ant", "bea"], splits=["train"], load=load)


def test_images_of_arrays() -> None:
    with raises_naming(UserError, "NaN"):
        array_images(np.array([[np.nan]]), np.array([0]))
    with raises_naming(UserError, "2", "1"):
        array_images(np.zeros((2, 1)), np.array([0]))
    arrays = array_images(np.zeros((2, 1)), np.array([0, 1]))
    assert augment_images(arrays, Augmentation()) is None
    with raises_naming(UserError, "augmentation", "arrays"):
        augment_images(arrays, Augmentation(flip=0.5))
