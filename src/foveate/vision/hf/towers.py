"""Base of the towers of transformers: turns a loaded network into an encoder, and records where it came from.

Not a kind of encoder itself: `clip`, `siglip` and `dinov2` define which network they load, which part of it
is the tower, and how an image or a text runs through it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import safe_open
from torch import Tensor, nn

from foveate.core.errors import UserError
from foveate.core.hub import Checkpoint, check_loaded, fetch, loading, quiet
from foveate.vision.backbones import (
    BackboneImageEncoder,
    BackboneTextEncoder,
    choose_projection,
    given_folder,
    keep_no_activations,
    on_meta,
)
from foveate.vision.encoder import check_layer
from foveate.vision.hf.processors import preprocess_of
from foveate.vision.tower_options import FreezableImageOptions, FreezableTextOptions, TowerOptions

# Load one tower of a model in the format of transformers, strictly, or build it from its configuration alone.


# Which of our encoders reads what config.json calls itself.
KIND_OF_TYPE = {
    "clip": "clip",
    "clip_vision_model": "clip",
    "clip_text_model": "clip",
    "siglip": "siglip",
    "siglip_vision_model": "siglip",
    "siglip_text_model": "siglip",
    "dinov2": "dinov2",
    "dinov2_with_registers": "dinov2",
}


@dataclass(frozen=True)
class Loaded:
    """A tower and where it came from.

    Attributes:
        model: of transformers; None once the encoder has taken it.
        config: its configuration as JSON values. source, revision: as given; the commit where there is one.
        checkpoint: the folder; None where the tower was built from a configuration.
    """

    model: Any
    config: dict[str, Any]
    source: str | None
    revision: str | None
    checkpoint: Checkpoint | None

    def without_model(self) -> Loaded:
        """Drop the network, which is a submodule of the encoder by now."""
        return replace(self, model=None)


def load_tower(
    kind: str,
    model_class: Any,
    config_class: Any,
    options: TowerOptions,
    *,
    types: Sequence[str],
) -> Loaded:
    """Load a tower in float32: trained, or untrained where `config` is given or models are only counted.

    Args:
        kind: name of the encoder, for errors. types: values of `model_type` that it reads.
        model_class, config_class: of transformers.
        options: with a `config` as `provenance` keeps it, `source` is only a label.

    Raises:
        UserError: for a source out of reach, of another type, as a pickle, or with tensors missing.
    """
    source, revision, config = options.source, options.revision, options.config
    if config is not None:
        with quiet():
            model = model_class(config_class.from_dict(dict(config)))
        return Loaded(model, dict(config), source, revision, None)
    if source is None:
        raise UserError(f"source of '{kind}': missing; expected a folder or OWNER/NAME on the hub")
    checkpoint = fetch(source, revision=revision, offline=options.offline, field=f"source of '{kind}'")
    raw_config = checkpoint.config()
    model_type = raw_config.get("model_type")
    if model_type not in types:
        other = KIND_OF_TYPE.get(str(model_type))
        hint = f"; kind: {other} reads it" if other and other != kind else ""
        raise UserError(
            f"{source}: '{kind}' cannot read its model_type (got '{model_type}'); expected {', '.join(types)}{hint}"
        )
    with loading(source):
        settings = config_class.from_pretrained(str(checkpoint.folder))
        if "projection_dim" in raw_config:  # of both towers; the towers' own copies of it are not kept up to date
            settings.projection_dim = raw_config["projection_dim"]
        if on_meta():
            model = model_class(settings)
        else:
            # Refuses a pickle, before transformers looks for weights.
            checkpoint.weights()
            model, report = model_class.from_pretrained(
                str(checkpoint.folder),
                config=settings,
                use_safetensors=True,
                # By default transformers 5 would keep the dtype of the file, often half precision.
                dtype=torch.float32,
                output_loading_info=True,
            )
            check_loaded(report, name=source)
    return Loaded(model, _json(settings), source, checkpoint.commit or revision, checkpoint)


def _json(settings: Any) -> dict[str, Any]:
    """Return what the network is built from, without where it was read from and by which release."""
    config = json.loads(settings.to_json_string(use_diff=False))
    return {name: value for name, value in config.items() if name not in ("_name_or_path", "transformers_version")}


def provenance(loaded: Loaded) -> dict[str, Any]:
    """Return options that build the tower again without weights; `source` and `revision` stay as a record."""
    return {"config": loaded.config, "source": loaded.source, "revision": loaded.revision}


def tokenizer_folder(loaded: Loaded, tokenizer: str | None) -> Path | None:
    """Return the folder of the tokenizer's files: the field `tokenizer`, else the source; None while only counting."""
    if tokenizer is not None:
        return given_folder(tokenizer)
    return None if loaded.checkpoint is None or on_meta() else loaded.checkpoint.folder


def trained_scale(checkpoint: Checkpoint | None) -> tuple[float | None, float | None]:
    """Read 1 / temperature and bias that were trained with the weights; None where the files have none."""
    values: dict[str, float] = {}
    for path in [] if checkpoint is None else sorted(checkpoint.folder.glob("*.safetensors")):
        with safe_open(path, framework="pt", device="cpu") as stored:
            names = set(stored.keys())
            for name in ("logit_scale", "logit_bias"):
                if name in names:
                    # A scalar in CLIP, of shape [1] in SigLIP.
                    values[name] = float(stored.get_tensor(name).reshape(-1)[0])
    scale = values.get("logit_scale")
    return None if scale is None else math.exp(scale), values.get("logit_bias")


class TransformersImageEncoder(BackboneImageEncoder):
    """An image tower of transformers.

    Args:
        loaded: the network. trunk: the part of it that is the tower.
        projection: the checkpoint's, of the pooled vector; None for a new one to `embed_dim`. projection_width: of its
            output.

    Attributes:
        prefix_tokens: class and register tokens in front of the patches. final_norm: attribute of the trunk.
        interpolates_on_request: whether position embeddings fit other sizes only when the call says so.
        trained_geometry: how the library brings whole images into the input.
    """

    prefix_tokens: int = 0
    trained_geometry: ClassVar[str] = "center_crop"
    final_norm: ClassVar[str] = "post_layernorm"
    interpolates_on_request: ClassVar[bool] = True

    @staticmethod
    def read_joint_width(folder: str) -> int | None:
        """Return the width of a folder's joint embedding; None for a model without one."""
        return None

    def __init__(
        self,
        loaded: Loaded,
        options: FreezableImageOptions,
        *,
        kind: str,
        trunk: Any,
        projection: nn.Module | None,
        projection_width: int | None,
    ) -> None:
        width, patch = loaded.model.config.hidden_size, loaded.model.config.patch_size
        preprocess = preprocess_of(loaded.checkpoint, options, patch=patch, kind=kind)
        super().__init__(
            trunk=trunk,
            proj=choose_projection(
                projection,
                inputs=width,
                embed_dim=options.embed_dim,
                projection_width=projection_width,
                name=loaded.source or kind,
            ),
            width=width,
            pooled_width=width,
            embed_dim=_joint_width(projection, projection_width, options.embed_dim),
            patch=patch,
            preprocess=preprocess,
            frozen=options.frozen,
            precision=options.precision,
            kind=kind,
        )
        self._loaded = loaded.without_model()
        _note(self, loaded, has_projection=projection is not None, checkpointing=options.checkpointing)

    def run_to_layer(
        self, pixels_B3HW: Tensor, layer: int, *, norm: bool, grid: tuple[int, int]
    ) -> tuple[Tensor, tuple[int, int], int]:
        """See `BackboneImageEncoder.run_to_layer`."""
        options = {"interpolate_pos_encoding": True} if self.interpolates_on_request else {}
        states = self.trunk(pixel_values=pixels_B3HW, output_hidden_states=True, **options).hidden_states
        # The first state is the embedding, in front of all layers.
        tokens_BLD = states[1 + check_layer(layer, len(states) - 1, kind=self.kind)]
        final_norm = getattr(self.trunk, self.final_norm)
        return final_norm(tokens_BLD) if norm else tokens_BLD, grid, self.prefix_tokens

    def architecture(self) -> dict[str, Any]:
        """Return configuration, preprocessing and commit, instead of weights to fetch."""
        return {**provenance(self._loaded), "preprocess": self.preprocess.to_dict(), "image_size": None}


class TransformersTextEncoder(BackboneTextEncoder):
    """A text tower of transformers with its tokenizer.

    Args:
        pooled_width: of the pooled vector. others: see `TransformersImageEncoder`.
    """

    def __init__(
        self,
        loaded: Loaded,
        options: FreezableTextOptions,
        *,
        kind: str,
        trunk: Any,
        projection: nn.Module | None,
        projection_width: int,
        pooled_width: int,
    ) -> None:
        super().__init__(
            trunk=trunk,
            proj=choose_projection(
                projection,
                inputs=pooled_width,
                embed_dim=options.embed_dim,
                projection_width=projection_width,
                name=loaded.source or kind,
            ),
            pooled_width=pooled_width,
            embed_dim=_joint_width(projection, projection_width, options.embed_dim),
            length=loaded.model.config.max_position_embeddings,
            tokenizer=tokenizer_folder(loaded, options.tokenizer),
            frozen=options.frozen,
            precision=options.precision,
            kind=kind,
        )
        self._loaded = loaded.without_model()
        _note(self, loaded, has_projection=projection is not None, checkpointing=options.checkpointing)

    def architecture(self) -> dict[str, Any]:
        """Return configuration and commit, instead of weights to fetch."""
        return {**provenance(self._loaded), "tokenizer": None}


def _joint_width(projection: nn.Module | None, projection_width: int | None, embed_dim: int | None) -> int:
    return int((embed_dim if projection is None else projection_width) or 0)


def _note(
    encoder: TransformersImageEncoder | TransformersTextEncoder,
    loaded: Loaded,
    *,
    has_projection: bool,
    checkpointing: bool,
) -> None:
    """Record what is untrained and the temperature trained with the weights; turn on activation checkpointing."""
    encoder.fresh_parts = () if has_projection else ("proj",)
    # A temperature belongs to the projection that it was trained with.
    if has_projection:
        encoder.trained_scale, encoder.trained_bias = trained_scale(loaded.checkpoint)
    if checkpointing:
        keep_no_activations(encoder.trunk)
