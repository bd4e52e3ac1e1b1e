"""Random transforms of torchvision, drawn by a generator for each sample instead of torch's global state.

The transforms of `torchvision.transforms.v2` take no generator. They run inside `_GeneratorMode`, which gives one to
every random function that they call: the loader's threads draw at the same time, and a resumed run must draw the same
again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from foveate.core import seeds
from foveate.core.errors import UserError

# Every random function of torch that takes `generator`; torchvision's transforms and torch.distributions call these.
_RANDOM = frozenset(
    "rand randn randint randperm normal bernoulli multinomial poisson uniform_ normal_ random_ bernoulli_ exponential_ "
    "log_normal_ cauchy_ geometric_ _sample_dirichlet _standard_gamma binomial".split()
)


class _GeneratorMode(TorchFunctionMode):
    """Pass a generator to torch's random functions that this thread calls in a `with` block."""

    def __init__(self, *parts: object) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seeds.integer(*parts))

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if getattr(func, "__name__", "") in _RANDOM:
            options.setdefault("generator", self.generator)
        return func(*args, **options)


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


class RandomTransforms:
    """RandAugment (two operations of one magnitude) and random erasing, of uint8 pixels.

    Args:
        randaugment: magnitude in 0..30 of both operations; 0 = no RandAugment.
        erasing: probability of erasing a rectangle, 2% to 33% of the image, to black.

    Source: Cubuk et al. 2019, arXiv 1909.13719; Zhong et al. 2017, arXiv 1708.04896; both as in torchvision.
    """

    def __init__(self, randaugment: int = 0, erasing: float = 0.0) -> None:
        from torchvision.transforms import v2

        self._transforms: list[Callable[[Tensor], Tensor]] = []
        if randaugment:
            self._transforms.append(v2.RandAugment(magnitude=randaugment))
        if erasing:
            # Last, as in training recipes of torchvision: what is erased must not be moved or colored again.
            self._transforms.append(v2.RandomErasing(p=erasing))

    def apply(self, pixels_3HW: Tensor, *, seed: int, epoch: int, key: str) -> Tensor:
        """Transform uint8 pixels: a pure function of pixels, seed, epoch and key."""
        with _GeneratorMode("transforms", seed, epoch, key):
            for transform in self._transforms:
                pixels_3HW = transform(pixels_3HW)
        return pixels_3HW


def mix_batch(
    inputs: Tensor, labels_B: Tensor, *, alpha: float, num_classes: int, draw: tuple[object, ...]
) -> tuple[Tensor, Tensor]:
    """Mix each sample of a batch with the one before it; a pure function of the batch and `draw`.

    Args:
        inputs: [B, ...], uint8 pixels or floating-point values.
        labels_B: class numbers.
        alpha: of the Beta(alpha, alpha) distribution that the share is drawn from.
        draw: seeds of the share.

    Returns:
        Mixed inputs of the same type, and soft targets [B, K] float32.

    Source: Zhang et al. 2017, arXiv 1710.09412, as in torchvision.
    """
    from torchvision.transforms import v2

    # Reshape to images: torchvision's class refuses other numbers of dimensions.
    values = inputs.float().flatten(1)[:, None, None]
    with _GeneratorMode("mixup", *draw):
        mixed, targets_BK = v2.MixUp(alpha=alpha, num_classes=num_classes)(values, labels_B)
    mixed = mixed.reshape(inputs.shape)
    # Normalization is affine, so that mixing before it is mixing after it, but for this rounding.
    return mixed.to(inputs.dtype) if inputs.is_floating_point() else mixed.round().to(inputs.dtype), targets_BK.float()
