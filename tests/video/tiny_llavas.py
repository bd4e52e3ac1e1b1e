"""Tiny random models of the five LLaVA classes of transformers, saved in the real format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as t
from PIL import Image

from foveate.vision.registry import seeded

GOLDENS = Path(__file__).parents[1] / "goldens" / "slowfast"
FAMILIES = ("llava", "llava_next", "llava_onevision", "vipllava", "llava_next_video")
SIDE, PATCH = 32, 8
_TOWER = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": SIDE,
    "patch_size": PATCH,
}  # fmt: skip
TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


def tokenizer(name: str = "tok_bos.json") -> Any:
    return t.PreTrainedTokenizerFast(
        tokenizer_file=str(GOLDENS / name), bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def build(family: str, *, text: dict[str, Any] | None = None, text_type: str = "llama") -> Any:
    """Build a model; `text` holds fields of its text config."""
    fields: dict[str, Any] = {
        "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 340, "max_position_embeddings": 512, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 3,
    } | (text or {})  # fmt: skip
    language = t.AutoConfig.for_model(text_type, **fields)
    tower = t.SiglipVisionConfig(**_TOWER) if family == "llava_onevision" else t.CLIPVisionConfig(**_TOWER)
    options: dict[str, Any] = {"image_token_index": 4}
    if family in ("llava_next", "llava_next_video", "llava_onevision"):
        options["image_grid_pinpoints"] = [[64, 64]]
    if family == "llava_onevision":
        options = {"image_token_id": 4, "image_grid_pinpoints": [[64, 64]], "vision_aspect_ratio": "anyres_max_9"}
    if family == "vipllava":
        options["vision_feature_layers"] = [-2, -1, 1]
    config = t.AutoConfig.for_model(family, vision_config=tower, text_config=language, **options)
    with seeded(0):
        model = t.AutoModelForImageTextToText.from_config(config).eval()
        with torch.no_grad():
            # Apart, so that answers depend on the frames: at their usual scale random models repeat one token.
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(3)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 3
    return model.requires_grad_(False)


def save(family: str, folder: Path, *, model: Any = None) -> Path:
    """Save a model with tokenizer, chat template and image processor."""
    (build(family) if model is None else model).save_pretrained(folder)
    tokens = tokenizer()
    tokens.chat_template = TEMPLATE
    tokens.save_pretrained(folder)
    siglip = family == "llava_onevision"
    images = t.SiglipImageProcessor(size={"height": SIDE, "width": SIDE}, resample=3) if siglip else (
        t.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    )  # fmt: skip
    images.save_pretrained(folder)
    return folder


def frames(count: int = 12, *, seed: int = 0) -> list[Image.Image]:
    """Draw frames of noise with a moving square."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (count, 24, 40, 3), dtype=np.uint8)
    for number in range(count):
        pixels[number, 4:12, number : number + 8] = (255, 0, 0)
    return [Image.fromarray(frame) for frame in pixels]
