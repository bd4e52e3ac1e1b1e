"""Our forward pass against LLaVA, LLaVA-NeXT and Idefics3 of transformers on the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as t
from torch import Tensor

from foveate.core.recipes import validate
from foveate.language.packing import Tokens, pack_texts
from foveate.multimodal.build import build_model
from foveate.multimodal.model import MultimodalModel
from foveate.multimodal.settings import MultimodalSettings
from foveate.vision.registry import seeded

SIDE, IMAGE, ROWS = 32, 90, 91
TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 400,
}  # fmt: skip
VIT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8,
    "image_size": SIDE,
}  # fmt: skip
IDS = [[5, 17, 3, 60, 8], [44, 9, 2]]


def shake(model: Any) -> Any:
    """Weights apart, norms and biases off their ones and zeros, so that forgetting one is seen."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def build_theirs(family: str, decoder: str) -> Any:
    text = t.AutoConfig.for_model(decoder, **TEXT, vocab_size=ROWS, tie_word_embeddings=True)
    with seeded(0):
        if family == "idefics3":
            config: Any = t.Idefics3Config(
                vision_config=VIT, text_config=text, scale_factor=2, image_token_id=IMAGE, tie_word_embeddings=True
            )
            return shake(t.Idefics3ForConditionalGeneration(config))
        siglip = family.endswith("siglip")
        vision = t.SiglipVisionConfig(**VIT) if siglip else t.CLIPVisionConfig(**VIT)
        strategy = "full" if siglip else "default"
        fields = {
            "vision_config": vision,
            "text_config": text,
            "image_token_index": IMAGE,
            "vision_feature_select_strategy": strategy,
            "tie_word_embeddings": True,
        }
        if family.startswith("llava_next"):
            config = t.LlavaNextConfig(image_grid_pinpoints=[[2 * SIDE, 2 * SIDE]], **fields)
            return shake(t.LlavaNextForConditionalGeneration(config))
        return shake(t.LlavaForConditionalGeneration(t.LlavaConfig(**fields)))


def build_ours(theirs: Any, family: str) -> MultimodalModel:
    """Our model with the weights of theirs."""
    idefics = family == "idefics3"
    model = theirs.model
    vision = theirs.config.vision_config.to_dict()
    kind = "siglip" if idefics or family.endswith("siglip") else "clip"
    if idefics:
        vision = {**vision, "model_type": "siglip_vision_model"}
    content = {
        "tower": {
            "kind": kind, "config": vision, "layer": -1 if idefics else -2, "norm": idefics,
            "preprocess": {"size": SIDE, "mean": [0.5] * 3, "std": [0.5] * 3, "geometry": "stretch"},
        },
        "connector": {"kind": "pixel_shuffle", "factor": 2} if idefics else {"kind": "mlp"},
        "language": {**TEXT, "model_type": theirs.config.text_config.model_type},
        "visual_positions": False,
    }  # fmt: skip
    ours = build_model(validate(MultimodalSettings, content, where="test"), vocabulary=ROWS, region_id=ROWS - 1)
    tower: Any = ours.tower
    trunk = (model.vision_model if idefics else model.vision_tower).state_dict()
    missing = tower.encoder.trunk.load_state_dict(trunk, strict=not idefics)
    # Idefics3 has no pooling head, which is of SigLIP's joint space.
    assert all(name.startswith("head.") for name in missing.missing_keys)
    assert not missing.unexpected_keys
    ours.connector.load_state_dict((model.connector if idefics else model.multi_modal_projector).state_dict())
    ours.language_model.base_model.load_state_dict((model.text_model if idefics else model.language_model).state_dict())
    ours.visual_gain.data.fill_(1)
    return ours.eval()


def pixels(views: int) -> Tensor:
    return torch.randn(views, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("decoder", ["llama", "qwen2"])
@pytest.mark.parametrize("family", ["llava", "llava_siglip", "idefics3"])
@torch.no_grad()
def test_logits_are_theirs(family: str, decoder: str) -> None:
    theirs = build_theirs(family, decoder)
    ours = build_ours(theirs, family)
    views = pixels(3)
    # Two questions in one batch, with two images and one: theirs alone, ours packed.
    views_BK = torch.tensor([[0, 1], [2, -1]])
    texts = pack_texts([[Tokens(ids, [False] * len(ids))] for ids in IDS], pad=0)
    logits = ours.logits(ours.hidden_states(ours.see(views), views_BK, texts))
    for row, (ids, images) in enumerate(zip(IDS, ([0, 1], [2]), strict=True)):
        count = len(images) * ours.connector.num_tokens
        ids_1L = torch.tensor([[IMAGE] * count + ids])
        values = views[images][None] if family == "idefics3" else views[images]
        expected = theirs(input_ids=ids_1L, pixel_values=values).logits[0, count:]
        torch.testing.assert_close(logits[row, : len(ids)], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["llava_next", "llava_next_siglip"])
@torch.no_grad()
def test_llava_next_from_views_and_newlines(family: str) -> None:
    theirs = build_theirs(family, "llama")
    ours = build_ours(theirs, family)
    views = pixels(5)
    overview_LE, *tiles = ours.see(views).tokens_VTE
    side = SIDE // 8
    # Two by two tiles as one map, its rows behind one another, a newline behind each.
    map_HWE = torch.stack(tiles).view(2, 2, side, side, -1).permute(0, 2, 1, 3, 4).reshape(2 * side, 2 * side, -1)
    newline = theirs.model.image_newline.expand(2 * side, 1, -1)
    prefix_PE = torch.cat([overview_LE, torch.cat([map_HWE, newline], dim=1).flatten(0, 1)])
    embedded_TE = ours.language_model.get_input_embeddings()(torch.tensor(IDS[0]))
    logits = ours.language_model(inputs_embeds=torch.cat([prefix_PE, embedded_TE])[None]).logits[0, len(prefix_PE) :]
    ids_1L = torch.tensor([[IMAGE] * len(prefix_PE) + IDS[0]])
    sizes = torch.tensor([[2 * SIDE, 2 * SIDE]])
    expected = theirs(input_ids=ids_1L, pixel_values=views[None], image_sizes=sizes).logits[0, len(prefix_PE) :]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
