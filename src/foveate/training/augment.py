"""Augmentation: random crops and mirroring, drawn by a generator for each sample; boxes move with the view."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.records.boxes import Box
from foveate.records.geometry import View
from foveate.training.classification import LabeledImages, LoadSample
from foveate.training.epochs import Augmentation
from foveate.training.transforms import RandomColors, RandomTransforms

# Draws before the whole image is used; as many as torchvision's RandomResizedCrop makes.
_ATTEMPTS = 10
DIRECTION_WORDS = re.compile(
    r"\b(?:(?:left|right)(?:most|wards?|hand|handed|side)?|(?:anti|counter)?clockwise|(?:east|west)(?:ern|wards?)?)\b",
    re.IGNORECASE,
)


def names_a_side(texts: Iterable[str]) -> bool:
    """Return whether a text names left or right (or east, west, clockwise), so mirroring would falsify it.

    English only. It errs on the side of not mirroring: "the right answer" counts.
    """
    return any(DIRECTION_WORDS.search(text) for text in texts)


@dataclass(frozen=True)
class RandomViews:
    """Random crop by area and aspect ratio (Szegedy et al. 2015, section 6), then a random mirroring.

    Attributes:
        scale: smallest and largest area of the crop as a share of the image, in (0, 1].
        ratio: smallest and largest width over height of the crop in pixels, drawn log-uniformly.
        flip: probability of mirroring left to right, in [0, 1]; texts that name a side are never mirrored.
    """

    scale: tuple[float, float] = (0.4, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise UserError(f"scale: out of range (got {self.scale}); expected 0 < smallest <= largest <= 1")
        low, high = self.ratio
        if not (0 < low <= high and math.isfinite(high)):
            raise UserError(f"ratio: out of range (got {self.ratio}); expected 0 < smallest <= largest")
        if not 0 <= self.flip <= 1:
            raise UserError(f"flip: not a probability (got {self.flip}); expected a number in [0, 1]")

    def draw(
        self,
        *,
        width: int,
        height: int,
        seed: int,
        epoch: int,
        key: str,
        texts: Iterable[str] = (),
        may_flip: bool = True,
    ) -> View:
        """Draw the view of an epoch: a pure function of seed, epoch, key, the image's size and its texts.

        Args:
            width, height: of the image in pixels, after EXIF rotation.
            texts: captions and phrases that go with the image.
            may_flip: False for an image whose content has a reading direction, such as rendered words.
        """
        generator = seeds.generator("view", seed, epoch, key)
        # Drawn always, used only where allowed: a caption that is edited must not shift the crops of its image.
        flip = bool(generator.random() < self.flip) and may_flip and not names_a_side(texts)
        if self.scale == (1.0, 1.0):
            return View(crop=None, flip=flip)
        for _ in range(_ATTEMPTS):
            area = generator.uniform(*self.scale) * width * height
            # Log-uniform, so that a shape and its transpose are equally likely.
            ratio = math.exp(generator.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            crop_width, crop_height = math.sqrt(area * ratio), math.sqrt(area / ratio)
            left, top = generator.random(2)
            if crop_width <= width and crop_height <= height:
                # Fractions, so that the crop holds at whatever size the image is decoded.
                share_x, share_y = crop_width / width, crop_height / height
                x1, y1 = left * (1 - share_x), top * (1 - share_y)
                return View(crop=Box(x1, y1, min(1.0, x1 + share_x), min(1.0, y1 + share_y)), flip=flip)
        return View(crop=None, flip=flip)


def augment_images(images: LabeledImages, augmentation: Augmentation) -> LoadSample | None:
    """Return a loader of varied images, drawn by seed, epoch and key; None where nothing varies.

    Raises:
        UserError: the samples are arrays of values, to which image augmentation does not apply.
    """
    if augmentation == Augmentation():
        return None
    if images.size is None:
        raise UserError(f"{images.name}: augmentation is for images; arrays of values are taken as they are")
    size, crop, flip = images.size, augmentation.crop, augmentation.flip
    views = RandomViews(scale=(crop, 1.0), flip=flip) if crop < 1 or flip else None
    colors = RandomColors(augmentation.color, augmentation.gray) if augmentation.color or augmentation.gray else None
    transforms = None
    if augmentation.randaugment or augmentation.erasing:
        transforms = RandomTransforms(augmentation.randaugment, augmentation.erasing)

    # Depends on seed, epoch and key only, so a resumed run sees the same images with any number of threads.
    def load(row: int, epoch: int, seed: int) -> Tensor:
        key, view = images.keys[row], View()
        if views is not None:
            width, height = size(row)
            view = views.draw(width=width, height=height, seed=seed, epoch=epoch, key=key)
        pixels = images.load(row, view)
        if colors is not None:
            pixels = colors.apply(pixels, seed=seed, epoch=epoch, key=key)
        return pixels if transforms is None else transforms.apply(pixels, seed=seed, epoch=epoch, key=key)

    return load
