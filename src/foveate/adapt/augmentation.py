"""How training images of a classifier vary from epoch to epoch."""

from __future__ import annotations

from pydantic import Field

from foveate.core.recipes import Settings
from foveate.training.augment import RandomViews
from foveate.vision.colors import RandomColors


class Augmentation(Settings):
    """Random views and colors; as it is, none.

    The public code of "Fine-Tuning is Fine, if Calibrated" trains Office-Home with crop 0.7, flip 0.5, color 0.3 and
    now and then a gray image.
    """

    crop: float = Field(
        default=1.0, gt=0, le=1, description="smallest area of a random crop, as a share of the image; 1 = no crops"
    )
    flip: float = Field(default=0.0, ge=0, le=1, description="probability of mirroring left to right")
    color: float = Field(
        default=0.0, ge=0, le=0.5, description="largest change of brightness, contrast, saturation and hue"
    )
    gray: float = Field(default=0.0, ge=0, le=1, description="probability of an image without colors")

    @property
    def views(self) -> RandomViews | None:
        """Crops and mirroring, or None where there are none."""
        if self.crop == 1 and self.flip == 0:
            return None
        return RandomViews(scale=(self.crop, 1.0), flip=self.flip)

    @property
    def colors(self) -> RandomColors | None:
        """Changes of color, or None where there are none."""
        return RandomColors(self.color, self.gray) if self.color or self.gray else None
