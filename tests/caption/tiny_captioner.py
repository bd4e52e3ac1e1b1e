"""A tiny multimodal model folder with random weights, as if trained on caption requests."""

from __future__ import annotations

from pathlib import Path

import torch

import tiny_mllm
from foveate.language.vocabulary import train_tokenizer, wrap_tokenizer
from foveate.multimodal.build import build_model
from foveate.multimodal.folder import save_model
from foveate.multimodal.settings import MultimodalSettings
from foveate.records.record import CAPTION_GROUPS

TEXTS = ["A red disc is left of a blue square.", "There is a dog on gray ground.", "Write a caption, 8 to 11 tokens."]


def save_captioner(folder: Path, *, groups: tuple[str, ...] = CAPTION_GROUPS, positions: int = 1024) -> Path:
    """Save a model whose answers differ from image to image; without caption groups it takes the long prompts."""
    model = tiny_mllm.make_recipe().model
    language = {**model.language, "max_position_embeddings": positions, "initializer_range": 0.3}  # type: ignore[dict-item]
    settings = MultimodalSettings.model_validate(model.model_dump() | {"language": language})
    backend = train_tokenizer([f" {text}" for text in TEXTS], size=300)
    tokenizer = wrap_tokenizer(backend, source="test")
    torch.manual_seed(0)
    network = build_model(settings, vocabulary=tokenizer.size, region_id=tokenizer.special["<region>"])
    for parameter in network.parameters():
        # What starts at zero would hide the image.
        if not parameter.any():
            parameter.data = torch.randn(parameter.shape) * 0.3
    return save_model(
        folder,
        settings=settings,
        weights=network.state_dict(),
        tokenizer_json=backend.to_str(),
        preprocess=network.tower.preprocess.to_dict(),
        card="",
        provenance={"groups": list(groups)},
    )
