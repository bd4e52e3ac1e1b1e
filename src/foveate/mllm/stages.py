"""The model of a recipe as its stages train it: untrained, with the weights it starts from, or of the stage before."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from foveate.core.errors import UserError
from foveate.core.files import read_json, sha256_file
from foveate.core.model_folder import PREPROCESS, WEIGHTS, check_tensors, read_tensors
from foveate.language.chat import Chat
from foveate.language.lora import is_lora
from foveate.language.open import LanguageModel
from foveate.language.vocabulary import WordTokenizer, read_tokenizer
from foveate.mllm.recipe import MllmRecipe, StageSettings
from foveate.multimodal.build import build_model, build_untrained, open_source
from foveate.multimodal.folder import (
    NAMES,
    TOKENIZER,
    hash_model,
    load_weights,
    open_recorded_source,
    read_settings,
    stored_state,
)
from foveate.multimodal.model import MultimodalModel
from foveate.multimodal.names import NameTable
from foveate.multimodal.opening import find_folder
from foveate.multimodal.prompts import create_prompts
from foveate.multimodal.settings import MultimodalSettings, SourceSettings
from foveate.training.run import Run
from foveate.vision.connectors import resize_positions
from foveate.vision.hidden_layer import HiddenLayerEncoder
from foveate.vision.localizer.folder import load_image_tower
from foveate.vision.preprocess import check_preprocess


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
    vocabulary = recipe.vocabulary
    if recipe.start and not isinstance(recipe.model.language, SourceSettings):
        vocabulary = read_tokenizer(find_folder(recipe.start) / TOKENIZER).size
    return build_untrained(recipe.model, vocabulary=vocabulary)


def build_stage_model(recipe: MllmRecipe, stage: StageSettings) -> MultimodalModel:
    """Build the untrained model of a recipe as a stage trains it; see `build_recipe_model`."""
    return build_recipe_model(recipe.model_copy(update={"model": recipe.stage_model(stage)}))


class StagedModel:
    """The model of a run, whose views change with the stages.

    Args:
        collection: name of what it is trained on.
        run: whose folder holds tokenizer and names, and what the model began with.

    Attributes:
        language: model from elsewhere; None with a small one of our own.
    """

    def __init__(self, recipe: MllmRecipe, collection: str, run: Run) -> None:
        self.recipe, self.collection, self.run = recipe, collection, run
        self.language = self._open_source()
        chat = self.language.chat if self.language else Chat(read_tokenizer(run.path / TOKENIZER), "words")
        self.prompts = create_prompts(chat, recipe.model)
        self.names = NameTable.create(read_json(run.path / NAMES), self.prompts.tokenizer)
        self.initial_sha256 = ""
        if recipe.start:
            # Stored weights fit the model's own views; `enter` resizes their positions to the views of the stage.
            self.model = self._load_initial(find_folder(recipe.start))
            self.enter(recipe.stages[0])
        else:
            self.model = self._build(recipe.stage_model(recipe.stages[0]))
            if recipe.tower_weights:
                self._load_tower(Path(recipe.tower_weights))

    def _load_initial(self, folder: Path) -> MultimodalModel:
        """Build the model of a folder with its weights, the same in every session of a run."""
        self.initial_sha256 = hash_model(folder)
        self.run.identify(initial={"source": self.recipe.start, "sha256": self.initial_sha256})
        model = self._build(self.recipe.model)
        check_preprocess(folder / PREPROCESS, model.tower.preprocess)
        settings, _ = read_settings(folder)
        load_weights(model, folder / WEIGHTS, added=partial(_is_added, settings) if self.recipe.add_regions else None)
        return model

    def _load_tower(self, folder: Path) -> None:
        """Load the image tower of a model folder of `foveate pretrain`, the same in every session of a run."""
        self.run.identify(tower={"source": str(folder), "sha256": sha256_file(folder / WEIGHTS)})
        tower = self.model.tower
        # A wrapper that reads a hidden layer has no weights of its own; the folder holds those of the encoder.
        load_image_tower(tower.encoder if isinstance(tower, HiddenLayerEncoder) else tower, folder)

    def _open_source(self) -> LanguageModel | None:
        """Open the language model that the recipe names, the same in every session of a run."""
        settings = self.recipe.model.language
        if not isinstance(settings, SourceSettings):
            return None
        if self.recipe.start:
            language = open_recorded_source(find_folder(self.recipe.start), settings)
        else:
            language = open_source(settings, seed=self.recipe.stages[0].training.seed)
        self.run.identify(language={"source": language.source, "sha256": language.sha256()})
        return language

    def _build(self, settings: MultimodalSettings) -> MultimodalModel:
        seed = self.recipe.stages[0].training.seed
        region_id, tokenizer = self.prompts.region_id, self.prompts.tokenizer
        if isinstance(tokenizer, WordTokenizer):
            return build_model(settings, vocabulary=tokenizer.size, region_id=region_id, seed=seed)
        assert self.language is not None
        model = build_model(settings, language_model=self.language.model, region_id=region_id, seed=seed)
        if settings.visual_words and not self.names.index:
            raise UserError(
                f"field model.visual_words: collection {self.collection} names no region (got none to mix); "
                "expected named regions, or visual_words false"
            )
        if self.names.index:
            with torch.no_grad():
                # In float32: with a source's bfloat16 weights, the mean embeddings of names would be rounded.
                model.set_names(self.names.embeddings(model.embeddings_VE.float()))
        return model

    def enter(self, stage: StageSettings) -> bool:
        """Let the model see as a stage does, where its views have another size with resized positions.

        Returns:
            Whether the views have changed, and with them the features of images.
        """
        settings = self.recipe.stage_model(stage)
        if settings == self.model.settings:
            return False
        earlier, self.model = self.model, self._build(settings)
        weights = resize_weights(earlier.state_dict(), self.model, grid=earlier.tower.grid)
        self.model.load_state_dict(weights)
        return True

    def load_stage(self, path: Path) -> None:
        """Load the weights that a stage has left."""
        tensors = read_tensors(path)
        check_tensors(tensors, self.stage_state(), path)
        if any(isinstance(weight, DTensor) for weight in self.model.parameters()):
            # What a stage sharded stays so, and can be neither loaded into nor wrapped again.
            self.language = self._open_source()
            self.model = self._build(self.model.settings)
        # Not strict: the weights of a source are not in it.
        self.model.load_state_dict(tensors, strict=False)

    def stage_state(self) -> dict[str, Tensor]:
        """Return what the weights of a stage hold: everything but what a source brings along."""
        state = self.model.state_dict()
        return state if self.language is None else stored_state(state, self.recipe.model)


def _is_added(settings: MultimodalSettings, name: str) -> bool:
    """Return whether a tensor is new where regions are added to a model of these settings."""
    source = settings.language
    new_lora = isinstance(source, SourceSettings) and source.tuning != "lora" and is_lora(name)
    return name.startswith("region_reader.") or (settings.regions == "text" and name == "region_E") or new_lora
