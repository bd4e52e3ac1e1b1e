"""How training pictures of a classifier vary from visit to visit."""

from __future__ import annotations

from pydantic import Field

from foveate.settings.recipes import Settings
from foveate.training.augment import RandomViews
from foveate.vision.colours import RandomColours


class Augmentation(Settings):
    """Random views and colours; as it is, none.

    The public code of "Fine-Tuning is Fine, if Calibrated" trains Office-Home with crop 0.7, flip 0.5, colour 0.3 and
    now and then a grey picture.
    """

    crop: float = Field(
        default=1.0, gt=0, le=1, description="smallest area of a random crop, as a share of the picture; 1 = no crops"
    )
    flip: float = Field(default=0.0, ge=0, le=1, description="probability of mirroring left to right")
    colour: float = Field(
        default=0.0, ge=0, le=0.5, description="largest change of brightness, contrast, saturation and hue"
    )
    grey: float = Field(default=0.0, ge=0, le=1, description="probability of a picture without colours")

    @property
    def views(self) -> RandomViews | None:
        """Crops and mirroring, or None where there are none."""
        if self.crop == 1 and self.flip == 0:
            return None
        return RandomViews(scale=(self.crop, 1.0), flip=self.flip)

    @property
    def colours(self) -> RandomColours | None:
        """Changes of colour, or None where there are none."""
        return RandomColours(self.colour, self.grey) if self.colour or self.grey else None
