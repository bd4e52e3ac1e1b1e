"""Load one tower of a model in the format of transformers, strictly, or build it from its configuration alone."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from foveate.core.errors import UserError
from foveate.core.hub import Checkpoint, check_loaded, fetch, loading, quiet
from foveate.vision.backbones import given_folder, on_meta
from foveate.vision.tower_options import TowerOptions

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
