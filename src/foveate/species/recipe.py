"""Recipe of `foveate species train`: graph, encoder, view, data and training; loads no torch."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from foveate.core.devices import TrainingPrecision
from foveate.core.errors import UserError, choose
from foveate.core.recipes import Settings
from foveate.species.crops import CropSettings
from foveate.species.scores import SCORES
from foveate.training.epochs import with_default
from foveate.training.settings import TrainingSettings

Context = Literal["taxonomy", "place", "time"]
CONTEXTS: tuple[Context, ...] = ("taxonomy", "place", "time")
_ENCODER = {"kind": "lite0", "image_size": 224}
METHODS = ("cosmo", "erm", "linear_probe", "mlp_concat")
# Fields of several passes an epoch, and of a training that takes steps.
_OF_PASSES = "training.taxonomy_passes training.extra_species_pass"
_OF_STEPS = (
    "training.epochs training.batch_size training.image_learning_rate training.balance training.tau training.monitor "
    "training.patience training.precision"
)


class GraphSettings(Settings):
    """The links that are learned, and how they are scored."""

    score: str = Field("distmult", description="distmult; conve = convolutions, not foldable; complex = asymmetric")
    dim: int = Field(512, ge=2, description="width of all vectors; 200 is the paper's for conve")
    conve_rows: int = Field(20, ge=2, description="rows that conve reshapes a vector to; a divisor of dim")
    contexts: tuple[Context, ...] = Field(CONTEXTS, description="links beside the species; none = the species alone")
    start: Literal["official", "sane"] = Field(
        "sane", description="first values of numeric networks: U(0, 1) everywhere (official), or xavier and zero biases"
    )
    place_input: Literal["raw", "standardized", "sphere"] = Field(
        "standardized", description="degrees (official), standardized on training places, or points of the unit sphere"
    )
    hour_input: Literal["raw", "scaled", "circular"] = Field(
        "scaled", description="0 to 23 (official), h / 12 - 1, or sine and cosine, so that 23 is beside 0"
    )
    candidates: Literal["train", "all"] = Field(
        "train", description="places and hours that compete: of training images, or of all splits (official)"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        choose(self.score, SCORES, "score")
        if len(set(self.contexts)) < len(self.contexts):
            raise ValueError(f"contexts: one is named twice (got {', '.join(self.contexts)})")
        return self


class LinkTraining(Settings):
    """Length, order, optimizer and selection of a training."""

    epochs: int = Field(12, ge=1, description="each is one pass over the links of every context and the species")
    batch_size: int = with_default("batch_size", 16)
    learning_rate: float = Field(1e-3, gt=0, description="of Adam, for everything but the image network")
    image_learning_rate: float | None = Field(
        None, gt=0, description="of encoder and linear layer; unset = 3e-5 for a trained encoder, 1e-3 on features"
    )
    schedule: Literal["official", "interleaved"] = Field(
        "official", description="pass after pass, or the batches of all passes spread evenly over the epoch"
    )
    taxonomy_passes: int = Field(
        1, ge=1, description="passes over the taxonomy an epoch; one (official) is next to nothing on a small tree"
    )
    extra_species_pass: bool = Field(
        True, description="a second species pass with place and time but without taxonomy (official)"
    )
    balance: Literal["none", "sampling", "logit_adjustment"] = Field(
        "none", description="balance of classes: as they come, each drawn equally often, or logits adjusted by counts"
    )
    tau: float = Field(1.0, gt=0, description="strength of logit_adjustment")
    monitor: Literal["macro_f1", "accuracy"] = Field(
        "macro_f1", description="of validation images; selects the best epoch (official: accuracy)"
    )
    patience: int | None = Field(
        5, ge=1, description="epochs without improvement after which training stops; a tie is one (official)"
    )
    precision: TrainingPrecision = with_default("precision", "fp32")
    seed: int = with_default("seed", 0)
    log_every: int = with_default("log_every", 50)
    checkpoint_every: int = with_default("checkpoint_every", 2000)
    workers: int = with_default("workers", 2)

    def resolve(self, steps_per_epoch: int, *, selects: bool) -> TrainingSettings:
        """Return the loop's settings.

        Args:
            selects: there are validation images to choose the best epoch by.
        """
        selection: dict[str, Any] = {}
        if selects:
            # A tie counts as an improvement, as in the released code: of equal epochs the last one is kept.
            selection = {"monitor": self.monitor, "monitor_mode": "max", "ties": "later", "restore_best": True}
            selection |= {"patience": self.patience}
        return TrainingSettings(
            steps=self.epochs * steps_per_epoch,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            # AdamW without decay is Adam; betas and eps are PyTorch's.
            weight_decay=0.0,
            betas=(0.9, 0.999),
            eps=1e-8,
            schedule="constant",
            gradient_clip_norm=None,
            precision=self.precision,
            seed=self.seed,
            log_every=self.log_every,
            checkpoint_every=self.checkpoint_every,
            keep_checkpoints=1,
            workers=self.workers,
            **selection,
        )


class SpeciesData(Settings):
    """Images to train, select and test on."""

    train: tuple[str, ...] = Field(("train",), min_length=1, description="splits that are trained on")
    validation: str = Field("validation", description="split that selects the best epoch; '' = none, the last is taken")
    features: str | None = Field(
        None, description="npz or Parquet with columns key and vector, instead of an encoder's features"
    )


class SpeciesRecipe(Settings):
    """Everything that decides one run of `foveate species train`.

    Example:
        >>> SpeciesRecipe(method="erm", view={"view": "whole"}).view.view
        'whole'
    """

    config_version: Literal[1] = 1
    method: Literal["cosmo", "erm", "linear_probe", "mlp_concat"] = Field(
        "cosmo",
        description="cosmo = the paper's method; baselines: erm = linear head, linear_probe = solved, not trained, "
        "mlp_concat = place and hour as inputs",
    )
    encoder: dict[str, Any] = Field(
        _ENCODER,
        description="`kind` and the fields of that encoder, or its name: a folder, or KIND:NAME such as "
        "open_clip:OWNER/NAME, dinov2:OWNER/NAME or timm:NAME.TAG",
    )
    train_encoder: bool = Field(
        False,
        description="train the encoder as well (official), instead of cached features; of lite0 with "
        "encoder.train_last_stages=true the last two stages, on cached maps",
    )
    graph: GraphSettings = GraphSettings()
    view: CropSettings = CropSettings()
    data: SpeciesData = SpeciesData()
    training: LinkTraining = LinkTraining()
    prior: Literal["histogram", "learned", "none"] = Field(
        "histogram", description="prior of place, hour and season that is fitted beside the model"
    )

    @field_validator("encoder", mode="before")
    @classmethod
    def _keep_kind(cls, value: Any) -> Any:
        """Resolve a name; fields without a kind (encoder.image_size=64 and nothing else) are of the default encoder."""
        if isinstance(value, str):
            # Only a name needs the encoders, and with them torch.
            from foveate.vision.registry import parse_encoder

            return {**_ENCODER} if value == "lite0" else parse_encoder(value)
        return {**_ENCODER, **value} if isinstance(value, dict) and "kind" not in value else value

    @property
    def image_learning_rate(self) -> float:
        """Learning rate of the image network."""
        if self.training.image_learning_rate is not None:
            return self.training.image_learning_rate
        # 3e-5 keeps pretrained weights close to their start; a new layer on features starts from random weights.
        return 3e-5 if self.train_encoder else 1e-3

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that are not at their defaults and have no effect, with what makes them idle."""
        graph, training, method = self.graph, self.training, f"method '{self.method}'"
        is_cosmo, is_linear, contexts = (
            self.method == "cosmo",
            self.method in ("erm", "linear_probe"),
            {*graph.contexts},
        )
        named = f"graph.contexts {', '.join(graph.contexts) or 'none'}"
        rules: list[tuple[bool, str, str]] = [
            (not is_cosmo, method, "graph.score graph.contexts training.schedule graph.conve_rows " + _OF_PASSES),
            # Only ConvE reshapes a vector to rows.
            (graph.score != "conve", "another score", "graph.conve_rows"),
            (is_linear, method, "graph.dim graph.start graph.place_input graph.hour_input graph.candidates"),
            # Encoder and linear layer learn at the rate of images, and nothing else is there.
            (is_linear, method, "training.learning_rate"),
            (self.method == "linear_probe", method, _OF_STEPS),
            (is_cosmo and "taxonomy" not in contexts, named, "training.taxonomy_passes"),
            (is_cosmo and contexts != {"place", "time"}, named, "training.extra_species_pass"),
            (is_cosmo and "place" not in contexts, named, "graph.place_input"),
            (is_cosmo and "time" not in contexts, named, "graph.hour_input"),
            (is_cosmo and not contexts & {"place", "time"}, named, "graph.start graph.candidates"),
            (training.balance != "logit_adjustment", "another balance", "training.tau"),
            (not self.data.validation, "no data.validation", "training.monitor training.patience"),
            (self.data.features is not None, "data.features", "encoder view"),
        ]
        # Report only fields that differ from their defaults: every recipe has all fields, but users set only these.
        idle: dict[str, str] = {}
        default = SpeciesRecipe()
        for is_idle, reason, names in rules:
            for name in names.split() if is_idle else ():
                if _read(self, name) != _read(default, name):
                    idle.setdefault(name, reason)
        return idle

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.data.features is not None and self.train_encoder:
            raise UserError("data.features: an encoder that is trained needs images (got train_encoder: true)")
        return self


def _read(recipe: Settings, name: str) -> Any:
    value: Any = recipe
    for part in name.split("."):
        value = getattr(value, part)
    return value
