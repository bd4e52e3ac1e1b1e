"""Frozen features kept for all models of a study: the same answers, and nothing computed twice."""

from __future__ import annotations

import torch

import tiny
from foveate.pretrain.train import build_model
from foveate.vision.localizer.model import LocalizingModel
from foveate_labs.studies.trainings import FeatureMemory


class Frozen(torch.nn.Module):
    """An encoder with a frozen part that counts what it works on."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.seen = name, 0

    def fingerprint(self) -> str:
        return self.name

    def frozen_features(self, entries: torch.Tensor | list[str]) -> torch.Tensor:
        self.seen += len(entries)
        values = [float(len(one)) if isinstance(one, str) else one.float().mean() for one in entries]
        return torch.tensor(values)[:, None].half()


def model_of(image: Frozen, text: Frozen) -> LocalizingModel:
    model = build_model(tiny.recipe())
    model.image_encoder, model.text_encoder = image, text  # type: ignore[assignment]
    return model


def pixels(*values: int) -> torch.Tensor:
    return torch.stack([torch.full((3, 4, 4), value, dtype=torch.uint8) for value in values])


def test_what_was_seen_is_not_computed_again() -> None:
    memory = FeatureMemory()
    for number in range(2):
        image, text = Frozen("image"), Frozen("text")
        model = model_of(image, text)
        memory.attach(model)
        found = model.image_encoder.frozen_features(pixels(1, 2, 1))
        assert found.flatten().tolist() == [1, 2, 1]
        found = model.image_encoder.frozen_features(pixels(3, 2, 9, 1))
        assert found.flatten().tolist() == [3, 2, 9, 1]
        assert model.text_encoder.frozen_features(["a", "ab", ""]).flatten().tolist() == [1, 2, 0]
        assert (image.seen, text.seen) == ((5, 3) if number == 0 else (0, 0))


def test_another_encoder_has_features_of_its_own() -> None:
    memory = FeatureMemory()
    for name in ("one", "other"):
        image = Frozen(name)
        model = model_of(image, Frozen("text"))
        memory.attach(model)
        model.image_encoder.frozen_features(pixels(1))
        assert image.seen == 1


def test_without_room_everything_is_computed() -> None:
    memory = FeatureMemory(max_bytes=2)
    image = Frozen("image")
    model = model_of(image, Frozen("text"))
    memory.attach(model)
    for _ in range(2):
        assert model.image_encoder.frozen_features(pixels(5, 6)).flatten().tolist() == [5, 6]
    assert image.seen == 3


def test_encoders_that_train_are_left_alone() -> None:
    model = build_model(tiny.recipe())
    before = model.image_encoder.frozen_features
    FeatureMemory().attach(model)
    assert model.image_encoder.frozen_features == before
