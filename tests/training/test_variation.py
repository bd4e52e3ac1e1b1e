"""Variation of labeled images: torchvision's transforms by seed, mixup, label smoothing, balanced classes, resume."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveate.core.runs import RunFolder
from foveate.training import loop
from foveate.training.classification import (
    ClassificationDataset,
    ClassificationTask,
    LabeledImages,
    array_images,
    training_loader,
)
from foveate.training.distributed import start
from foveate.training.epochs import Augmentation, ClassificationSettings
from foveate.training.settings import TrainingSettings
from foveate.training.transforms import RandomTransforms, mix_batch

PIXELS = torch.randint(0, 256, (3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def unequal(counts: tuple[int, ...] = (48, 8, 4)) -> LabeledImages:
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(len(counts)), counts)
    return array_images(4 * np.eye(3)[labels] + random.standard_normal((len(labels), 3)), labels, name="unequal")


@pytest.mark.parametrize("options", [{"randaugment": 9}, {"erasing": 1.0}, {"randaugment": 20, "erasing": 0.5}])
def test_transforms_are_pure_functions_in_every_thread(options: dict[str, float]) -> None:
    transforms = RandomTransforms(**options)  # type: ignore[arg-type]

    def draw(number: int) -> torch.Tensor:
        return transforms.apply(PIXELS, seed=number % 3, epoch=number, key="a")

    state = torch.get_rng_state()
    expected = [draw(number) for number in range(24)]
    assert torch.equal(torch.get_rng_state(), state), "nothing is drawn from the global state"
    torch.manual_seed(1)
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(draw, range(24)))
    assert all(torch.equal(*pair) for pair in zip(expected, outputs, strict=True))
    assert all(output.dtype == torch.uint8 and output.shape == PIXELS.shape for output in outputs)
    assert len({output.numpy().tobytes() for output in outputs}) > 12, "epochs differ"
    keys = [transforms.apply(PIXELS, seed=0, epoch=0, key=str(number)).numpy().tobytes() for number in range(12)]
    assert len(set(keys)) > 6, "images differ"


def test_mixed_samples_have_soft_targets() -> None:
    inputs, labels = torch.rand(6, 3, 4, 4), torch.tensor([0, 1, 2, 0, 1, 1])
    mixed, targets = mix_batch(inputs, labels, alpha=0.4, num_classes=3, draw=(0, 5, 1))
    again, _ = mix_batch(inputs, labels, alpha=0.4, num_classes=3, draw=(0, 5, 1))
    assert torch.equal(mixed, again)
    # Row 1 is of class 1, mixed with row 0 of class 0: its target gives the share away.
    share = float(targets[1, 1])
    assert 0 < share < 1
    one_hot = F.one_hot(labels, 3).float()
    assert torch.allclose(targets, share * one_hot + (1 - share) * one_hot.roll(1, 0))
    assert torch.allclose(mixed, share * inputs + (1 - share) * inputs.roll(1, 0), atol=1e-6)
    shares = [float(mix_batch(inputs, labels, alpha=1.0, num_classes=3, draw=(0, 5, n))[1][1, 1]) for n in range(200)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.1), "uniform for alpha 1"
    assert np.std(shares) == pytest.approx(12**-0.5, abs=0.04)
    pixels = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    bytes_mixed, targets = mix_batch(pixels, torch.tensor([0, 1, 0, 1]), alpha=1.0, num_classes=2, draw=(3,))
    share = float(targets[1, 1])
    exact = share * pixels.float() + (1 - share) * pixels.float().roll(1, 0)
    assert bytes_mixed.dtype == torch.uint8
    assert (bytes_mixed.float() - exact).abs().max() <= 0.5 + 1e-3


def test_losses_are_those_of_torch() -> None:
    model, plain = nn.Linear(3, 3), ClassificationDataset(unequal())
    batch = plain.collate([plain.sample(row, 0, 0) for row in (0, 50)])
    logits = model(batch["inputs"])
    for smoothing in (0.0, 0.1):
        loss = ClassificationTask(model, label_smoothing=smoothing).losses(batch)[0]["loss"]
        assert torch.equal(loss, nn.CrossEntropyLoss(label_smoothing=smoothing)(logits, batch["labels"]))
    dataset = ClassificationDataset(unequal(), mixup=0.5)
    mixed = dataset.collate([dataset.sample(row, 0, 0) for row in (0, 50)])
    assert mixed["labels"].shape == (2, 3)
    losses, report = ClassificationTask(model).losses(mixed)
    by_hand = -(mixed["labels"] * model(mixed["inputs"]).log_softmax(1)).sum(1).mean()
    assert torch.allclose(losses["loss"], by_hand)
    assert 0 <= float(report["accuracy"]) <= 1


@pytest.mark.parametrize("workers", [0, 2])
def test_balanced_classes_are_drawn_equally_often(workers: int) -> None:
    images = unequal()
    settings = TrainingSettings(steps=30, batch_size=12, learning_rate=0.1, workers=workers)
    counts = {}
    for balanced in (False, True):
        loader = training_loader(images, images.labeled_rows(), settings, balanced=balanced)
        batches = list(loader.batches(0, 30))
        counts[balanced] = torch.cat([batch["labels"] for batch in batches]).bincount().tolist()
        assert len(batches[0]["labels"]) == 12
        if balanced:
            drawn = [key for batch in batches for key in batch["keys"]]
            # Every image of the small class equally often, up to its last pass.
            per_image = [drawn.count(key) for key in images.keys[56:]]
            assert max(per_image) - min(per_image) <= 1
    assert counts[False] == [288, 48, 24]
    assert max(counts[True]) - min(counts[True]) <= 2
    assert sum(counts[True]) == 360


def test_a_stopped_training_with_variation_resumes_exactly(tmp_path: Path) -> None:
    def train(folder: Path, steps: int) -> nn.Module:
        images, model = unequal(), nn.Linear(3, 3)
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        declared = ClassificationSettings(
            steps=12, batch_size=10, learning_rate=0.1, workers=2, mixup=0.3, label_smoothing=0.1, balanced=True,
            optimizer="sgd", checkpoint_every=4,
        )  # fmt: skip
        settings = declared.resolve(60)
        task = ClassificationTask(model, label_smoothing=declared.label_smoothing)
        loader = training_loader(
            images, images.labeled_rows(), settings, mixup=declared.mixup, balanced=declared.balanced
        )
        if steps < 12:
            batches = loader.batches

            def interrupted(first: int, last: int):  # type: ignore[no-untyped-def]
                yield from batches(first, min(last, steps))
                raise KeyboardInterrupt

            loader.batches = interrupted  # type: ignore[method-assign]
        with start("cpu"):
            loop.train(task, loader, settings, RunFolder.create(folder))
        return model

    whole = train(tmp_path / "whole", 12)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "resumed", 6)
    assert list((tmp_path / "resumed" / "checkpoints").iterdir())
    resumed = train(tmp_path / "resumed", 12)
    assert torch.equal(whole.weight, resumed.weight)  # type: ignore[arg-type]
    assert not torch.equal(whole.weight, torch.zeros(3, 3))  # type: ignore[arg-type]


def test_what_varies_is_not_cached() -> None:
    assert not ClassificationSettings(label_smoothing=0.1, balanced=True).varies_images
    assert ClassificationSettings(mixup=0.2).varies_images
    values = {"crop": 0.5, "flip": 0.5, "color": 0.2, "gray": 0.1, "randaugment": 9, "erasing": 1}
    assert set(values) == set(Augmentation.model_fields)
    for name, value in values.items():
        assert ClassificationSettings(augmentation=Augmentation.model_validate({name: value})).varies_images
