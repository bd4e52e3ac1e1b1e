"""The model of each stage of a recipe: untrained, and with the weights of the stage before."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from foveate.core.errors import UserError
from foveate.language.open import read_language_config
from foveate.language.vocabulary import read_tokenizer
from foveate.mllm.recipe import MllmRecipe, StageSettings
from foveate.multimodal.build import build_model, prepare_tuning
from foveate.multimodal.folder import TOKENIZER
from foveate.multimodal.model import MultimodalModel
from foveate.multimodal.opening import find_folder
from foveate.multimodal.settings import SourceSettings
from foveate.vision.connectors import resize_positions
from foveate.vision.registry import seeded


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
    # Some parameters are [L, D], others [1, L, D]: both are resized as rows and then given their own shape again.
    flat_LD = value.reshape(-1, value.shape[-1])
    map_LD = resize_positions(flat_LD[None, prefix:], grid=grid, new_grid=new_grid)[0]
    return torch.cat([flat_LD[:prefix], map_LD]).reshape(target.shape)


def build_recipe_model(recipe: MllmRecipe) -> MultimodalModel:
    """Build the untrained model of a recipe; a language model from elsewhere with random weights."""
    source = recipe.model.language
    if not isinstance(source, SourceSettings):
        vocabulary = read_tokenizer(find_folder(recipe.start) / TOKENIZER).size if recipe.start else None
        return build_model(recipe.model, vocabulary=vocabulary or recipe.vocabulary, region_id=0)
    from transformers import AutoModelForCausalLM

    config = read_language_config(source.source, revision=source.revision)
    with seeded(0):
        language_model = AutoModelForCausalLM.from_config(config)
    prepare_tuning(language_model, source)
    # Nothing is tokenized for this model, so any id may represent `<region>`.
    return build_model(recipe.model, region_id=0, language_model=language_model)


def build_stage_model(recipe: MllmRecipe, stage: StageSettings) -> MultimodalModel:
    """Build the untrained model of a recipe as a stage trains it; see `build_recipe_model`."""
    return build_recipe_model(recipe.model_copy(update={"model": recipe.stage_model(stage)}))
