"""Tiny models that other programs can hold, for tests of exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from foveate.core.recipes import validate
from foveate.language.chat import Chat
from foveate.language.vocabulary import train_tokenizer, wrap_tokenizer
from foveate.multimodal.build import build_model
from foveate.multimodal.folder import LoadedModel, save_model
from foveate.multimodal.prompts import PromptWriter
from foveate.multimodal.settings import MultimodalSettings
from vision.foreign import SIZE

TEXTS = ["What is in the image?", "Where is the red disc?", "Is there a blue square?", "a red disc", "yes", "no"]
CLIP = {"kind": "clip", "layer": -2}
SIGLIP = {"kind": "siglip", "layer": -1, "norm": True, "geometry": "stretch"}


def build(tower: dict[str, Any], kind: str, /, **changes: Any) -> LoadedModel:
    content: dict[str, Any] = {
        "tower": tower,
        "connector": {"kind": kind},
        "language": {
            "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 160,
        },
        "max_images": 2,
        "visual_positions": False,
    }  # fmt: skip
    settings = validate(MultimodalSettings, {**content, **changes}, where="test")
    tokenizer = wrap_tokenizer(train_tokenizer([f" {text}" for text in TEXTS], size=300), source="test")
    model = build_model(settings, vocabulary=tokenizer.size, region_id=tokenizer.special["<region>"])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Apart, so that answers depend on the image and that a factor or bias left out is seen.
            if name.startswith(("connector", "language_model.model.layers")):
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        model.visual_gain.fill_(0.7)
    prompts = PromptWriter(Chat(tokenizer, "words"), regions=settings.regions)
    return LoadedModel(model.eval().requires_grad_(False), prompts, tokenizer, {})


def save(loaded: LoadedModel, folder: Path) -> Path:
    return save_model(
        folder, settings=loaded.model.settings, weights=loaded.model.state_dict(),
        tokenizer_json=loaded.tokenizer.backend.to_str(),  # type: ignore[attr-defined]
        preprocess=loaded.model.tower.preprocess.to_dict(), card="---\nlicense: other\n---\n# A model\n",
    )  # fmt: skip


def draw(width: int = SIZE, height: int = SIZE, *, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))
