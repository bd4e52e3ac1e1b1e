from __future__ import annotations

import numpy as np
import pytest

from foveate.core.errors import UserError
from foveate.training.augment import RandomViews, names_a_side

SIZE = {"width": 300, "height": 200}


def draw(views: RandomViews, number: int, **changes: object):
    return views.draw(**(SIZE | {"seed": 0, "epoch": 0, "key": f"image-{number}"} | changes))


def test_a_view_is_a_function_of_seed_epoch_and_key() -> None:
    views = RandomViews()
    assert draw(views, 1) == draw(views, 1)
    assert len({draw(views, 1, epoch=epoch) for epoch in range(5)} | {draw(views, 1, seed=7), draw(views, 2)}) == 7


def test_crops_keep_to_scale_and_ratio() -> None:
    views = RandomViews(scale=(0.3, 0.8), ratio=(0.5, 2.0))
    crops = [draw(views, number).crop for number in range(300)]
    areas = np.array([crop.area for crop in crops if crop is not None])
    ratios = np.array([crop.width * 300 / (crop.height * 200) for crop in crops if crop is not None])
    assert len(areas) > 290
    assert areas.min() >= 0.3 - 1e-9
    assert areas.max() <= 0.8 + 1e-9
    assert ratios.min() >= 0.5 - 1e-9
    assert ratios.max() <= 2 + 1e-9
    assert np.ptp(areas) > 0.4


def test_no_crop_and_no_flip_when_not_wanted() -> None:
    assert all(draw(RandomViews(scale=(1, 1)), number).crop is None for number in range(20))
    assert not any(draw(RandomViews(flip=0), number).flip for number in range(50))


def test_flips_have_the_given_probability_and_spare_texts_that_name_a_side() -> None:
    views = RandomViews(flip=0.5)
    flips = np.mean([draw(views, number).flip for number in range(1000)])
    assert abs(flips - 0.5) < 4 * 0.5 / np.sqrt(1000)
    assert not any(draw(views, number, texts=["a cat", "the dog on the LEFT"]).flip for number in range(100))
    assert not any(draw(views, number, may_flip=False).flip for number in range(100))


def test_the_crop_does_not_depend_on_the_texts() -> None:
    views = RandomViews()
    assert draw(views, 5).crop == draw(views, 5, texts=["left"]).crop


@pytest.mark.parametrize(
    "text",
    [
        "cup left of the plate",
        "the rightmost tree",
        "Right-hand drive",
        "a left-facing duck",
        "leftward arrow",
    ],
)
def test_sides_are_found(text: str) -> None:
    assert names_a_side([text])


@pytest.mark.parametrize("text", ["a bright light", "leftover food", "copyright sign", "", "cleft", "a feast"])
def test_other_words_are_not(text: str) -> None:
    assert not names_a_side([text])


@pytest.mark.parametrize("options", [{"scale": (0, 1)}, {"scale": (0.5, 1.1)}, {"ratio": (2, 1)}, {"flip": 1.5}])
def test_bounds_are_checked(options: dict[str, object]) -> None:
    with pytest.raises(UserError):
        RandomViews(**options)
