"""From one stage of a recipe to the next: weights of a model whose views change their size."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from foveate.core.errors import UserError
from foveate.multimodal.model import MultimodalModel
from foveate.vision.connectors.cabstractor import resize_positions


def resize_weights(
    weights: Mapping[str, Tensor], model: MultimodalModel, *, grid: tuple[int, int]
) -> dict[str, Tensor]:
    """Resize position embeddings to the grid of a model; all other weights stay.

    Args:
        weights: of the same model with another size of views. grid: its rows and columns of patches.

    Raises:
        UserError: a weight has another shape and is no grid of vectors.
    """
    resized = {}
    for name, target in model.state_dict().items():
        value = weights[name]
        if value.shape != target.shape:
            value = _resize(name, value, target, grid=grid, new_grid=model.tower.grid)
        resized[name] = value
    return resized


def _resize(name: str, value: Tensor, target: Tensor, *, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Resize [.., P + L, D], one vector for each patch behind P class tokens, which stay as they are."""
    cells, prefix = grid[0] * grid[1], value.shape[-2] - grid[0] * grid[1] if value.ndim > 1 else -1
    expected = (*value.shape[:-2], prefix + new_grid[0] * new_grid[1], value.shape[-1]) if value.ndim > 1 else ()
    if prefix < 0 or tuple(target.shape) != expected or value.numel() != (prefix + cells) * value.shape[-1]:
        raise UserError(
            f"weight {name}: cannot be brought from views of {grid[0]} x {grid[1]} patches to {new_grid[0]} x "
            f"{new_grid[1]} (got {list(value.shape)}); expected {list(target.shape)}"
        )
    flat_LD = value.reshape(-1, value.shape[-1])
    map_LD = resize_positions(flat_LD[None, prefix:], grid=grid, new_grid=new_grid)[0]
    return torch.cat([flat_LD[:prefix], map_LD]).reshape(target.shape)
