"""Connectors: against the foreign modules of the same names, on rectangular grids, and with unusable options."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.core.errors import UserError
from foveate.vision.connectors import (
    CAbstractor,
    Connector,
    LinearConnector,
    MlpConnector,
    PixelShuffleConnector,
    PooledConnector,
    _DepthwiseBlock,
    build_connector,
    connector_kinds,
)
from naming import raises_naming

CLASSES: dict[str, type[Connector]] = {
    "cabstractor": CAbstractor,
    "linear": LinearConnector,
    "mlp": MlpConnector,
    "pixel_shuffle": PixelShuffleConnector,
    "pooled": PooledConnector,
}
SMALL: dict[str, dict[str, Any]] = {
    "cabstractor": {"num_tokens": 4, "hidden_width": 8, "depth": 1},
    "linear": {},
    "mlp": {},
    "pixel_shuffle": {},
    "pooled": {"side": 2},
}


def small(kind: str, *, grid: tuple[int, int] = (4, 6), **options: Any) -> Connector:
    return build_connector(kind, SMALL[kind] | options, in_width=6, out_width=10, grid=grid)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_every_kind_is_tested() -> None:
    assert connector_kinds() == sorted(SMALL)


@pytest.mark.parametrize("kind", sorted(SMALL))
def test_each_token_count_and_gradient(kind: str) -> None:
    connector = small(kind)
    assert type(connector) is CLASSES[kind]
    tokens = draw(3, 24, 6)
    outputs = connector(tokens)
    assert outputs.shape == (3, connector.num_tokens, connector.out_width) == (3, connector.num_tokens, 10)
    outputs.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in connector.parameters())
    # One image's tokens depend on no other image's.
    torch.testing.assert_close(connector(tokens[1:2]), outputs[1:2], atol=1e-6, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert (connector(tokens).float() - outputs).abs().max() < 0.1


@pytest.mark.parametrize("kind", sorted(SMALL))
def test_same_seed_same_weights(kind: str) -> None:
    state = torch.random.get_rng_state()
    first, second = small(kind).state_dict(), small(kind).state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_mlp_equals_llavas() -> None:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    vision = CLIPVisionConfig(hidden_size=6, num_attention_heads=1)
    config = LlavaConfig(vision_config=vision, text_config=LlamaConfig(hidden_size=10, num_attention_heads=1))
    theirs, ours = LlavaMultiModalProjector(config), small("mlp")
    ours.load_state_dict(theirs.state_dict())
    tokens = draw(2, 24, 6)
    torch.testing.assert_close(ours(tokens), theirs(tokens), atol=1e-6, rtol=0)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_pixel_shuffle_equals_idefics3s(factor: int) -> None:
    from transformers import Idefics3Config, Idefics3VisionConfig, LlamaConfig
    from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector

    config = Idefics3Config(
        vision_config=Idefics3VisionConfig(hidden_size=6, num_attention_heads=1).to_dict(),
        text_config=LlamaConfig(hidden_size=10, num_attention_heads=1).to_dict(),
        scale_factor=factor,
    )
    theirs, ours = Idefics3Connector(config), small("pixel_shuffle", grid=(6, 6), factor=factor)
    ours.load_state_dict(theirs.state_dict())
    tokens = draw(2, 36, 6)
    torch.testing.assert_close(ours(tokens), theirs(tokens), atol=1e-6, rtol=0)


def test_pixel_shuffle_of_a_rectangle_keeps_squares_together() -> None:
    connector = small("pixel_shuffle", grid=(4, 6))
    tokens = draw(1, 24, 6).requires_grad_()
    connector(tokens)[0, 4].sum().backward()
    assert tokens.grad is not None
    # Token 4 is row 1, column 1 of the 2 x 3 squares: patches 2 and 3 of rows 2 and 3.
    assert tokens.grad[0].any(-1).nonzero().flatten().tolist() == [14, 15, 20, 21]


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), side=st.integers(1, 5))
def test_pooling_windows_overlap_where_they_must(rows: int, columns: int, side: int) -> None:
    connector = small("cabstractor", grid=(rows, columns), num_tokens=side**2, depth=0)
    assert isinstance(connector, CAbstractor)
    cells = draw(1, rows, columns, 6)
    pooled = connector.net(cells)
    for i in range(side):
        for j in range(side):
            top, bottom = i * rows // side, math.ceil((i + 1) * rows / side)
            left, right = j * columns // side, math.ceil((j + 1) * columns / side)
            expected = cells[0, top:bottom, left:right].mean((0, 1))
            torch.testing.assert_close(pooled[0, i, j], expected, atol=1e-6, rtol=0)


def test_eos_tokens_stand_at_the_end() -> None:
    plain, longer = small("cabstractor"), small("cabstractor", num_eos_tokens=2)
    longer.load_state_dict(plain.state_dict() | {"eos_tokens": draw(1, 2, 10)})
    assert longer.num_tokens == plain.num_tokens + 2
    tokens = draw(3, 24, 6)
    outputs = longer(tokens)
    assert torch.equal(outputs[:, :-2], plain(tokens))
    assert torch.equal(outputs[:, -2:], draw(1, 2, 10).expand(3, -1, -1))


def test_pre_norm_removes_scale_and_offset() -> None:
    connector = small("cabstractor", pre_norm=True)
    assert "prenorm.weight" in connector.state_dict()
    tokens = draw(2, 24, 6)
    torch.testing.assert_close(connector(5 * tokens + 3), connector(tokens), atol=1e-4, rtol=0)


def test_resized_grid_reads_other_tokens() -> None:
    connector = small("cabstractor", grid=(4, 4))
    assert isinstance(connector, CAbstractor)
    assert connector.pos_emb is not None
    with torch.no_grad():
        connector.pos_emb.fill_(0.5)
    connector.resize_grid((7, 5))
    assert connector.pos_emb.shape == (1, 35, 6)
    torch.testing.assert_close(connector.pos_emb.detach(), torch.full((1, 35, 6), 0.5))
    assert connector(draw(1, 35, 6)).shape == (1, 4, 10)


def test_unusable_options_are_named() -> None:
    with raises_naming(UserError, "connector", "mlps", "Did you mean 'mlp'"):
        build_connector("mlps", {}, in_width=6, out_width=10, grid=(2, 2))
    with raises_naming(UserError, "cabstractor", "hiden_width", "hidden_width"):
        small("cabstractor", hiden_width=8)
    with raises_naming(UserError, "num_tokens", 12, 9, 16):
        small("cabstractor", num_tokens=12)
    with raises_naming(UserError, "factor", 4, "4 x 6"):
        small("pixel_shuffle", factor=4)


@pytest.mark.parametrize("kind", sorted(SMALL))
def test_tokens_of_another_grid_are_refused(kind: str) -> None:
    for shape in [(1, 25, 6), (1, 24, 5), (24, 6)]:
        with raises_naming(UserError, str(shape), "24", "6", "4 x 6"):
            small(kind)(draw(*shape))


def test_a_pooled_token_is_the_mean_of_its_patches_in_the_language_models_space() -> None:
    connector = small("pooled")
    assert isinstance(connector, PooledConnector)
    tokens = draw(2, 24, 6)
    full = connector.full(tokens)
    # A 4 x 6 grid in 2 x 2 windows of 2 x 3 patches.
    expected = full.view(2, 2, 2, 2, 3, 10).mean((2, 4)).flatten(1, 2)
    torch.testing.assert_close(connector(tokens), expected, atol=1e-6, rtol=0)


def test_an_mlp_without_biases_maps_zero_to_zero() -> None:
    connector = small("mlp", bias=False)
    assert not connector(torch.zeros(1, 24, 6)).any()


def test_a_residual_block_adds_its_branch() -> None:
    block = _DepthwiseBlock(4)
    torch.nn.init.zeros_(block.ln3.weight)
    torch.nn.init.constant_(block.ln3.bias, 0.5)  # the branch is .5 whatever the tokens are
    tokens_BHWD = torch.linspace(-1, 1, 36).reshape(1, 3, 3, 4)
    torch.testing.assert_close(block(tokens_BHWD), torch.nn.functional.silu(tokens_BHWD + 0.5))
