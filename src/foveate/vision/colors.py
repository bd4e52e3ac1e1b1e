"""Color jitter, drawn by a generator for each sample."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from foveate.core import seeds
from foveate.core.errors import UserError


@dataclass(frozen=True)
class RandomColors:
    """Brightness, contrast, saturation and hue in random order, as torchvision's ColorJitter; then, at times, gray.

    Attributes:
        strength: s in [0, 0.5]: factors of the first three are drawn from [1 - s, 1 + s], the turn of the hue from
            [-s, s] of a full turn.
        gray: probability of an image without colors, in [0, 1].
    """

    strength: float = 0.0
    gray: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 0.5:
            raise UserError(f"strength of colors: out of range (got {self.strength}); expected 0 to 0.5")
        if not 0 <= self.gray <= 1:
            raise UserError(f"gray: not a probability (got {self.gray}); expected a number in [0, 1]")

    def apply(self, pixels_3HW: Tensor, *, seed: int, epoch: int, key: str) -> Tensor:
        """Jitter the colors of uint8 pixels: a pure function of pixels, seed, epoch and key."""
        from torchvision.transforms import functional as change

        # The label of the stream keeps its spelling: another one would change every draw.
        generator = seeds.generator("colours", seed, epoch, key)
        order = generator.permutation(4).tolist()
        low, high = 1 - self.strength, 1 + self.strength
        amounts = [*generator.uniform(low, high, 3).tolist(), float(generator.uniform(-self.strength, self.strength))]
        is_gray = generator.random() < self.gray
        if self.strength > 0:
            kinds = (change.adjust_brightness, change.adjust_contrast, change.adjust_saturation, change.adjust_hue)
            for number in order:
                pixels_3HW = kinds[number](pixels_3HW, amounts[number])
        return change.rgb_to_grayscale(pixels_3HW, num_output_channels=3) if is_gray else pixels_3HW
