"""Connectors: from an image encoder's tokens to a language model's. A kind is a class in the table CONNECTORS."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from foveate.core.errors import UserError, choose
from foveate.core.recipes import Settings, validate
from foveate.vision.layers import layer_norm
from foveate.vision.registry import seeded


class Connector(nn.Module, ABC):
    """Map the tokens of a view [B, L, D] to those that the language model reads [B, T, E].

    Attributes:
        in_width: D. out_width: E. grid: rows and columns, L = rows x columns. num_tokens: T.
    """

    Options: type[Settings] = Settings

    def __init__(self, *, in_width: int, out_width: int, grid: tuple[int, int], num_tokens: int) -> None:
        super().__init__()
        self.in_width, self.out_width, self.grid, self.num_tokens = in_width, out_width, grid, num_tokens

    def check_tokens(self, tokens_BLD: Tensor) -> None:
        """Raise UserError unless the tokens are of this grid and width."""
        rows, columns = self.grid
        expected = (rows * columns, self.in_width)
        if tokens_BLD.dim() != 3 or tokens_BLD.shape[1:] != expected:
            raise UserError(
                f"tokens: shape {tuple(tokens_BLD.shape)} does not fit the connector; expected [B, {expected[0]}, "
                f"{expected[1]}], the {rows} x {columns} patches of a view without class tokens"
            )

    @abstractmethod
    def forward(self, tokens_BLD: Tensor) -> Tensor:
        """Map tokens, row by row and without class tokens, to [B, T, E]; the input is left as it is."""


# One linear layer of each token, as in the first LLaVA (arXiv 2304.08485, section 4.1).


class LinearConnector(Connector):
    """One token for each patch."""

    def __init__(self, options: Settings, *, in_width: int, out_width: int, grid: tuple[int, int]) -> None:
        super().__init__(in_width=in_width, out_width=out_width, grid=grid, num_tokens=grid[0] * grid[1])
        self.linear = nn.Linear(in_width, out_width)

    def forward(self, tokens_BLD: Tensor) -> Tensor:
        self.check_tokens(tokens_BLD)
        return self.linear(tokens_BLD)


# MLP of each token, LLaVA's `mlp2x_gelu`; the names are those of transformers' `LlavaMultiModalProjector`.


class MlpOptions(Settings):
    """Options of the MLP connector."""

    bias: bool = Field(default=True, description="biases in both linear layers")


class MlpConnector(Connector):
    """Linear, exact GELU, linear; one token for each patch.

    Source: LLaVA-1.5 (arXiv 2310.03744, section 3.3).
    """

    Options = MlpOptions

    def __init__(self, options: MlpOptions, *, in_width: int, out_width: int, grid: tuple[int, int]) -> None:
        super().__init__(in_width=in_width, out_width=out_width, grid=grid, num_tokens=grid[0] * grid[1])
        self.linear_1 = nn.Linear(in_width, out_width, bias=options.bias)
        self.linear_2 = nn.Linear(out_width, out_width, bias=options.bias)

    def forward(self, tokens_BLD: Tensor) -> Tensor:
        self.check_tokens(tokens_BLD)
        return self.linear_2(F.gelu(self.linear_1(tokens_BLD)))


# Pixel shuffle: patches of a square side by side in one wide token, then a linear layer.
#
# The names and the order inside a token are those of transformers' `Idefics3Connector`.


class PixelShuffleOptions(Settings):
    """Options of pixel shuffle."""

    factor: int = Field(default=2, ge=1, description="side of the square of patches that becomes one token")


class _Projection(nn.Module):
    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_width, out_width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class PixelShuffleConnector(Connector):
    """One token for each square of `factor` x `factor` patches; a linear layer without bias.

    Source: Idefics3 (arXiv 2408.12637, section 3.1).
    """

    Options = PixelShuffleOptions

    def __init__(self, options: PixelShuffleOptions, *, in_width: int, out_width: int, grid: tuple[int, int]) -> None:
        rows, columns = grid
        factor = options.factor
        if rows % factor or columns % factor:
            raise UserError(
                f"factor: must divide the grid of {rows} x {columns} patches (got {factor}); expected a common divisor"
            )
        num_tokens = rows * columns // factor**2
        super().__init__(in_width=in_width, out_width=out_width, grid=grid, num_tokens=num_tokens)
        self.factor = factor
        self.modality_projection = _Projection(in_width * factor**2, out_width)

    def forward(self, tokens_BLD: Tensor) -> Tensor:
        self.check_tokens(tokens_BLD)
        (rows, columns), factor = self.grid, self.factor
        x = tokens_BLD.view(len(tokens_BLD), rows // factor, factor, columns // factor, factor, self.in_width)
        # Inside a token: row by row of the square, as Idefics3's two reshapes leave them.
        return self.modality_projection(x.transpose(2, 3).reshape(len(x), self.num_tokens, -1))


# Connector `pooled`: blocks and an MLP on the full grid, then adaptive average pooling.
#
# The C-Abstractor pools before its MLP, so that its tokens are the only ones that lie in the language model's space.
# Here every patch lies there, and a visual token is the mean of its patches: regions, maps of phrases and boxes read
# the full grid while the decoder reads a few tokens. A deviation from MM1.5; the study `mllm` compares the two.


class PooledOptions(Settings):
    """Options of the pooled connector."""

    side: int = Field(default=7, ge=1, description="rows and columns after pooling")
    depth: int = Field(default=1, ge=0, description="blocks before the MLP")


class _DepthwiseBlock(nn.Module):
    """A residual block: pointwise, depthwise 3 x 3 and pointwise convolutions, channels last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, width, bias=False)
        self.ln1 = nn.LayerNorm(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.ln2 = nn.LayerNorm(width)
        self.fc2 = nn.Linear(width, width, bias=False)
        self.ln3 = nn.LayerNorm(width)

    def forward(self, x_BHWD: Tensor) -> Tensor:
        y = F.silu(layer_norm(self.fc1(x_BHWD), self.ln1))
        y = self.depthwise(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        y = self.fc2(F.silu(layer_norm(y, self.ln2)))
        return F.silu(x_BHWD + layer_norm(y, self.ln3))


class PooledConnector(Connector):
    """Map the tokens of a grid to the language model's space, then pool them to side x side."""

    Options = PooledOptions

    def __init__(self, options: PooledOptions, *, in_width: int, out_width: int, grid: tuple[int, int]) -> None:
        # Adaptive pooling to more cells than the grid has would repeat tokens without an error.
        if options.side > min(grid):
            raise UserError(
                f"connector 'pooled': side is larger than the grid (got {options.side}); expected at most {min(grid)}"
            )
        super().__init__(in_width=in_width, out_width=out_width, grid=grid, num_tokens=options.side**2)
        self.side = options.side
        self.blocks = nn.ModuleList(_DepthwiseBlock(in_width) for _ in range(options.depth))
        self.fc1 = nn.Linear(in_width, out_width)
        self.fc2 = nn.Linear(out_width, out_width)
        self.norm = nn.LayerNorm(out_width)

    def full(self, tokens_BLD: Tensor) -> Tensor:
        """Map tokens [B, L, D] to [B, L, E], without pooling."""
        self.check_tokens(tokens_BLD)
        x_BHWD = tokens_BLD.unflatten(1, self.grid)
        for block in self.blocks:
            x_BHWD = block(x_BHWD)
        return layer_norm(self.fc2(F.silu(self.fc1(x_BHWD))), self.norm).flatten(1, 2)

    def pool(self, full_BLE: Tensor) -> Tensor:
        """Pool tokens [B, L, E] of the full grid to [B, T, E], row by row."""
        map_BEHW = full_BLE.transpose(1, 2).unflatten(2, self.grid)
        return F.adaptive_avg_pool2d(map_BEHW, self.side).flatten(2).transpose(1, 2)

    def forward(self, tokens_BLD: Tensor) -> Tensor:
        """Map the tokens of views [B, L, D] to [B, T, E]."""
        return self.pool(self.full(tokens_BLD))


# C-Abstractor: convolutions, adaptive pooling and an MLP, with Honeybee's names in the state dict.
#
# Source: Honeybee (arXiv 2312.06742, section 3.2); kakaobrain/honeybee, projectors.py at 68a8d84.


class CAbstractorOptions(Settings):
    """Options of the C-Abstractor; the defaults are Honeybee's."""

    num_tokens: int = Field(default=144, ge=1, description="tokens of a view: a square, of the grid it is pooled to")
    hidden_width: int = Field(default=1024, ge=4, description="width of the convolutions")
    depth: int = Field(default=3, ge=0, description="convolution blocks before, and again after, the pooling")
    mlp_depth: int = Field(default=2, ge=1, description="linear layers of the MLP behind the convolutions")
    position_embedding: bool = Field(default=True, description="add a learned embedding of the position to each token")
    pre_norm: bool = Field(default=False, description="normalize the encoder's tokens first")
    num_eos_tokens: int = Field(default=0, ge=0, description="learned tokens behind those of the view")


class _ConvNorm(nn.Module):
    """Convolution without bias, then LayerNorm over channels, on [B, H, W, C].

    Channels stay last in memory from block to block, so that the permutations cost nothing and the norm reads whole
    rows; [B, C, H, W] in memory took 1.2 times as long.
    """

    def __init__(self, in_width: int, width: int, *, depthwise: bool = False) -> None:
        super().__init__()
        side, groups = (3, width) if depthwise else (1, 1)
        self.conv = nn.Conv2d(in_width, width, side, padding=side // 2, groups=groups, bias=False)
        # timm's norm-with-activation class has 1e-5; its LayerNorm2d alone has 1e-6.
        self.bn = nn.LayerNorm(width, eps=1e-5)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        x_BHWC = self.conv(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return layer_norm(x_BHWC, self.bn)


class _SqueezeExcite(nn.Module):
    def __init__(self, width: int, reduced: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, reduced, 1)
        self.fc2 = nn.Conv2d(reduced, width, 1)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        # Convolutions only for the names and shapes of Honeybee's weights; on one vector they are matrix products.
        hidden = F.silu(F.linear(x_BHWC.mean((1, 2)), self.fc1.weight.flatten(1), self.fc1.bias))
        gate_BC = F.linear(hidden, self.fc2.weight.flatten(1), self.fc2.bias).sigmoid()
        return x_BHWC * gate_BC[:, None, None]


class _Bottleneck(nn.Module):
    """RegNet's bottleneck with a depthwise convolution: SiLU(body(x) + shortcut(x))."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.conv1 = _ConvNorm(in_width, width)
        self.conv2 = _ConvNorm(width, width, depthwise=True)
        # A quarter of the block's input width, not of its own: in the first block they differ.
        self.se = _SqueezeExcite(width, round(0.25 * in_width))
        self.conv3 = _ConvNorm(width, width)
        self.downsample = _ConvNorm(in_width, width) if in_width != width else None

    def forward(self, x_BHWC: Tensor) -> Tensor:
        body = F.silu(self.conv2(F.silu(self.conv1(x_BHWC))))
        body = self.conv3(self.se(body))
        shortcut = x_BHWC if self.downsample is None else self.downsample(x_BHWC)
        return F.silu(body + shortcut)


class _RegNetStage(nn.Module):
    def __init__(self, in_width: int, width: int, depth: int) -> None:
        super().__init__()
        for number in range(depth):
            # Counted from 1, as in timm's RegStage, whose names Honeybee's weights use.
            self.add_module(f"b{number + 1}", _Bottleneck(in_width if number == 0 else width, width))

    def forward(self, x_BHWC: Tensor) -> Tensor:
        for block in self.children():
            x_BHWC = block(x_BHWC)
        return x_BHWC


class _AdaptivePool(nn.Module):
    """Mean over windows floor(i n / q) to ceil((i + 1) n / q); they overlap where q does not divide n."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x_BHWC.permute(0, 3, 1, 2), self.side).permute(0, 2, 3, 1)


def resize_positions(positions_1LD: Tensor, *, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Resize a grid of position embeddings: bicubic, corners not aligned, not antialiased.

    Args:
        positions_1LD: one vector per cell of `grid` (rows, columns), row by row.
    """
    map_1DHW = positions_1LD.unflatten(1, grid).permute(0, 3, 1, 2)
    resized = F.interpolate(map_1DHW, size=new_grid, mode="bicubic", align_corners=False)
    return resized.flatten(2).transpose(1, 2).contiguous()


class CAbstractor(Connector):
    """Positions, convolutions, pooling to q x q tokens, convolutions, MLP (see the module)."""

    Options = CAbstractorOptions

    def __init__(self, options: CAbstractorOptions, *, in_width: int, out_width: int, grid: tuple[int, int]) -> None:
        side = math.isqrt(options.num_tokens)
        if side * side != options.num_tokens:
            raise UserError(
                f"num_tokens: must be a square, as tokens are pooled to a square grid (got {options.num_tokens}); "
                f"expected {side**2} or {(side + 1) ** 2}"
            )
        num_tokens = options.num_tokens + options.num_eos_tokens
        super().__init__(in_width=in_width, out_width=out_width, grid=grid, num_tokens=num_tokens)
        # Without blocks, the MLP reads the encoder's own width.
        hidden = options.hidden_width if options.depth else in_width
        self.prenorm = nn.LayerNorm(in_width, eps=1e-6) if options.pre_norm else None
        self.pos_emb = self._learned(grid[0] * grid[1], in_width) if options.position_embedding else None
        self.eos_tokens = self._learned(options.num_eos_tokens, out_width) if options.num_eos_tokens else None
        pool = _AdaptivePool(side)
        if options.depth:
            first, second = _RegNetStage(in_width, hidden, options.depth), _RegNetStage(hidden, hidden, options.depth)
            self.net = nn.Sequential(first, pool, second)
        else:
            self.net = pool
        layers: list[nn.Module] = [nn.Linear(hidden, out_width)]
        for _ in range(options.mlp_depth - 1):
            layers += [nn.SiLU(), nn.Linear(out_width, out_width)]
        self.readout = nn.Sequential(*layers)

    @staticmethod
    def _learned(count: int, width: int) -> nn.Parameter:
        return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, count, width), std=0.02))

    def resize_grid(self, grid: tuple[int, int]) -> None:
        """Read another grid from now on, as after a change of resolution between stages of a training."""
        if self.pos_emb is not None:
            resized = resize_positions(self.pos_emb.detach(), grid=self.grid, new_grid=grid)
            self.pos_emb = nn.Parameter(resized, requires_grad=self.pos_emb.requires_grad)
        self.grid = grid

    def forward(self, tokens_BLD: Tensor) -> Tensor:
        """Map tokens to [B, T, E], those of the pooled grid row by row, then the eos tokens."""
        self.check_tokens(tokens_BLD)
        x_BLD = tokens_BLD if self.prenorm is None else self.prenorm(tokens_BLD)
        if self.pos_emb is not None:
            # Not in place, as Honeybee does it: the caller's tokens may be cached features.
            x_BLD = x_BLD + self.pos_emb
        tokens_BTE = self.readout(self.net(x_BLD.unflatten(1, self.grid)).flatten(1, 2))
        if self.eos_tokens is None:
            return tokens_BTE
        eos_BTE = self.eos_tokens.to(tokens_BTE.dtype).expand(len(tokens_BTE), -1, -1)
        return torch.cat([tokens_BTE, eos_BTE], dim=1)


CONNECTORS: Mapping[str, Any] = {
    "linear": LinearConnector,
    "mlp": MlpConnector,
    "pixel_shuffle": PixelShuffleConnector,
    "pooled": PooledConnector,
    "cabstractor": CAbstractor,
}


def connector_kinds() -> list[str]:
    """List the kinds of connectors."""
    return sorted(CONNECTORS)


def build_connector(
    kind: str, options: Mapping[str, Any], *, in_width: int, out_width: int, grid: tuple[int, int], seed: int = 0
) -> Connector:
    """Build an untrained connector.

    Args:
        kind: one of `connector_kinds()`.
        options: fields of the kind's `Options`.
        in_width: D, of the encoder's tokens. out_width: E, of the language model's embeddings.
        grid: rows and columns of the encoder's tokens of one view.

    Raises:
        UserError: unknown kind or option, a wrong value, or a grid that the kind cannot divide.
    """
    builder = CONNECTORS[choose(kind, connector_kinds(), "connector")]
    checked = validate(builder.Options, dict(options), where=f"connector '{kind}'")
    with seeded(seed):
        return builder(checked, in_width=in_width, out_width=out_width, grid=grid)
