"""Recipe of a multimodal LLM: its parts, its data, and the stages of its training."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from foveate.core.errors import UserError, choose, nearest
from foveate.core.recipes import Settings
from foveate.multimodal.assemble import AssemblyOptions
from foveate.multimodal.settings import MultimodalSettings, SourceSettings
from foveate.records.record import GROUPS
from foveate.training.mixture_groups import GroupMixture
from foveate.training.price import PriceSettings
from foveate.training.settings import TrainingSettings
from foveate.training.token_batches import TokenBatching


class StageSettings(Settings):
    """One stage: its trained parts, its data and its losses."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="of the stage and of its folder")
    training: TrainingSettings
    texts: bool = Field(default=True, description="train the language model on conversations; false = alignment alone")
    max_conversations: int = Field(
        default=8, ge=1, description="conversations of one set of images in a sample, drawn anew in each epoch"
    )
    groups: tuple[str, ...] = Field(default=(), description="groups of conversations; empty = all")
    replay: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the samples that take conversations of other groups about the same images, where there "
        "are some: what an earlier stage taught is not lost",
    )
    mixture: GroupMixture | None = Field(
        default=None, description="share of each group in the samples; unset = as often as the collection has them"
    )
    multipliers: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default={},
        description="how often an epoch has the samples of a group: 3 = three times, 0.2 = a fifth of them, drawn "
        "once, 0 = not at all; 1 for groups that are not named",
    )
    point_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of the questions with boxes or masks that point at them instead, one coin for each question "
        "in each epoch (Ferret's); not of generated scenes, which have points of their own",
    )
    point_place: Literal["center", "uniform", "gaussian"] = Field(
        default="center",
        description="where in a mask the point lies: near the center, anywhere, or near a draw around the center; in a "
        "box without a mask it is always such a draw",
    )
    tokens: TokenBatching | None = Field(
        default=None, description="batches of up to so many tokens, of samples of similar length; unset = batch_size"
    )
    alignment_weight: float = Field(
        default=0.0, ge=0, description="of embedding alignment: regions lie where their names' embeddings lie"
    )
    box_weight: float = Field(default=0.0, ge=0, description="of L1 + GIoU of the box head")
    connector_rate: float = Field(
        default=1.0, ge=0, description="factor of the learning rate of connector and tower; 0 = frozen"
    )
    tower_rate: float | None = Field(
        default=None, ge=0, description="factor of the learning rate of the tower; unset = connector_rate; 0 = frozen"
    )
    copy_projector: bool = Field(
        default=False, description="start the connector of tiles from that of overviews (Ferret-v2, second stage)"
    )
    embedding_rate: float = Field(
        default=1.0, ge=0, description="factor of the learning rate of the table of token embeddings; 0 = frozen"
    )
    language_rate: float = Field(
        default=1.0, ge=0, description="factor of the learning rate of the language model's layers; 0 = frozen"
    )

    assembly: AssemblyOptions | None = Field(
        default=None, description="how this stage cuts images, views of another size included; unset = as the model"
    )

    @property
    def tower_factor(self) -> float:
        """The factor of the tower's learning rate."""
        return self.connector_rate if self.tower_rate is None else self.tower_rate

    @model_validator(mode="after")
    def _consistent(self) -> StageSettings:
        for group in self.groups:
            choose(group, GROUPS, "conversation group")
        if self.replay and not self.groups:
            raise ValueError(f"stage '{self.name}': replay takes conversations of other groups; set groups")
        if self.mixture is not None:
            for group in self.mixture.shares():
                choose(group, GROUPS, "conversation group")
            if self.groups:
                raise ValueError(
                    f"stage '{self.name}': mixture names the groups (got groups too); expected one of them"
                )
            if not self.texts:
                raise ValueError(f"stage '{self.name}': mixture has no effect without texts")
        for group in self.multipliers:
            choose(group, GROUPS, "conversation group")
        if self.multipliers and (self.mixture is not None or not self.texts):
            other = "mixture, which has shares instead" if self.texts else "texts false"
            raise ValueError(f"stage '{self.name}': multipliers have no effect with {other}; expected one of them")
        # The number of processes is not known here; `loading.open_loader` checks the multiple again for all of them.
        if self.tokens is not None and self.tokens.multiple % self.training.accumulate:
            raise ValueError(
                f"stage '{self.name}': tokens.multiple must be a multiple of training.accumulate (got "
                f"{self.tokens.multiple}); expected {self.training.accumulate} times the number of processes"
            )
        if not self.texts and not self.alignment_weight:
            raise ValueError(f"stage '{self.name}': it has no loss; set texts or alignment_weight")
        return self

    def trains(self, group: str) -> bool:
        """Return whether conversations of a group are trained in this stage."""
        # With replay, conversations of other groups are trained, too.
        if not self.texts or (self.groups and group not in self.groups and not self.replay):
            return False
        if self.mixture is not None:
            return self.mixture.shares().get(group, 0) > 0
        return self.multipliers.get(group, 1) > 0

    @property
    def is_by_group(self) -> bool:
        """Return whether groups are counted, so that a sample has conversations of one of them only."""
        return self.mixture is not None or bool(self.multipliers)


# Fields of `model` that a training decides when it adds regions to a trained model; tuning concerns its language model.
REGION_FIELDS = (
    "regions",
    "region_encoder",
    "region_map",
    "region_points",
    "region_norm",
    "region_mean",
    "region_fusion",
)
TUNING_FIELDS = ("tuning", "lora")
# Fields of `model.tower` that select which of its features are read; the others define the tower.
_LAYER_FIELDS = ("layer", "norm")


class MllmRecipe(Settings):
    """The recipe of `foveate mllm train`: the model's parts, its data, and the stages of its training.

    Example:
        >>> from foveate.core import load_recipe
        >>> recipe = load_recipe(MllmRecipe, "mllm-tour", ["stages.0.training.steps=100"])
        >>> [stage.name for stage in recipe.stages]
        ['alignment']
    """

    config_version: Literal[1] = 1
    initial: str | None = Field(
        default=None,
        description="start from this: mini (shipped) or a model folder, with its weights, tokenizer and names; "
        "`model` is then that of the folder",
    )
    add_regions: str | None = Field(
        default=None,
        description="start from this model, mini (shipped) or a model folder without a region encoder, and give it "
        "one: `model` then decides regions and the tuning of a language model with a source, by default lora where the "
        "folder's is frozen; all else is the folder's",
    )
    tower_weights: str | None = Field(
        default=None,
        description="take the image tower with its trained weights from this model folder of foveate pretrain; "
        "`model.tower` is then that of the folder, and may add `layer` and `norm`",
    )
    model: MultimodalSettings
    vocabulary: int = Field(
        default=4096,
        ge=400,
        le=65_536,
        description="tokens of a tokenizer trained on the collection; unused with initial or model.language.source",
    )
    split: str = Field(default="train", description="split of the collection that is trained on")
    stages: tuple[StageSettings, ...] = Field(min_length=1, description="in order")

    @model_validator(mode="before")
    @classmethod
    def _take_initial_model(cls, content: Any) -> Any:
        """Fill in `model` from the folder of `initial` or `add_regions`; what a recipe gives beside must agree."""
        field = "add_regions" if isinstance(content, Mapping) and content.get("add_regions") else "initial"
        if not isinstance(content, Mapping) or not isinstance(content.get(field), str):
            return content
        from foveate.multimodal.folder import read_settings  # loads torch, which a recipe alone does not need
        from foveate.multimodal.opening import SHIPPED, find_folder

        source = content[field]
        try:
            settings, _ = read_settings(find_folder(source).expanduser())
        except UserError as error:
            raise UserError(f"field '{field}': {error}") from error
        model = settings.model_dump(mode="json")
        recipe_model = content.get("model") or {}
        if isinstance(recipe_model, Settings):
            recipe_model = recipe_model.model_dump(mode="json")
        if not isinstance(recipe_model, Mapping):
            return content
        if field == "add_regions":
            model = _with_regions(model, recipe_model, source)
        else:
            _check_agreement(recipe_model, model, source)
        # A run is resumed from any working directory.
        path = source if source in SHIPPED else str(Path(source).expanduser().resolve())
        return {**content, field: path, "model": model}

    @model_validator(mode="before")
    @classmethod
    def _take_tower(cls, content: Any) -> Any:
        """Fill in `model.tower` from the folder of `tower_weights`."""
        if not isinstance(content, Mapping) or not isinstance(content.get("tower_weights"), str):
            return content
        if content.get("initial") or content.get("add_regions"):
            return content  # refused below: the model to start from has a tower
        from foveate.vision.localizer.folder import read_image_tower  # loads torch, which a recipe alone does not need

        folder = Path(content["tower_weights"]).expanduser()
        try:
            tower = read_image_tower(folder)
        except UserError as error:
            raise UserError(f"field 'tower_weights': {error}") from error
        model = content.get("model") or {}
        recipe_model = model.model_dump(mode="json") if isinstance(model, Settings) else model
        if not isinstance(recipe_model, Mapping):
            return content
        described = recipe_model.get("tower") or {}
        _check_agreement(
            {name: value for name, value in described.items() if name not in _LAYER_FIELDS},
            tower,
            str(folder),
            "model.tower.",
            "tower_weights",
        )
        tower |= {name: described[name] for name in _LAYER_FIELDS if name in described}
        return {**content, "tower_weights": str(folder.resolve()), "model": {**recipe_model, "tower": tower}}

    @model_validator(mode="after")
    def _consistent(self) -> MllmRecipe:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages: names must differ (got {', '.join(names)})")
        if any(stage.box_weight for stage in self.stages) and not self.model.box_head:
            raise ValueError("stages: box_weight needs model.box_head")
        if self.model.box_head and self.model.regions == "text":
            raise ValueError("model.box_head: needs model.regions 'tokens' or 'hybrid' (got 'text')")
        if self.initial and self.add_regions:
            raise ValueError(f"initial: add_regions names the model to start from (got '{self.initial}'); expected one")
        if self.tower_weights and self.start:
            raise ValueError(f"tower_weights: the model to start from has a tower (got initial '{self.start}')")
        # Compare with the default: a saved recipe lists all fields as set, most of them with their defaults.
        changed = self.vocabulary != type(self).model_fields["vocabulary"].default
        if changed and (self.start or isinstance(self.model.language, SourceSettings)):
            source = "initial" if self.initial else "add_regions" if self.add_regions else "model.language.source"
            warnings.warn(f"vocabulary has no effect with {source}, which has its own", stacklevel=2)
        if self.model.tiles_tower is None and any(stage.copy_projector for stage in self.stages):
            raise ValueError("stages: copy_projector needs model.tiles_tower")
        if self.model.assembly is None and any(stage.assembly for stage in self.stages):
            raise ValueError("stages: assembly of a stage needs model.assembly")
        if self.stages[-1].assembly not in (None, self.model.assembly):
            raise ValueError("stages: assembly of the last stage is the model's; set model.assembly")
        return self

    @property
    def start(self) -> str | None:
        """The model that training starts from; None = new weights."""
        return self.initial or self.add_regions

    def stage_model(self, stage: StageSettings) -> MultimodalSettings:
        """Return the model as a stage trains it: with its views and their size."""
        if stage.assembly is None:
            return self.model
        tower, tiles, tile = self.model.tower, self.model.tiles_tower, stage.assembly.tiling.tile
        if self.model.assembly is None or tile != self.model.assembly.tiling.tile:
            tower = {**tower, "image_size": tile}
            tiles = tiles and {**tiles, "image_size": tile}
        return self.model.model_copy(update={"assembly": stage.assembly, "tower": tower, "tiles_tower": tiles})

    def with_training(self, **changes: int | None) -> MllmRecipe:
        """Return the recipe with fields of the training settings changed in all stages; None changes nothing."""
        update = {name: value for name, value in changes.items() if value is not None}
        stages = tuple(
            stage.model_copy(update={"training": stage.training.model_copy(update=update)}) for stage in self.stages
        )
        return self.model_copy(update={"stages": stages})


def _with_regions(model: Mapping[str, Any], recipe_model: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the settings of a model with the regions, and the tuning, of a recipe's model."""
    if model["region_encoder"] is not None:
        raise UserError(
            f"field 'add_regions': {source} has a region encoder (got {model['region_encoder'].get('kind')}); expected "
            "a model without one, or initial"
        )
    regions = {name: recipe_model[name] for name in REGION_FIELDS if name in recipe_model}
    if regions.get("region_encoder") is None:
        raise UserError("field 'model.region_encoder': missing; add_regions needs one, such as {kind: sampler}")
    language, tuned = model["language"], recipe_model.get("language")
    if "source" in language:
        tuned = tuned if isinstance(tuned, Mapping) else {}
        # A model that was imported is frozen; stages decide by `language_rate` when its LoRA is trained.
        tuning = {"tuning": "lora"} if language["tuning"] == "frozen" else {}
        language = {**language, **tuning, **{name: tuned[name] for name in TUNING_FIELDS if name in tuned}}
    return {**model, **regions, "language": language}


def _check_agreement(
    recipe_model: Mapping[str, Any],
    model: Mapping[str, Any],
    source: str,
    prefix: str = "model.",
    origin: str = "initial",
) -> None:
    """Raise UserError for the first field of a recipe's model that is not as in the model it starts from."""
    for name, value in recipe_model.items():
        field, expected = f"{prefix}{name}", model.get(name)
        if name not in model:
            raise UserError(f"field '{field}': the model of {origin} '{source}' has none{nearest(name, model)}")
        if isinstance(value, Mapping) and isinstance(expected, Mapping):
            _check_agreement(value, expected, source, f"{field}.", origin)
        elif (list(value) if isinstance(value, tuple) else value) != expected:
            raise UserError(
                f"field '{field}': not that of {origin} '{source}' (got {value!r}); expected {expected!r}, or no model"
            )


class MllmPriceSettings(PriceSettings):
    """Assumptions of a dry run about devices and samples."""

    images: int = Field(
        1, ge=1, description="images of an average sample that a dry run assumes, of 480 x 640 pixels each"
    )
    text_tokens: int = Field(30, ge=1, description="tokens of a mean conversation that a dry run assumes")
    answer_tokens: int = Field(8, ge=1, description="tokens of them in the loss")
