"""Sparse layers: experts in place of the MLP of every second layer, two for each token, and the router's losses.

Of MM1.5 (arXiv 2409.20566) and AXLearn (mixture_of_experts.py, Top2Gating). By default every token gets both of its
experts; with a capacity, what an expert cannot take is dropped, and the residual carries the token.
Parameters have the names of transformers' `MixtralSparseMoeBlock`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.language.settings import SparseOptions


class Routing(NamedTuple):
    """Experts and gates of T tokens.

    Attributes:
        experts_T2: the most probable expert and the next one; of equal ones the lower index.
        gates_T2: their probabilities over the sum of both; 0 where capacity drops a pair.
        probabilities_TE: softmax of the router's logits.
    """

    experts_T2: Tensor
    gates_T2: Tensor
    probabilities_TE: Tensor


def route_top2(logits_TE: Tensor) -> Routing:
    """Choose two experts for each token.

    Source: GShard (arXiv 2006.16668, algorithm 1) without its random second choice; AXLearn's Top2Gating.
    """
    probabilities = _widen(logits_TE).softmax(-1)
    # Not topk: of equal values it takes any, and a router that starts at zero would differ from device to device.
    first = probabilities.argmax(-1, keepdim=True)
    # -1 is below every probability: the first choice cannot win again.
    second = probabilities.scatter(-1, first, -1.0).argmax(-1, keepdim=True)
    experts = torch.cat([first, second], dim=-1)
    gates = probabilities.gather(-1, experts)
    # 1e-9 as in AXLearn; gates are normalized before capacity cuts any, and not again.
    return Routing(experts, gates / (gates.sum(-1, keepdim=True) + 1e-9), probabilities)


def expert_capacity(num_tokens: int, num_experts: int, factor: float) -> int:
    """Return how many tokens an expert takes."""
    return max(1, int(num_tokens * factor / num_experts))


def cut_to_capacity(routing: Routing, capacity: int) -> Routing:
    """Set the gates of pairs to 0 that their expert cannot take; the other gates are not changed.

    First choices queue in the order of tokens; second choices queue behind all first choices that were taken.
    """
    num_experts = routing.probabilities_TE.shape[-1]
    first_TE, second_TE = F.one_hot(routing.experts_T2, num_experts).unbind(1)
    first_TE = first_TE * (first_TE.cumsum(0) <= capacity)
    second_TE = second_TE * (second_TE.cumsum(0) + first_TE.sum(0) <= capacity)
    taken_T2 = torch.stack([first_TE.sum(-1), second_TE.sum(-1)], dim=-1)
    return routing._replace(gates_T2=routing.gates_T2 * taken_T2)


def balance_loss(routing: Routing) -> Tensor:
    """Return E sum_e f_e P_e: 1 for uniform routing, E where one expert gets all.

    f_e is the share of tokens whose first choice is e, before any capacity; P_e the mean probability of e.
    """
    num_experts = routing.probabilities_TE.shape[-1]
    counts_E = torch.bincount(routing.experts_T2[:, 0], minlength=num_experts)
    shares_E = counts_E.to(routing.probabilities_TE.dtype) / len(routing.experts_T2)
    # Not a dot product, which autocast would round to bfloat16.
    return num_experts * (shares_E * routing.probabilities_TE.mean(0)).sum()


def z_loss(logits_TE: Tensor) -> Tensor:
    """Return the mean square of logsumexp, which holds the router's logits near 0 (ST-MoE, arXiv 2202.08906, eq. 5)."""
    return _widen(logits_TE).logsumexp(-1).square().mean()


def _widen(logits_TE: Tensor) -> Tensor:
    """Return logits in float32 or wider: shares of bfloat16 do not add up to 1."""
    return logits_TE.to(torch.promote_types(logits_TE.dtype, torch.float32))


class _Router(nn.Module):
    def __init__(self, width: int, num_experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, width))

    def forward(self, x_TD: Tensor) -> Tensor:
        # In float32 also under autocast: bfloat16 has 8 bits, and near-equal experts would swap at random.
        dtype = torch.promote_types(x_TD.dtype, torch.float32)
        with torch.autocast(x_TD.device.type, enabled=False):
            return F.linear(x_TD.to(dtype), self.weight.to(dtype))


class _GroupedLinear(torch.autograd.Function):
    """Rows sorted by expert times each expert's matrix, its results and gradients written where they belong.

    Products of slices with autograd instead take 1.3 times as long, and an index for each expert up to 10 times: its
    gradient is a tensor of all experts each time.
    """

    @staticmethod
    def forward(ctx: Any, x_SD: Tensor, weight_EHD: Tensor, counts: list[int]) -> Tensor:
        ctx.save_for_backward(x_SD, weight_EHD)
        ctx.counts = counts
        y_SH = x_SD.new_empty(len(x_SD), weight_EHD.shape[1])
        for x, weight, y in zip(x_SD.split(counts), weight_EHD, y_SH.split(counts), strict=True):
            torch.mm(x, weight.T, out=y)
        return y_SH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyrefly: ignore[bad-override]
        x_SD, weight_EHD = ctx.saved_tensors
        x_gradient, weight_gradient = torch.empty_like(x_SD), torch.empty_like(weight_EHD)
        slices = (tensor.split(ctx.counts) for tensor in (x_SD, grad_outputs[0], x_gradient))
        for x, dy, dx, weight, dw in zip(*slices, weight_EHD, weight_gradient, strict=True):
            torch.mm(dy, weight, out=dx)
            # An expert without rows gets zeros.
            torch.mm(dy.T, x, out=dw)
        return x_gradient, weight_gradient, None


class _Experts(nn.Module):
    """E MLPs without biases: down(act(gate(x)) * up(x)), or down(act(up(x))) where they are not gated."""

    def __init__(self, num_experts: int, width: int, hidden_width: int, *, activation: nn.Module, gated: bool) -> None:
        super().__init__()
        rows = 2 * hidden_width if gated else hidden_width
        self.register_parameter(
            "gate_up_proj" if gated else "up_proj", nn.Parameter(torch.empty(num_experts, rows, width))
        )
        self.down_proj = nn.Parameter(torch.empty(num_experts, width, hidden_width))
        self.act_fn, self.gated = activation, gated

    def forward(self, x_TD: Tensor, routing: Routing) -> Tensor:
        pairs = routing.experts_T2.flatten()
        # Sorted by expert, so that the rows of each expert lie together for one product.
        order = pairs.argsort(stable=True)
        counts = torch.bincount(pairs, minlength=len(self.down_proj)).tolist()
        up, down = self.get_parameter("gate_up_proj" if self.gated else "up_proj"), self.down_proj
        device = x_TD.device.type
        if torch.is_autocast_enabled(device):
            x_TD, up, down = (tensor.to(torch.get_autocast_dtype(device)) for tensor in (x_TD, up, down))
        # Each token has two experts: pair p is of token p // 2.
        x_SD = x_TD.index_select(0, order // 2)
        if torch.is_grad_enabled():
            y_SD = self._apply_mlp(x_SD, up, down, lambda x, weight: _GroupedLinear.apply(x, weight, counts))
        else:
            # No gradient needs the hidden values, so the experts go one by one: the values of one expert stay in the
            # cache of a core, those of all pairs do not.
            parts = zip(x_SD.split(counts), up, down, strict=True)
            y_SD = torch.cat([self._apply_mlp(*part, F.linear) for part in parts])
        y_SD = y_SD * routing.gates_T2.flatten().index_select(0, order).to(y_SD.dtype)[:, None]
        # Back in the order of pairs, then a sum of two: the same bits on every run, as index_add on CUDA is not.
        return y_SD.index_select(0, order.argsort()).view(len(x_TD), 2, -1).sum(1)

    def _apply_mlp(self, x_SD: Tensor, up: Tensor, down: Tensor, linear: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        hidden_SH = linear(x_SD, up)
        if self.gated:
            gate_SH, linear_SH = hidden_SH.chunk(2, dim=-1)
            hidden_SH = self.act_fn(gate_SH) * linear_SH
        else:
            hidden_SH = self.act_fn(hidden_SH)
        return linear(hidden_SH, down)


class SparseMlp(nn.Module):
    """E experts, two for each token, in place of an MLP.

    In training the router's losses of the last pass wait for `pop_router_losses`. Padded positions are tokens to the
    router as any other: pack sequences instead of padding them.

    Args:
        width: D, of the tokens. hidden_width: of one expert.
        activation: of the experts. gated: with a gate, as in Llama.
        capacity_factor: see `SparseOptions`; the group is all tokens of one call.
        std: of the normal distribution of all weights.
    """

    def __init__(
        self,
        width: int,
        hidden_width: int,
        *,
        num_experts: int,
        activation: nn.Module,
        gated: bool = True,
        capacity_factor: float | None = None,
        std: float = 0.02,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.gate = _Router(width, num_experts)
        self.experts = _Experts(num_experts, width, hidden_width, activation=activation, gated=gated)
        self.num_experts, self.capacity_factor = num_experts, capacity_factor
        self.losses: tuple[Tensor, Tensor] | None = None
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=std, generator=generator)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Send each token through its two experts; same shape."""
        x_TD = x_BLD.reshape(-1, x_BLD.shape[-1])
        logits = self.gate(x_TD)
        routing = route_top2(logits)
        # Without a gradient, as in the first pass of reentrant checkpointing, they would train nothing unnoticed.
        trained = self.training and torch.is_grad_enabled()
        self.losses = (balance_loss(routing), z_loss(logits)) if trained else None
        if self.capacity_factor is not None:
            capacity = expert_capacity(len(x_TD), self.num_experts, self.capacity_factor)
            routing = cut_to_capacity(routing, capacity)
        return self.experts(x_TD, routing).view_as(x_BLD)


def pop_router_losses(model: nn.Module, options: SparseOptions) -> dict[str, Tensor]:
    """Take out the weighted losses of the last pass in training, each summed over sparse layers as AXLearn does.

    Raises:
        UserError: no sparse layer has run in training since the last call.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, SparseMlp) and layer.losses is not None]
    if not layers:
        raise UserError("router losses: no sparse layer has run; expected a pass of a sparse model in training mode")
    losses = [layer.losses for layer in layers if layer.losses is not None]
    for layer in layers:
        # A copy of the model could not be made with parts of a graph in it.
        layer.losses = None
    balance, z = (torch.stack(values).sum() for values in zip(*losses, strict=True))
    return {"balance": options.balance_weight * balance, "router_z": options.z_weight * z}


def make_sparse(model: nn.Module, options: SparseOptions, *, seed: int = 0) -> list[int]:
    """Replace the MLP of every second decoder layer by experts, in place; return the indices of these layers: 1, 3, ...

    With `copy_dense` the outputs stay what they were: both experts of a token are equal, and their gates add to 1.

    Args:
        model: a language model of transformers whose MLPs have gate_proj, up_proj and down_proj without biases.
        seed: of the routers and of fresh experts.

    Raises:
        UserError: other MLPs, sparse ones already, or a width that the options do not divide.
    """
    layers = _decoder_layers(model)
    indices = list(range(1, len(layers), 2))
    if not indices:
        raise UserError(
            f"{type(model).__name__}: has {len(layers)} decoder layer; expected 2, as odd ones become sparse"
        )
    # 0.02 is the usual default in transformers, for configurations without this field.
    std = float(getattr(getattr(model, "config", None), "initializer_range", 0.02))
    # All are checked before any is replaced.
    dense = [_read_mlp(layers[index], index, options) for index in indices]
    for index, mlp in zip(indices, dense, strict=True):
        device = mlp.down_proj.weight.device
        # The meta device, where recipes of 30B are priced, has no generator of its own.
        generator = torch.Generator("cpu" if device.type == "meta" else device)
        generator.manual_seed(seeds.integer("sparse", seed, index))
        layers[index].mlp = _convert(mlp, options, std=std, generator=generator)
    return indices


def _decoder_layers(model: nn.Module) -> Any:
    decoder: Any = model.get_decoder() if hasattr(model, "get_decoder") else model  # type: ignore[operator]
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise UserError(f"{type(model).__name__}: has no list of decoder layers; expected a model such as Llama's")
    return layers


def _read_mlp(layer: Any, index: int, options: SparseOptions) -> Any:
    mlp = getattr(layer, "mlp", None)
    names = ("gate_proj", "up_proj", "down_proj")
    linear = [getattr(mlp, name, None) for name in names]
    if not all(isinstance(part, nn.Linear) and part.bias is None for part in linear) or not hasattr(mlp, "act_fn"):
        raise UserError(
            f"layer {index}: its MLP is a {type(mlp).__name__}; expected one with {', '.join(names)} without biases"
        )
    assert isinstance(mlp, nn.Module)
    hidden = linear[1].out_features  # type: ignore[union-attr]
    if hidden % options.width_divisor:
        raise UserError(
            f"width_divisor: must divide the hidden width {hidden} of the MLPs (got {options.width_divisor}); expected "
            "a divisor of it"
        )
    return mlp


def _convert(mlp: Any, options: SparseOptions, *, std: float, generator: torch.Generator) -> SparseMlp:
    weight: Tensor = mlp.down_proj.weight
    width, hidden = weight.shape
    with weight.device:
        sparse = SparseMlp(
            width,
            hidden // options.width_divisor,
            num_experts=options.num_experts,
            activation=mlp.act_fn,
            capacity_factor=options.capacity_factor,
            std=std,
            generator=generator,
        ).to(weight.dtype)
    # As in AXLearn's converter: each expert copies the dense MLP, the router is random. MM1.5's own way is unknown.
    if options.init == "copy_dense":
        with torch.no_grad():
            sparse.experts.get_parameter("gate_up_proj").copy_(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]))
            sparse.experts.down_proj.copy_(weight)
    return sparse.train(mlp.training)
