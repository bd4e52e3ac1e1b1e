"""Sparse layers: against transformers' Mixtral block, their gradients, conversion of dense models, unusable options."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from foveate.core.errors import UserError
from foveate.language.sparse import (
    SparseMlp,
    SparseOptions,
    balance_loss,
    make_sparse,
    pop_router_losses,
    route_top2,
    z_loss,
)
from naming import raises_naming


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(**options: Any) -> SparseMlp:
    defaults: dict[str, Any] = {"num_experts": 6, "activation": nn.SiLU(), "std": 0.3}
    return SparseMlp(8, 12, **defaults | options, generator=torch.Generator().manual_seed(0))


def llama(*, layers: int = 4, seed: int = 0, **config: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "vocab_size": 30}
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **sizes | config)).eval()


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_equals_mixtrals_block(implementation: str) -> None:
    ours = layer()
    config = MixtralConfig(hidden_size=8, intermediate_size=12, num_local_experts=6, num_attention_heads=1)
    config._experts_implementation = implementation
    theirs = MixtralSparseMoeBlock(config)
    theirs.load_state_dict(ours.state_dict())
    x = draw(3, 7, 8)
    first, second = x.clone().requires_grad_(), x.clone().requires_grad_()
    outputs, expected = ours(first), theirs(second)
    torch.testing.assert_close(outputs, expected, atol=1e-6, rtol=0)
    weights = draw(3, 7, 8, seed=1)
    (outputs * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(first.grad, second.grad, atol=1e-6, rtol=0)
    for (name, parameter), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, atol=1e-6, rtol=0, msg=name)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("factor", [None, 1.0])
def test_gradients_of_outputs_and_losses(gated: bool, factor: float | None) -> None:
    module = layer(gated=gated, capacity_factor=factor).double()
    x = draw(2, 5, 8).double().requires_grad_()
    names = [name for name, _ in module.named_parameters()]

    def run(x: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        outputs = torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))
        assert module.losses is not None
        return outputs, *module.losses

    assert torch.autograd.gradcheck(run, (x, *module.parameters()), fast_mode=True)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outputs_without_a_gradient_are_the_same(gated: bool, dtype: torch.dtype) -> None:
    # 50 experts for 21 tokens: most have none.
    module = layer(gated=gated, num_experts=50, capacity_factor=1.0).to(dtype)
    x = draw(3, 7, 8).to(dtype)
    expected = module(x)
    assert expected.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(module(x), expected.detach(), atol=1e-6, rtol=0)


def test_an_expert_without_tokens_has_a_gradient_of_zero() -> None:
    module = layer(num_experts=50)
    module(draw(1, 3, 8)).sum().backward()
    gradient = module.experts.down_proj.grad
    assert gradient is not None
    assert int(gradient.flatten(1).any(1).sum()) <= 6


def test_router_is_float32_where_the_rest_is_not() -> None:
    module = layer()
    x = draw(2, 40, 8)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = module(x)
    assert outputs.dtype == torch.bfloat16
    assert module.losses is not None
    mixed = [loss.item() for loss in module.losses]
    exact = module(x)
    assert mixed == [loss.item() for loss in module.losses]
    assert (outputs.float() - exact).abs().max() < 0.05 * exact.abs().max()
    module = module.to(torch.bfloat16)
    module(x.to(torch.bfloat16))
    assert module.losses[0].dtype == torch.float32
    zeros = torch.zeros(8, 64, dtype=torch.bfloat16)
    assert z_loss(zeros).item() == pytest.approx(math.log(64) ** 2)
    assert route_top2(zeros).gates_T2.dtype == torch.float32


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), shift=st.floats(-20, 20), experts=st.integers(2, 40))
def test_a_constant_moves_the_z_loss_alone(seed: int, shift: float, experts: int) -> None:
    logits = draw(9, experts, seed=seed).double()
    first, second = route_top2(logits), route_top2(logits + shift)
    assert torch.equal(first.experts_T2, second.experts_T2)
    torch.testing.assert_close(first.gates_T2, second.gates_T2)
    torch.testing.assert_close(balance_loss(first), balance_loss(second))
    change = z_loss(logits + shift) - z_loss(logits)
    torch.testing.assert_close(change, shift**2 + 2 * shift * logits.logsumexp(-1).mean())


def test_uniform_logits_balance_at_one() -> None:
    assert balance_loss(route_top2(torch.zeros(12, 5))).item() == pytest.approx(1.0)
    collapsed = torch.full((12, 5), -100.0)
    collapsed[:, 2] = 100.0
    assert balance_loss(route_top2(collapsed)).item() == pytest.approx(5.0)


def test_copies_of_the_dense_mlp_change_no_logits() -> None:
    model, tokens = llama(layers=5), torch.arange(22).view(2, 11)
    with torch.no_grad():
        expected = model(tokens).logits
        assert make_sparse(model, SparseOptions(num_experts=4)) == [1, 3]
        logits = model(tokens).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    assert [isinstance(decoder.mlp, SparseMlp) for decoder in model.model.layers] == [False, True, False, True, False]
    # Not training: nothing waits to be read.
    with raises_naming(UserError, "router losses", "training"):
        pop_router_losses(model, SparseOptions())


def test_fresh_experts_train_and_generate() -> None:
    model, tokens = llama(), torch.arange(22).view(2, 11)
    options = SparseOptions(num_experts=4, init="fresh", width_divisor=2)
    make_sparse(model, options, seed=1)
    other = llama()
    make_sparse(other, options, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert model.model.layers[1].mlp.experts.down_proj.shape == (4, 16, 12)
    optimizer = torch.optim.Adam(model.train().parameters(), 1e-2)
    losses = []
    for _ in range(8):
        loss = model(inputs_embeds=model.get_input_embeddings()(tokens), labels=tokens).loss
        router = pop_router_losses(model, options)
        losses.append(loss.item())
        optimizer.zero_grad()
        (loss + router["balance"] + router["router_z"]).backward()
        assert all(layer.mlp.gate.weight.grad.any() for layer in model.model.layers[1::2])
        optimizer.step()
    assert losses[-1] < losses[0] - 0.3
    copied = copy.deepcopy(model).eval()
    generated = copied.generate(tokens[:1, :4], max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert generated.shape == (1, 8)


def test_losses_are_sums_over_layers() -> None:
    model, options = llama(layers=6), SparseOptions(num_experts=4, balance_weight=0.5, z_weight=0.25)
    make_sparse(model, options)
    model.train()(torch.arange(10)[None])
    losses = [layer.mlp.losses for layer in model.model.layers[1::2]]
    popped = pop_router_losses(model, options)
    torch.testing.assert_close(popped["balance"], 0.5 * sum(balance for balance, _ in losses))
    torch.testing.assert_close(popped["router_z"], 0.25 * sum(z for _, z in losses))


def test_conversion_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(hidden_size=256, intermediate_size=512, num_hidden_layers=2))
    make_sparse(model, SparseOptions())
    assert model.model.layers[1].mlp.experts.gate_up_proj.shape == (64, 1024, 256)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_what_cannot_be_converted_is_refused_whole() -> None:
    with raises_naming(UserError, "width_divisor", 24, 5):
        make_sparse(llama(), SparseOptions(init="fresh", width_divisor=5))
    with raises_naming(UserError, "layer 1", "gate_proj", "biases"):
        make_sparse(llama(mlp_bias=True), SparseOptions())
    with raises_naming(UserError, "1 decoder layer"):
        make_sparse(llama(layers=1), SparseOptions())
    model = llama()
    make_sparse(model, SparseOptions(num_experts=2))
    with raises_naming(UserError, "layer 1", "SparseMlp"):
        make_sparse(model, SparseOptions(num_experts=2))
    with raises_naming(UserError, "Linear", "decoder layers"):
        make_sparse(nn.Linear(2, 2), SparseOptions())


@pytest.mark.parametrize("options", [{"num_experts": 1}, {"width_divisor": 2}, {"capacity_factor": 0.0}])
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with raises_naming(ValidationError, next(iter(options))):
        SparseOptions(**options)
