"""The modules that become graphs: what the model computes, and no size of a batch is written into them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exported import BOXES, OWNERS, noise

import tiny
from foveate.pretrain.onnx_parts import ImageGraph, PhraseGraph, RegionGraph
from foveate.pretrain.train import build_model
from foveate.vision.lite0 import Lite0Encoder

LITE0 = {
    "kind": "lite0",
    "image_size": 64,
    "width": 32,
    "layers": 1,
    "heads": 2,
    "pool": "attention",
    "precision": "float32",
}
PROMPTERS: list[dict[str, Any]] = [
    {"pool": "prompt"},
    {"pool": "all", "norm": "post", "text_prompt_normalized": True},
    {"pool": "all", "image_pos": "none", "corner_embedding": False},
]


@torch.no_grad()
@pytest.mark.parametrize("options", PROMPTERS, ids=str)
def test_regions_and_phrases_are_the_models(options: dict[str, Any]) -> None:
    model = build_model(tiny.recipe(regions={"prompter": options})).eval()
    assert model.prompter is not None
    assert model.box_head is not None
    tokens, grid = model.encode_image_tokens(noise()), model.image_encoder.grid
    z_RE = RegionGraph(model.prompter, grid)(tokens.tokens, BOXES, OWNERS)
    expected = F.normalize(model.encode_regions(tokens, BOXES, OWNERS), dim=-1)
    torch.testing.assert_close(z_RE, expected, atol=2e-6, rtol=0)
    texts_RE = model.embed_texts(["a red disc", "x", "a blue square", "y"])
    found_R4 = PhraseGraph(model.prompter, model.box_head, grid)(tokens.tokens, texts_RE, OWNERS)
    torch.testing.assert_close(found_R4, model.ground(tokens, texts_RE, OWNERS), atol=2e-6, rtol=0)


@pytest.mark.parametrize("kind", ["open_clip", "lite0"])
def test_the_size_of_the_batch_is_free(kind: str) -> None:
    recipe = tiny.recipe() if kind == "open_clip" else tiny.recipe().model_copy(update={"image_encoder": LITE0})
    model = build_model(recipe).eval().requires_grad_(False)
    graph = ImageGraph(model.image_encoder).eval().requires_grad_(False)
    assert isinstance(model.image_encoder, Lite0Encoder) == (kind == "lite0")
    batch = torch.export.Dim("batch", min=1)
    traced = torch.export.export(graph, (noise(batch=2),), dynamic_shapes={"pixels": {0: batch}}).module()
    for count in (1, 3):
        embedding_BE, tokens_BLD = traced(noise(batch=count))
        tokens = model.encode_image_tokens(noise(batch=count))
        torch.testing.assert_close(tokens_BLD, tokens.tokens, atol=2e-3, rtol=0)
        torch.testing.assert_close(embedding_BE, model.encode_image(tokens), atol=2e-3, rtol=0)
