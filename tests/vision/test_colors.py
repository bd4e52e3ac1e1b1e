"""Random colours: a function of seed, visit and key; torchvision's ColorJitter by hand; grey; bad settings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as change

from foveate.settings import seeds
from foveate.settings.errors import UserError
from foveate.vision.colours import RandomColours


def picture() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8))


def test_colours_are_a_function_of_seed_visit_and_key() -> None:
    colours = RandomColours(0.3)
    drawn = [colours.apply(picture(), seed=s, visit=v, key=k) for s, v, k in ((0, 0, "a"), (1, 0, "a"), (0, 1, "a"))]
    assert torch.equal(drawn[0], colours.apply(picture(), seed=0, visit=0, key="a"))
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], colours.apply(picture(), seed=0, visit=0, key="b"))
    assert {one.dtype for one in drawn} == {torch.uint8}


def test_each_change_is_torchvisions_in_the_drawn_order() -> None:
    generator = seeds.generator("colours", 3, 1, "x")
    order = generator.permutation(4).tolist()
    brightness, contrast, saturation = generator.uniform(0.8, 1.2, 3).tolist()
    hue = float(generator.uniform(-0.2, 0.2))
    expected = picture()
    for number in order:
        if number == 0:
            expected = change.adjust_brightness(expected, brightness)
        elif number == 1:
            expected = change.adjust_contrast(expected, contrast)
        elif number == 2:
            expected = change.adjust_saturation(expected, saturation)
        else:
            expected = change.adjust_hue(expected, hue)
    assert torch.equal(RandomColours(0.2).apply(picture(), seed=3, visit=1, key="x"), expected)


def test_grey_has_its_probability_and_nothing_changes_without_strength() -> None:
    made = [RandomColours(grey=0.25).apply(picture(), seed=0, visit=0, key=str(number)) for number in range(400)]
    grey = [bool((one[0] == one[1]).all() and (one[1] == one[2]).all()) for one in made]
    assert 0.15 < np.mean(grey) < 0.35
    assert all(torch.equal(one, picture()) for one, is_grey in zip(made, grey, strict=True) if not is_grey)


def test_bad_settings() -> None:
    with pytest.raises(UserError, match=r"allowed are numbers from 0 to 0\.5"):
        RandomColours(0.6)
    with pytest.raises(UserError, match="a probability"):
        RandomColours(0.1, grey=1.5)
