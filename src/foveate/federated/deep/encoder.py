"""The network that clients train: any encoder, and a head to unit vectors; its samples, its weights as one vector."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import normalize

from foveate.core.errors import UserError
from foveate.federated.deep.options import DeepOptions, image_shape
from foveate.vision.registry import seeded

WIDTH, HIDDEN = 128, 256


class Embedder(nn.Module):
    """Encoder, then a head of two layers to `width` numbers, scaled to length 1.

    Args:
        encoder: a module from a batch to [B, inner]; None for data that are features already.
        inner: width of the encoder's output.
        hidden: width of the head's hidden layer.
    """

    def __init__(self, encoder: nn.Module | None, inner: int, *, hidden: int = HIDDEN, width: int = WIDTH) -> None:
        super().__init__()
        self.encoder = encoder if encoder is not None else nn.Identity()
        self.head = nn.Sequential(nn.Linear(inner, hidden), nn.ReLU(), nn.Linear(hidden, width))

    @property
    def has_encoder(self) -> bool:
        """Whether there is anything before the head."""
        return not isinstance(self.encoder, nn.Identity)

    def features(self, batch: Tensor) -> Tensor:
        """Output of the encoder [B, inner], which probes are trained on."""
        return self.encoder(batch).flatten(1)

    def forward(self, batch: Tensor) -> Tensor:
        return normalize(self.head(self.features(batch)), dim=1)


class _Block(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            # No bias: batch normalization subtracts the mean right after it.
            nn.Conv2d(inner, outer, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outer),
            nn.ReLU(),
            nn.Conv2d(outer, outer, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outer),
        )
        # A convolution also where shapes agree: one form of block for every width and stride.
        self.skip = nn.Conv2d(inner, outer, 1, stride, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        return torch.relu(self.path(maps) + self.skip(maps))


def small_resnet(channels: int, widths: Sequence[int] = (16, 32, 64)) -> nn.Sequential:
    """Build a ResNet for small images [B, channels, H, W]; its output is the mean over positions, [B, widths[-1]].

    One block for each width; each but the first halves the side.

    Example:
        >>> small_resnet(1)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 64])
    """
    blocks: list[nn.Module] = [
        nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False),
        nn.BatchNorm2d(widths[0]),
        nn.ReLU(),
    ]
    inner = widths[0]
    for number, outer in enumerate(widths):
        blocks.append(_Block(inner, outer, 1 if number == 0 else 2))
        inner = outer
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class _Patches(nn.Module):
    """Patch embedding with learned positions."""

    def __init__(self, channels: int, side: int, patch: int, width: int) -> None:
        super().__init__()
        # A convolution whose stride is its size: each patch is projected by itself.
        self.cut = nn.Conv2d(channels, width, patch, patch)
        # Positions begin with a standard deviation of 0.02, as in BERT and ViT.
        self.positions = nn.Parameter(0.02 * torch.randn(1, (side // patch) ** 2, width))

    def forward(self, images: Tensor) -> Tensor:
        # [B, width, rows, columns] to [B, L, width].
        return self.cut(images).flatten(2).transpose(1, 2) + self.positions


class _Middle(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.mean(1)


def small_vit(
    channels: int, side: int, *, patch: int | None = None, width: int = 64, depth: int = 2, heads: int = 4
) -> nn.Sequential:
    """Build a vision transformer for small images [B, channels, side, side]; its output is the mean token, [B, width].

    Args:
        patch: side of a patch; a quarter of the image's by default.

    Raises:
        UserError: a patch that does not divide the side.
    """
    size = patch if patch is not None else max(1, side // 4)
    if size < 1 or side % size:
        raise UserError(f"patch {size} must divide the image side (got {side})")
    layers = [
        nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        for _ in range(depth)
    ]
    return nn.Sequential(_Patches(channels, side, size, width), *layers, nn.LayerNorm(width), _Middle())


def _build_resnet(channels: int, height: int, width: int) -> nn.Module:
    return small_resnet(channels)


def _build_vit(channels: int, height: int, width: int) -> nn.Module:
    if height != width:
        raise UserError(f"small_vit needs square images (got {height} x {width})")
    return small_vit(channels, height)


ENCODERS: dict[str, Callable[[int, int, int], nn.Module]] = {"small_resnet": _build_resnet, "small_vit": _build_vit}
"""Encoders of images by their name in the options: from channels, height and width to a module."""


def build_embedder(
    encoder: nn.Module | None, sample: Tensor, *, seed: int, hidden: int = HIDDEN, width: int = WIDTH
) -> Embedder:
    """Build an encoder (copied) with a head that fits it; the head's initial weights depend on the seed.

    Args:
        sample: a batch of one, from which the encoder's width is read.

    Raises:
        UserError: images without an encoder.
    """
    if encoder is None and sample.ndim != 2:
        raise UserError("images need an encoder: pass one, such as small_resnet(channels)")
    # Only the head is drawn here; a given encoder keeps its weights.
    with seeded(seed):
        copied = copy.deepcopy(encoder)
        inner = sample.shape[1]
        if copied is not None:
            copied.eval()  # or the sample would change the statistics of batch normalization
            with torch.no_grad():
                inner = copied(sample).flatten(1).shape[1]
        return Embedder(copied, inner, hidden=hidden, width=width)


def _floating_tensors(network: nn.Module) -> list[Tensor]:
    """Parameters and floating-point buffers, batch statistics among them, in the order of the state."""
    return [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]


def flatten_weights(network: nn.Module) -> NDArray[np.float32]:
    """Return all floating-point values of a network's state as one vector [P].

    Batch statistics are averaged like weights; integer counters cannot be, and nothing depends on them.
    """
    return torch.cat([tensor.detach().reshape(-1).float().cpu() for tensor in _floating_tensors(network)]).numpy()


def set_weights(network: nn.Module, weights_P: NDArray[np.floating]) -> None:
    """Load the vector of `flatten_weights` into a network of the same architecture.

    Raises:
        UserError: another length.
    """
    tensors = _floating_tensors(network)
    size = sum(tensor.numel() for tensor in tensors)
    if weights_P.shape != (size,):
        raise UserError(
            f"array 'weights' must have {size:,} values, the weights of the network (got {weights_P.size:,})"
        )
    start = 0
    with torch.no_grad():
        for tensor in tensors:
            part = np.array(weights_P[start : start + tensor.numel()])  # a copy: messages are read-only
            tensor.copy_(torch.from_numpy(part).reshape(tensor.shape))
            start += tensor.numel()


def prepare_samples(points_ND: NDArray[Any], options: DeepOptions) -> Tensor:
    """Convert rows to the form that the encoder reads: features [N, D], or images [N, C, H, W]; float32.

    Raises:
        UserError: rows that are not images of the given shape, or values beyond float32.
    """
    # float64 values that float32 cannot hold would silently become infinite.
    if not float(np.abs(points_ND).max(initial=0)) <= float(np.finfo(np.float32).max):
        raise UserError("points have NaN, infinite or huge values")
    rows = torch.from_numpy(np.ascontiguousarray(points_ND, dtype=np.float32))
    return rows.reshape(-1, *image_shape(options, points_ND.shape[1])) if options.reads_images else rows


def build_network(options: DeepOptions, features: int) -> Embedder:
    """Build the network of a run before training; its initial weights depend on the seed.

    Raises:
        UserError: an encoder that cannot read rows of so many values.
    """
    sample = prepare_samples(np.zeros((1, features)), options)
    # torch modules draw their initial weights from the global generator, which is restored afterwards.
    with seeded(options.seed):
        encoder = ENCODERS[options.encoder](*sample.shape[1:]) if options.reads_images else None
    return build_embedder(encoder, sample, seed=options.seed, hidden=options.hidden, width=options.width)
