"""Random changes of a picture's colours, drawn by a generator of each sample's own."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from foveate.settings import seeds
from foveate.settings.errors import UserError


@dataclass(frozen=True)
class RandomColours:
    """Brightness, contrast, saturation and hue in random order, as torchvision's ColorJitter; then, at times, grey.

    Attributes:
        strength: s in [0, 0.5]: factors of the first three are drawn from [1 - s, 1 + s], the turn of the hue from
            [-s, s] of a full turn.
        grey: probability of a picture without colours, in [0, 1].
    """

    strength: float = 0.0
    grey: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 0.5:
            raise UserError(f"strength of colours {self.strength}: allowed are numbers from 0 to 0.5")
        if not 0 <= self.grey <= 1:
            raise UserError(f"grey {self.grey}: a probability lies in [0, 1]")

    def apply(self, pixels_3HW: Tensor, *, seed: int, visit: int, key: str) -> Tensor:
        """uint8 pixels to uint8 pixels of one visit: a pure function of these, seed, visit and key."""
        from torchvision.transforms import functional as change

        generator = seeds.generator("colours", seed, visit, key)
        order = generator.permutation(4).tolist()
        low, high = 1 - self.strength, 1 + self.strength
        amounts = [*generator.uniform(low, high, 3).tolist(), float(generator.uniform(-self.strength, self.strength))]
        made_grey = generator.random() < self.grey
        if self.strength > 0:
            kinds = (change.adjust_brightness, change.adjust_contrast, change.adjust_saturation, change.adjust_hue)
            for number in order:
                pixels_3HW = kinds[number](pixels_3HW, amounts[number])
        return change.rgb_to_grayscale(pixels_3HW, num_output_channels=3) if made_grey else pixels_3HW
