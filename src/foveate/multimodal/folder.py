"""Model folder of a multimodal model: config, weights, tokenizer, preprocessing, metrics and a card.

The frozen part of a tower is not in it: it comes with a package or the hub, and is checked when it is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from foveate.core.errors import UserError
from foveate.core.model_folder import (
    CARD,
    CONFIG,
    METRICS,
    PREPROCESS,
    WEIGHTS,
    check_header,
    check_tensors,
    read_config,
    read_tensors,
    write_model_folder,
)
from foveate.core.recipes import validate
from foveate.language.tokenizer import Tokenizer
from foveate.language.vocabulary import read_tokenizer, word_marks
from foveate.multimodal.build import build_model
from foveate.multimodal.model import MultimodalModel
from foveate.multimodal.prompts import PromptWriter
from foveate.multimodal.settings import MultimodalSettings
from foveate.vision.preprocess import check_preprocess

KIND = "multimodal"
FORMAT = 1
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class LoadedModel:
    """A multimodal model, ready to be asked.

    Attributes:
        model: in evaluation mode, without gradients.
        prompts: writes questions for it.
        tokenizer: of its language model.
        provenance: how it was trained.
    """

    model: MultimodalModel
    prompts: PromptWriter
    tokenizer: Tokenizer
    provenance: dict[str, Any]


def save_model(
    folder: Path,
    *,
    settings: MultimodalSettings,
    weights: Mapping[str, Tensor],
    tokenizer_json: str,
    preprocess: Mapping[str, Any],
    card: str,
    metrics: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a model folder atomically; return it.

    Args:
        weights: name -> tensor of the model's state; the tied head is left out.
        tokenizer_json: content of tokenizer.json.
        dtype: of the stored weights; bfloat16 halves the file.
    """
    tensors = {name: value.to(dtype) for name, value in stored_state(weights).items()}
    return write_model_folder(
        folder,
        kind=KIND,
        format=FORMAT,
        config={"provenance": dict(provenance or {}), "model": settings.model_dump(mode="json")},
        tensors=tensors,
        files={TOKENIZER: tokenizer_json, PREPROCESS: preprocess, METRICS: metrics or {}, CARD: card},
    )


def load_model(folder: Path, *, device: torch.device | None = None) -> LoadedModel:
    """Load a model folder for asking.

    Raises:
        UserError: the folder holds no multimodal model, one of another format, or is incomplete or damaged.
    """
    config = read_config(
        folder, kind=KIND, formats=(FORMAT,), fields={"model": dict, "provenance": dict}, label="multimodal model"
    )
    settings = validate(MultimodalSettings, config["model"], where=str(folder / CONFIG))
    path = folder / TOKENIZER
    if not path.is_file():
        raise UserError(f"{path}: no such file; the model folder is incomplete")
    tokenizer = read_tokenizer(path)

    def build() -> MultimodalModel:
        return build_model(settings, vocabulary=tokenizer.size, region_id=tokenizer.special["<region>"])

    def build_stored() -> Any:
        state = stored_state(build().state_dict())
        return SimpleNamespace(state_dict=lambda: state)

    check_header(folder / WEIGHTS, config["model"]["language"], build_stored, where=folder / CONFIG)
    model = build()
    check_preprocess(folder / PREPROCESS, model.tower.preprocess)
    load_weights(model, folder / WEIGHTS)
    model.to(device or torch.device("cpu")).eval().requires_grad_(False)
    prompts = PromptWriter(tokenizer, word_marks(tokenizer), regions=settings.regions)
    return LoadedModel(model, prompts, tokenizer, config["provenance"])


def stored_state(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights that a folder holds: without the tied head and the tower's unused joint embedding."""
    return {
        name: value
        for name, value in weights.items()
        if not name.endswith("lm_head.weight") and not name.startswith("tower.proj.")
    }


def load_weights(model: MultimodalModel, path: Path) -> None:
    """Load the weights of a file into a model; all names and shapes must match."""
    tensors = read_tensors(path)
    check_tensors(tensors, stored_state(model.state_dict()), path)
    # The head is the table of embeddings: loading one loads both.
    model.load_state_dict({name: value.float() for name, value in tensors.items()}, strict=False)
