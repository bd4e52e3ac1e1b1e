"""Image encoder on a frozen EfficientNet-Lite0: two cached feature maps, then a small trainable head.

The frozen part gives maps at strides 16 and 32 (one thread of an AMD EPYC at 224 px, processor time: 7 ms an image in
bfloat16, 13 ms in float32; `python -m benchmarks.lite0` compares it with onnxruntime). They are kept packed in one
flat float16 vector an image, the coarse map at its own resolution: 75 KB at 224 px. The trainable part projects both
maps, adds them on the fine grid and runs 0 or more transformer layers.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from foveate.core.devices import PRECISIONS, fast_precision, precision_of
from foveate.core.errors import UserError, choose
from foveate.core.files import sha256_file
from foveate.core.paths import DATA
from foveate.vision.encoder import ImageEncoder, ImageFeatures, check_layer
from foveate.vision.layers import TransformerLayer, as_computed, encode_points, layer_norm, patch_centers
from foveate.vision.preprocess import Preprocess

# EfficientNet-Lite0 for inference only: every batch norm folded into its convolution, outputs at strides 16 and 32.
#
# The last convolution (320 to 1280 channels) is left out: on 353 emoji drawn by two hands the 320 channels find the
# same concept as often (R@1 .64 against .62) at a quarter of the size.
#
# Architecture: EfficientNet (arXiv 1905.11946) in its Lite form: no squeeze-and-excitation, ReLU6, TensorFlow's "same"
# padding. Weights: ImageNet-1k, Apache-2.0 (data/NOTICE-lite0.md).


WEIGHTS = DATA / "lite0.safetensors"
FILE_SHA256 = "a184f6fca1ce84f459481f85ac9624ea0ad0725c5c866559300c0cd3452c0671"
# Hash of the authors' checkpoint, whose numbers these are; it names caches of features.
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
STRIDE_16_CHANNELS = 112
STRIDE_32_CHANNELS = 320
HEAD_CHANNELS, CLASSES = 1280, 1000  # of the classifier, which only `ClassHead` has
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
_SIDE = 224  # of the input that oneDNN's memory layout is chosen for
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
        # A closure and no tensor: `copy.deepcopy` of a model shares it, and could not copy oneDNN's layout.
        self.fused: Callable[[Tensor, bool], Tensor] | None = None

    def forward(self, x: Tensor, *, relu6: bool = False) -> Tensor:
        """Convolve, with min(max(x, 0), 6) after it where `relu6`."""
        if self.fused is not None:
            return self.fused(x, relu6)
        if self.padding is not None:
            x = F.pad(x, self.padding)
        x = self.convolution(x)
        return F.relu6(x, inplace=True) if relu6 else x

    def fuse(self, side: int) -> int:
        """Convolve by oneDNN's fused operator from now on, with weights laid out once; return the output's side.

        Args:
            side: of the input, for which oneDNN chooses its layout; other sides give the same numbers.
        """
        layer = self.convolution
        before, after = self.padding[:2] if self.padding is not None else (layer.kernel_size[0] // 2,) * 2
        # The operator pads both sides alike, and a pass that pads before it costs a seventh of the network's time:
        # zeros in front of the kernel take the odd pixel instead.
        weight = F.pad(layer.weight.detach(), (after - before, 0) * 2)
        sizes = ((after, after), layer.stride, layer.dilation, layer.groups)
        shape = (split_size(weight), layer.in_channels, side, side)
        # Each call would lay out the weights anew: a fifth of the network's time in batches of 8.
        weight, bias = torch.ops.mkldnn._reorder_convolution_weight(weight, *sizes, shape), layer.bias

        def run(x: Tensor, relu6: bool) -> Tensor:
            # The fused operator has no ReLU6; hardtanh from 0 to 6 is the same function.
            activation = ("hardtanh", [0.0, 6.0]) if relu6 else ("none", [])
            return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *sizes, *activation, "")

        self.fused = run
        return side // layer.stride[0]

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> _Convolution:
        # `to` and its like change the weights, of which the fused operator has a copy.
        self.fused = None
        return super()._apply(fn, recurse)


class _InvertedBottleneck(nn.Module):
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
            blocks.append(_InvertedBottleneck(kernel, stride, expansion, inputs, outputs))
            blocks += [_InvertedBottleneck(kernel, 1, expansion, outputs, outputs) for _ in range(repeats - 1)]
        self.blocks = nn.ModuleList(blocks)

    def forward(self, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Return maps at stride 16 [B, 112, H/16, W/16] and stride 32 [B, 320, H/32, W/32]."""
        x = stride_16 = self.run_to_stride_16(pixels_B3HW)
        for block in self.blocks[_LAST_STRIDE_16_BLOCK + 1 :]:
            x = block(x)
        return stride_16, x

    def run_to_stride_16(self, pixels_B3HW: Tensor) -> Tensor:
        """Return the map at stride 16 alone."""
        x = self.stem(pixels_B3HW, relu6=True)
        for block in self.blocks[: _LAST_STRIDE_16_BLOCK + 1]:
            x = block(x)
        return x

    def fuse(self) -> Lite0:
        """Fuse paddings and activations into the convolutions where this build of torch can (oneDNN on a processor).

        The same numbers but for the order of sums, in 2/3 of the time. Not for networks that are exported, and after
        `to`, which undoes it.
        """
        if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_convolution_weight"):
            return self
        # The fused operator raises where the processor lacks AVX-512; the plain convolution has a slower path there.
        if self.stem.convolution.weight.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return self
        # Not in a caller's inference mode, whose tensors other threads could not use outside of it.
        with torch.inference_mode(False), torch.no_grad():
            side = self.stem.fuse(_SIDE)
            for module in self.blocks.modules():
                # In the order of the forward pass, as each block lists them.
                if isinstance(module, _Convolution):
                    side = module.fuse(side)
        return self


def split_size(x: Tensor, dtype: torch.dtype | None = None) -> int:
    """Return how many images of 224 pixels pass through the network at once, on a tensor's device and in its dtype."""
    if x.device.type != "cpu":
        return 256
    # Maps that stay in the cache of a core: measured on a busy machine, 2 images take 13 ms each in float32 and 8 take
    # 16; in bfloat16 8 take 6.7 ms each and 2 take 7.8, because calls of the kernels count for more.
    return 2 if (dtype or x.dtype) == torch.float32 else 8


def read_state() -> dict[str, Tensor]:
    """Read the tensors of the authors' checkpoint in the order of its layers, batch norms and classifier included.

    Raises:
        UserError: the shipped file is missing or damaged.
    """
    if not WEIGHTS.is_file() or (digest := sha256_file(WEIGHTS)) != FILE_SHA256:
        found = f"sha256 {digest}" if WEIGHTS.is_file() else "no file"
        raise UserError(f"{WEIGHTS}: the weights of 'lite0' are not those that ship (got {found}); reinstall foveate")
    with safe_open(WEIGHTS, "pt") as file:
        # The file sorts tensors by name; networks of other libraries take them layer by layer.
        return {name: file.get_tensor(name) for name in json.loads(file.metadata()["layers"])}


def load_lite0() -> Lite0:
    """Load the network with the shipped ImageNet weights, in eval mode, without gradients, `channels_last`.

    Raises:
        UserError: see `read_state`.
    """
    state, network = read_state(), Lite0()
    with torch.no_grad():
        _fold(state, "_conv_stem", "_bn0", network.stem)
        for index, block in enumerate(network.blocks):
            assert isinstance(block, _InvertedBottleneck)
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


class ClassHead(nn.Module):
    """ImageNet's classifier behind `Lite0`: the last convolution at each location, and classes of pooled features.

    Pooling stands between the two parts, so the classifier can also be applied to a single location (class activation
    maps, arXiv 1512.04150) or to the mean of some.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convolution = _Convolution(STRIDE_32_CHANNELS, HEAD_CHANNELS, 1)
        self.classifier = nn.Linear(HEAD_CHANNELS, CLASSES)

    def features(self, coarse_BCHW: Tensor) -> Tensor:
        """Return the features [B, 1280, h, w] of the network's map at stride 32."""
        return self.convolution(coarse_BCHW, relu6=True)

    def forward(self, features_RD: Tensor) -> Tensor:
        """Return probabilities [R, 1000] of pooled features [R, 1280], in float32."""
        return self.classifier(features_RD.float()).softmax(dim=-1)


def load_class_head() -> ClassHead:
    """Load the classifier with the shipped ImageNet weights, in eval mode, without gradients.

    Raises:
        UserError: see `read_state`.
    """
    state, head = read_state(), ClassHead()
    with torch.no_grad():
        _fold(state, "_conv_head", "_bn1", head.convolution)
        head.classifier.weight.copy_(state["_fc.weight"])
        head.classifier.bias.copy_(state["_fc.bias"])
    return head.requires_grad_(False).eval()


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


POSITIONS = ("learned", "sincos", "none")
POOLS = ("mean", "attention")
_LOADING = threading.Lock()  # several threads may ask for the first features


def packed_length(grid: tuple[int, int]) -> int:
    """Return the length of an image's packed features, from the rows and columns of its stride-16 grid."""
    rows, columns = grid
    return rows * columns * STRIDE_16_CHANNELS + (rows // 2) * (columns // 2) * STRIDE_32_CHANNELS


def pack_maps(fine_BCHW: Tensor, coarse_BCHW: Tensor) -> Tensor:
    """Pack both maps into one flat float16 vector an image, position by position, channels last.

    The channels of each position are scaled to zero mean and unit variance: a LayerNorm without weights, whose affine
    part is in the projection that follows.
    """
    # Scaled before they are cut to 16 bits: raw activations span more than float16 resolves.
    flat = []
    for part in (fine_BCHW, coarse_BCHW):
        part_BHWC = part.permute(0, 2, 3, 1).float()
        flat.append(F.layer_norm(part_BHWC, part_BHWC.shape[-1:]).to(torch.float16).flatten(1))
    return torch.cat(flat, dim=1)


def unpack_maps(packed_BF: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Unpack features into views [B, rows, columns, 112] and [B, rows / 2, columns / 2, 320]."""
    rows, columns = grid
    if packed_BF.shape[-1] != packed_length(grid):
        raise UserError(
            f"features: they do not fit the grid {rows} x {columns} (got length {packed_BF.shape[-1]}); expected "
            f"{packed_length(grid)}, the same image size as when they were computed"
        )
    fine = rows * columns * STRIDE_16_CHANNELS
    return (
        packed_BF[:, :fine].view(-1, rows, columns, STRIDE_16_CHANNELS),
        packed_BF[:, fine:].view(-1, rows // 2, columns // 2, STRIDE_32_CHANNELS),
    )


def bilinear_matrix(grid: tuple[int, int]) -> Tensor:
    """Build the matrix [rows x columns, rows / 2 x columns / 2] that doubles a flattened map bilinearly."""
    rows, columns = grid
    coarse = (rows // 2) * (columns // 2)
    if torch.empty(0).device.type == "meta":
        # Only the shape counts there, and torch imports sympy and its compiler, 1.5 s, to interpolate on this device.
        return torch.empty(rows * columns, coarse)
    # Read off from the unit maps, so that it is exactly what `interpolate` does, edges included.
    units = torch.eye(coarse).view(1, coarse, rows // 2, columns // 2)
    return F.interpolate(units, size=grid, mode="bilinear", align_corners=False).view(coarse, -1).T.contiguous()


class _SumWithPositions(torch.autograd.Function):
    """`torch.baddbmm(x, upsampling, coarse) + position`, with positions added in place.

    Autograd's own sum would write [B, L, D] once more, and take the gradient of the positions by a reduction over the
    batch.
    """

    @staticmethod
    def forward(ctx: Any, x_BLD: Tensor, upsampling_BLC: Tensor, coarse_BCD: Tensor, position_LD: Tensor) -> Tensor:
        ctx.save_for_backward(upsampling_BLC)
        return torch.baddbmm(x_BLD, upsampling_BLC, coarse_BCD).add_(position_LD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BLD: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (upsampling_BLC,) = ctx.saved_tensors
        grad_coarse = upsampling_BLC.transpose(1, 2) @ grad_BLD if ctx.needs_input_grad[2] else None
        grad_position = None
        if ctx.needs_input_grad[3]:
            # As a product of rank 1: the reduction takes ten times as long.
            ones_1B = grad_BLD.new_ones(1, len(grad_BLD))
            grad_position = (ones_1B @ grad_BLD.flatten(1)).view(grad_BLD.shape[1:])
        return grad_BLD if ctx.needs_input_grad[0] else None, None, grad_coarse, grad_position


class Lite0Encoder(ImageEncoder):
    """Frozen EfficientNet-Lite0, linear projections of two strides, `layers` transformer layers, final norm.

    The frozen network is no submodule: it is loaded at first use, is not trained, saved or sharded, and its checksum is
    part of `fingerprint()`. With `train_last_stages` it ends at stride 16, and the blocks behind are a submodule.

    Args:
        width: D of the tokens. embed_dim: E.
        image_size: side of the input in pixels, a multiple of 32; the grid has image_size / 16 rows and columns.
        layers: transformer layers after the projection; 0 is the cheapest.
        heads: of these layers; 0 takes width / 64, at least 1.
        position: "learned", "sincos" or "none", added to the tokens before the layers.
        pool: "mean" over tokens, or "attention" with one learned query; then a bias-free projection to E.
        geometry: of the input, see `Preprocess`.
        precision: of the frozen part: "auto" (bfloat16 where the hardware has it), "bfloat16" or "float32".
        train_last_stages: train the last two stages of the network, 5 of its 16 blocks, which make the map of stride
            32. Their batch norms stay folded: a batch of 16 images has no statistics worth following.
    """

    def __init__(
        self,
        *,
        width: int = 192,
        embed_dim: int = 192,
        image_size: int = 224,
        layers: int = 0,
        heads: int = 0,
        position: str = "learned",
        pool: str = "mean",
        geometry: str = "letterbox",
        precision: str = "auto",
        train_last_stages: bool = False,
    ) -> None:
        if image_size < 32 or image_size % 32:
            raise UserError(f"image_size of 'lite0': not a multiple of 32 (got {image_size})")
        side = image_size // 16
        half = (0.5, 0.5, 0.5)  # pixels in [-1, 1], as the network was trained on
        super().__init__(
            width=width,
            embed_dim=embed_dim,
            grid=(side, side),
            preprocess=Preprocess(size=image_size, mean=half, std=half, geometry=geometry),
        )
        self.position = choose(position, POSITIONS, "position of 'lite0'")
        self.pool = choose(pool, POOLS, "pool of 'lite0'")
        self.precision = choose(precision, PRECISIONS, "precision of 'lite0'")
        self.partly_trained = train_last_stages
        self.feature_shape = (side * side * STRIDE_16_CHANNELS if train_last_stages else packed_length(self.grid),)
        self.feature_dtype = torch.float16
        self._frozen: list[Lite0] = []  # in a list, so that nn.Module does not register it
        self.fine_in = nn.Linear(STRIDE_16_CHANNELS, width)
        self.coarse_in = nn.Linear(STRIDE_32_CHANNELS, width, bias=False)
        self.register_buffer("upsampling_LC", bilinear_matrix(self.grid), persistent=False)
        if self.position == "learned":
            # The same numbers as 0.02 * randn, and `check_header` can skip them.
            self.position_LD = nn.Parameter(nn.init.normal_(torch.empty(side * side, width), std=0.02))
        elif self.position == "sincos":
            self.register_buffer("position_LD", encode_points(patch_centers(self.grid), width=width))
        # By default 64 numbers a head, as in ViTs.
        self.layers = nn.ModuleList(TransformerLayer(width, heads=heads or max(1, width // 64)) for _ in range(layers))
        self.final_ln = nn.LayerNorm(width)
        self.pool_query_D = nn.Parameter(0.02 * torch.randn(width)) if self.pool == "attention" else None
        self.proj = nn.Linear(width, embed_dim, bias=False)
        self.last_stages: nn.Sequential | None = None
        if train_last_stages:
            self.last_stages = nn.Sequential(*load_lite0().blocks[_LAST_STRIDE_16_BLOCK + 1 :]).requires_grad_(True)

    def fingerprint(self) -> str:
        """Name weights, input size, normalization and precision of cached features."""
        # "packed2" is the version of `pack_maps`: raise it when the packed numbers change.
        dtype = str(self._precision(torch.device("cpu"))).removeprefix("torch.")
        content = "stride16" if self.partly_trained else "packed2"
        return f"lite0-{WEIGHTS_SHA256[:8]}-{self.preprocess.size_name}-{dtype}-{content}"

    def _precision(self, device: torch.device) -> torch.dtype:
        return precision_of(self.precision, device)

    def _network(self, device: torch.device, dtype: torch.dtype) -> Lite0:
        with _LOADING:
            parameter = next(self._frozen[0].parameters()) if self._frozen else None
            if parameter is None or parameter.device != device or parameter.dtype != dtype:
                network = load_lite0().to(device=device, dtype=dtype)
                # The fused kernels belong to oneDNN, which refuses bfloat16 on processors with AVX2 alone.
                fusible = device.type == "cpu" and dtype in (torch.float32, fast_precision(device))
                self._frozen[:] = [network.fuse() if fusible else network]
            return self._frozen[0]

    @torch.no_grad()
    def frozen_features(self, pixels_B3HW: Tensor) -> Tensor:
        """Compute packed features [B, F] in float16 of pixels (uint8, or normalized to [-1, 1]).

        With `train_last_stages` they are the map at stride 16 as it is, which the trained blocks read.
        """
        dtype = self._precision(pixels_B3HW.device)
        network = self._network(pixels_B3HW.device, dtype)
        packed = []
        for block in pixels_B3HW.split(split_size(pixels_B3HW, dtype)):
            # Without autocast, which has another precision and on CPUs cannot join float16 tensors.
            with torch.autocast(device_type=block.device.type, enabled=False):
                x = self.normalized(block).to(dtype=dtype, memory_format=torch.channels_last)
                packed.append(self.pack_features(network, x))
        if not packed:
            return pixels_B3HW.new_zeros((0, *self.feature_shape), dtype=torch.float16)
        with torch.autocast(device_type=pixels_B3HW.device.type, enabled=False):
            return torch.cat(packed)

    def pack_features(self, network: Lite0, x_B3HW: Tensor) -> Tensor:
        """Run the frozen part of `network` on normalized pixels; return packed features [B, F]."""
        if self.last_stages is None:
            return pack_maps(*network(x_B3HW))
        return network.run_to_stride_16(x_B3HW).permute(0, 2, 3, 1).to(torch.float16).flatten(1)

    def forward(self, features: Tensor) -> ImageFeatures:
        """Encode packed features [B, F], or pixels [B, 3, H, W], for which the frozen part runs first."""
        if features.dim() == 4:
            features = self.frozen_features(features)
        features = as_computed(features)
        if not torch.is_autocast_enabled(features.device.type):
            features = features.to(self.proj.weight.dtype)
        # Whole, because a product with a strided view sums in another order where its weights are frozen.
        fine, coarse = (part.contiguous() for part in self._maps(features))
        x_BLD = self.fine_in(fine).flatten(1, 2)
        # Projection and upsampling are both linear: projecting the coarse map first costs a quarter.
        coarse_BCD = self.coarse_in(coarse).flatten(1, 2)
        # Not len(), which would write the size of the batch into an exported graph.
        upsampling_BLC = self.upsampling_LC.to(x_BLD.dtype).expand(x_BLD.shape[0], -1, -1)
        if self.position == "none":
            x_BLD = torch.baddbmm(x_BLD, upsampling_BLC, coarse_BCD)
        elif self.training:
            x_BLD = _SumWithPositions.apply(x_BLD, upsampling_BLC, coarse_BCD, self.position_LD.to(x_BLD.dtype))
        else:
            x_BLD = torch.baddbmm(x_BLD, upsampling_BLC, coarse_BCD) + self.position_LD.to(x_BLD.dtype)
        for layer in self.layers:
            x_BLD = layer(x_BLD)
        tokens_BLD = layer_norm(x_BLD, self.final_ln)
        return ImageFeatures(tokens_BLD, self.grid, self.proj(self._pooled(tokens_BLD)))

    def _maps(self, features_BF: Tensor) -> tuple[Tensor, Tensor]:
        """Return both maps [B, rows, columns, channels] of frozen features, their channels normalized."""
        if self.last_stages is None:
            return unpack_maps(features_BF, self.grid)
        fine_BHWC = features_BF.to(self.proj.weight.dtype).view(-1, *self.grid, STRIDE_16_CHANNELS)
        coarse_BHWC = self.last_stages(fine_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        # As `pack_maps` has them, so that blocks which were not trained yet give the frozen network's vectors.
        return F.layer_norm(fine_BHWC, (STRIDE_16_CHANNELS,)), F.layer_norm(coarse_BHWC, (STRIDE_32_CHANNELS,))

    @property
    def vector_width(self) -> int:
        """Channels of both maps of the network."""
        return STRIDE_16_CHANNELS + STRIDE_32_CHANNELS

    def unnamed_weights(self) -> Mapping[str, Tensor]:
        """Return those of the trained blocks: all other weights behind the vectors are frozen."""
        return {} if self.last_stages is None else self.last_stages.state_dict()

    def image_vectors(self, features: Tensor) -> Tensor:
        """Return the means of both maps over positions: the layers behind them start untrained."""
        packed = features if features.dim() == 2 else self.frozen_features(features)
        return torch.cat([part.flatten(1, 2).float().mean(1) for part in self._maps(packed)], dim=1)

    def hidden_features(
        self, pixels_B3HW: Tensor, *, layer: int = -2, norm: bool = False, prefix: bool = False
    ) -> ImageFeatures:
        """Return a map of the frozen network: -1 has stride 32 and 320 channels, -2 stride 16 and 112 channels.

        See `ImageEncoder.hidden_features`.
        """
        if norm or prefix:
            raise UserError(
                "'lite0': norm and prefix need a transformer, this is a convolutional network; leave them out"
            )
        index = check_layer(layer, 2, kind="lite0")
        dtype = self._precision(pixels_B3HW.device)
        network = self._network(pixels_B3HW.device, dtype)
        with torch.no_grad(), torch.autocast(device_type=pixels_B3HW.device.type, enabled=False):
            x = self.normalized(pixels_B3HW).to(dtype=dtype, memory_format=torch.channels_last)
            if self.last_stages is not None and index == 1:
                # In the precision of the trained weights, not in that of the frozen part.
                return ImageFeatures.from_map(self.last_stages(network.run_to_stride_16(x).float()))
            return ImageFeatures.from_map(network(x)[index].float())

    def project(self, pooled_RD: Tensor) -> Tensor:
        """Project pooled tokens [R, D] to [R, E]."""
        return self.proj(pooled_RD)

    def _pooled(self, tokens_BLD: Tensor) -> Tensor:
        if self.pool_query_D is None:
            if not self.training:
                return tokens_BLD.mean(dim=1)
            # The same as a product, whose gradient is written in one go.
            share = tokens_BLD.new_full((1, 1, tokens_BLD.shape[1]), 1 / tokens_BLD.shape[1])
            return torch.bmm(share.expand(len(tokens_BLD), -1, -1), tokens_BLD).squeeze(1)
        scores_BL = (tokens_BLD @ self.pool_query_D) / self.width**0.5
        return torch.einsum("bl,bld->bd", scores_BL.softmax(dim=1), tokens_BLD)


IMAGE_ENCODER = Lite0Encoder
