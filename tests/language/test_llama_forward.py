"""The forward pass of Llamas against that of transformers: heads, biases, padding; what it leaves alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from foveate.language.llama_forward import LlamaForward

LENGTHS = (13, 1, 3, 9)


def build_llama(**changes: Any) -> Any:
    torch.manual_seed(3)
    fields = dict(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**fields | changes)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "norm.weight")):
            nn.init.normal_(parameter, 0.5)
    return model


@pytest.mark.parametrize("padding", [0, 4])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        {"head_dim": 16, "rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}},
    ],
)
@torch.inference_mode()
def test_parts_of_a_sequence_are_those_of_transformers(changes: dict[str, Any], padding: int) -> None:
    # Two of them, since transformers hooks into a model that it has read hidden states of.
    model, hooked, random = build_llama(**changes), build_llama(**changes), torch.Generator().manual_seed(5)
    caches = DynamicCache(config=model.config), DynamicCache(config=model.config)
    mask_BL, before = torch.ones(2, 0, dtype=torch.int64), 0
    for length in LENGTHS:
        embeddings_BTD = torch.randn(2, length, 32, generator=random)
        mask_BL = torch.cat([mask_BL, mask_BL.new_ones(2, length)], dim=1)
        # The second row is padded on the left, as a batch of prompts of several lengths is.
        mask_BL[1, :padding] = 0
        positions_BT = (mask_BL.cumsum(dim=1) - 1).clamp(min=0)[:, before:]
        expected = hooked(
            inputs_embeds=embeddings_BTD, position_ids=positions_BT, attention_mask=mask_BL, use_cache=True,
            past_key_values=caches[0], output_hidden_states=True,
        )  # fmt: skip
        forward = LlamaForward.of(model, caches[1])
        assert forward is not None
        states_BTD = forward.states(
            embeddings_BTD, caches[1], positions_BT=positions_BT, mask_BL=mask_BL if padding else None
        )
        is_text_BT = mask_BL[:, before:].bool()

        def compare(ours: Tensor, theirs: Tensor, is_text_BT: Tensor = is_text_BT) -> None:
            torch.testing.assert_close(ours[is_text_BT], theirs[is_text_BT], rtol=1e-4, atol=2e-5)

        compare(states_BTD, expected.hidden_states[-1])
        compare(forward.logits(states_BTD), expected.logits)
        before += length
    assert caches[0].get_seq_length() == caches[1].get_seq_length() == sum(LENGTHS)


def test_other_models_are_left_to_transformers() -> None:
    model = build_llama()
    cache = DynamicCache(config=model.config)
    assert LlamaForward.of(model, cache) is not None
    assert LlamaForward.of(model.train(), cache) is None
    model.eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert LlamaForward.of(model, cache) is None
    hook = model.model.layers[1].mlp.up_proj.register_forward_hook(lambda *_: None)
    assert LlamaForward.of(model, cache) is None
    hook.remove()
    for part in (model, model.model, model.model.layers[0].mlp):
        part.forward = part.forward  # as libraries that place layers on devices do
        assert LlamaForward.of(model, cache) is None
        del part.forward
    assert LlamaForward.of(model, cache) is not None
    model.model.layers[1].mlp.up_proj = nn.Sequential(model.model.layers[1].mlp.up_proj)
    assert LlamaForward.of(model, cache) is None
    assert LlamaForward.of(build_llama().to(torch.bfloat16), cache) is None
    assert LlamaForward.of(build_llama(attn_implementation="eager"), cache) is None
