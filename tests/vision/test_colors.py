"""Random colors: a function of seed, epoch and key; torchvision's ColorJitter by hand; gray; bad settings."""

from __future__ import annotations

import numpy as np
import torch
from torchvision.transforms import functional as change

from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.training.transforms import RandomColors
from naming import raises_naming


def image() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8))


def test_colors_are_a_function_of_seed_epoch_and_key() -> None:
    colors = RandomColors(0.3)
    drawn = [colors.apply(image(), seed=s, epoch=v, key=k) for s, v, k in ((0, 0, "a"), (1, 0, "a"), (0, 1, "a"))]
    assert torch.equal(drawn[0], colors.apply(image(), seed=0, epoch=0, key="a"))
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], colors.apply(image(), seed=0, epoch=0, key="b"))
    assert {one.dtype for one in drawn} == {torch.uint8}


def test_each_change_is_torchvisions_in_the_drawn_order() -> None:
    generator = seeds.generator("colours", 3, 1, "x")
    order = generator.permutation(4).tolist()
    brightness, contrast, saturation = generator.uniform(0.8, 1.2, 3).tolist()
    hue = float(generator.uniform(-0.2, 0.2))
    expected = image()
    for number in order:
        if number == 0:
            expected = change.adjust_brightness(expected, brightness)
        elif number == 1:
            expected = change.adjust_contrast(expected, contrast)
        elif number == 2:
            expected = change.adjust_saturation(expected, saturation)
        else:
            expected = change.adjust_hue(expected, hue)
    assert torch.equal(RandomColors(0.2).apply(image(), seed=3, epoch=1, key="x"), expected)


def test_gray_has_its_probability_and_nothing_changes_without_strength() -> None:
    made = [RandomColors(gray=0.25).apply(image(), seed=0, epoch=0, key=str(number)) for number in range(400)]
    gray = [bool((one[0] == one[1]).all() and (one[1] == one[2]).all()) for one in made]
    assert 0.15 < np.mean(gray) < 0.35
    assert all(torch.equal(one, image()) for one, is_gray in zip(made, gray, strict=True) if not is_gray)


def test_bad_settings() -> None:
    with raises_naming(UserError, "0", "0.5"):
        RandomColors(0.6)
    with raises_naming(UserError, "gray"):
        RandomColors(0.1, gray=1.5)
