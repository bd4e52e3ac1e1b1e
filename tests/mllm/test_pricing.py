"""Prices of multimodal trainings against whole small networks and arithmetic by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel, LlamaConfig

from foveate.core.devices import autocast_dtype
from foveate.core.errors import UserError
from foveate.mllm.part_costs import Experts, ModelShape, PartCost, count_language, count_vision
from foveate.mllm.pricing import StageShape, format_price, memory_per_device, price, price_recipe, step_flops
from foveate.mllm.stages import build_recipe_model
from foveate.training.hardware import parse_hardware
from foveate.training.settings import TrainingSettings
from foveate.vision.connectors import build_connector
from naming import raises_naming
from tiny_mllm import make_recipe

TOWER = CLIPVisionConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=5, num_attention_heads=2, image_size=56, patch_size=14
)
LANGUAGE = LlamaConfig(
    hidden_size=48,
    intermediate_size=96,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=300,
    tie_word_embeddings=True,
    max_position_embeddings=128,
)
SHAPE = ModelShape(TOWER, LANGUAGE, "mlp", view_side=56)
TRAINING = TrainingSettings(steps=10, batch_size=8, learning_rate=1e-3)


def stage(**changes: Any) -> StageShape:
    fields = {"name": "sft", "training": TRAINING, "views": 3, "text_tokens": 20, "answer_tokens": 8} | changes
    return StageShape(**fields)


@pytest.fixture(scope="module")
def parts() -> dict[str, PartCost]:
    """Costs of the parts for `stage()`: counting fake tensors takes a second."""
    return count_vision(SHAPE, "fp32")[0] | {"language": count_language(LANGUAGE, 68, None, "fp32")}


def test_parameters_and_flops_are_those_of_whole_networks(parts: dict[str, PartCost]) -> None:
    result = price(SHAPE, [stage()], hardware="h100-80gb")
    tower, language = CLIPVisionModel(TOWER), AutoModelForCausalLM.from_config(LANGUAGE)
    connector = build_connector("mlp", {}, in_width=32, out_width=48, grid=(4, 4))
    sizes = {"tower": tower, "connector": connector, "language": language}
    assert result["parameters_by_part"] == {
        name: sum(weight.numel() for weight in part.parameters()) for name, part in sizes.items()
    }
    assert result["view_tokens"] == 16
    (priced,) = result["stages"]
    assert priced["sequence"] == 3 * 16 + 20
    assert priced["tokens"] == 68 * 8 * 10
    with FlopCounterMode(display=False) as counter:
        connected = connector(torch.randn(1, 16, 32))
        connected.sum().backward()
        connector_flops = counter.get_total_flops()
    # The first layer's input has no gradient in the real network either.
    assert priced["flops_per_sample"]["connector"] == pytest.approx(3 * connector_flops)
    linear = sum(weight.numel() for name, weight in language.named_parameters() if weight.dim() == 2)
    forward = 2 * linear * 68 + 6 * 4 * 68**2 * 48
    frozen = step_flops(parts, stage(trained=()))
    assert frozen["language"] == pytest.approx(forward)
    assert priced["flops_per_sample"]["language"] == pytest.approx(3 * forward, rel=0.01)


def test_frozen_parts_cost_less(parts: dict[str, PartCost]) -> None:
    stages = [stage(), stage(trained=("connector",)), stage(trained=())]
    whole, adapted, forward = (step_flops(parts, item) for item in stages)
    assert adapted["tower"] == forward["tower"]
    # The gradient passes through the frozen language model to the connector, without gradients of weights.
    assert adapted["language"] == pytest.approx(2 * forward["language"], rel=0.01)
    assert whole["total"] > adapted["total"] > forward["total"]
    of_whole, of_adapted, of_frozen = (memory_per_device(parts, item, vocabulary=300, devices=1) for item in stages)
    assert of_adapted["optimizer"] == 8 * parts["connector"].parameters
    assert of_adapted["activations"] < of_whole["activations"]
    assert of_frozen["activations"] == of_frozen["optimizer"] == 0


def test_memory_follows_the_settings(parts: dict[str, PartCost]) -> None:
    def memory(devices: int = 1, **changes: Any) -> dict[str, float]:
        settings = TrainingSettings.model_validate(TRAINING.model_dump() | changes)
        return memory_per_device(parts, stage(training=settings), vocabulary=300, devices=devices)

    base = memory()
    assert memory(accumulate=2)["activations"] == base["activations"] / 2
    assert base["logits"] == 8 * 8 * 300 * 8
    sharded = memory(devices=8, parallel="fsdp")
    assert sharded["optimizer"] == base["optimizer"] / 8
    assert sharded["total"] < memory(devices=8)["total"]
    assert base["total"] == pytest.approx(sum(base.values()) / 2)
    assert memory(optimizer="adafactor")["optimizer"] == 0
    assert memory(precision="bf16")["narrow_weights"] == 2 * sum(part.parameters for part in parts.values())
    assert count_language(LANGUAGE, 68, None, "bf16").cost.saved < 0.9 * parts["language"].cost.saved


def test_auto_is_priced_as_the_precision_that_is_faster_there() -> None:
    resolved = {name: parse_hardware(name).resolve_precision("auto") for name in ("h100-80gb", "cpu", "mine=10,24,10")}
    here = "fp32" if autocast_dtype("auto", torch.device("cpu")) is None else "bf16"
    assert resolved == {"h100-80gb": "bf16", "cpu": here, "mine=10,24,10": "fp32"}

    def priced(precision: str) -> dict[str, Any]:
        settings = TrainingSettings.model_validate(TRAINING.model_dump() | {"precision": precision})
        return price(SHAPE, [stage(training=settings)], hardware="h100-80gb")

    assert priced("auto") == priced("bf16")


def test_experts_are_added_to_every_second_layer() -> None:
    dense, sparse = (count_language(LANGUAGE, 32, experts, "fp32") for experts in (None, Experts(num=4)))
    mlp, router = 3 * 48 * 96, 48 * 4
    assert sparse.parameters - dense.parameters == 3 * (3 * mlp + router)
    assert sparse.active - dense.active == 3 * (mlp + router)
    assert sparse.cost.forward - dense.cost.forward == 3 * 2 * 32 * (mlp + router)
    single = count_language(LANGUAGE, 32, Experts(num=1, top_k=1), "fp32")
    assert single.parameters - dense.parameters == 3 * 48


def test_large_models_are_priced_in_seconds_without_memory() -> None:
    tower = CLIPVisionConfig(
        hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16, patch_size=14
    )
    language = LlamaConfig(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, vocab_size=32_000
    )
    settings = TrainingSettings(
        steps=23_000, batch_size=256, learning_rate=2e-5, precision="bf16", parallel="fsdp", checkpoint_every=1000
    )
    shape = ModelShape(tower, language, "cabstractor", {"num_tokens": 144}, view_side=672)
    result = price(
        shape,
        [StageShape("sft", settings, views=7, text_tokens=200, answer_tokens=80)],
        devices=64,
        hardware="h100-80gb",
    )
    (priced,) = result["stages"]
    # DFN-5B's ViT-H/14 has 632 M parameters, at 378 px; other positions of 672 px.
    assert result["parameters_by_part"]["tower"] == pytest.approx(632e6, rel=0.01)
    assert priced["image_tokens"] == 7 * 144
    assert priced["steps"] == 23_000
    lines = "\n".join(format_price(result))
    assert "stage sft: 23,000 steps of 256 samples with 1,208 tokens, 1,008 of them of images" in lines


def test_a_recipe_is_priced_as_it_would_be_built() -> None:
    recipe = make_recipe()
    result = price_recipe(recipe, hardware="h100-80gb")
    model = build_recipe_model(recipe)
    assert result["parameters_by_part"] == {
        "tower": sum(weight.numel() for weight in model.tower.parameters()),
        "connector": sum(weight.numel() for weight in model.connector.parameters()),
        "language": sum(weight.numel() for weight in model.language_model.parameters()),
    }
    assert result["view_tokens"] == model.connector.num_tokens
    alignment, instruction = result["stages"]
    assert [alignment["steps"], instruction["steps"]] == [stage.training.steps for stage in recipe.stages]
    assert alignment["flops_per_sample"]["language"] == alignment["memory_per_device"]["logits"] == 0
    assert instruction["sequence"] == model.connector.num_tokens + 30 * recipe.stages[1].max_conversations
    assert instruction["flops_per_sample"]["language"] > 0


def test_what_does_not_fit_is_named() -> None:
    with raises_naming(UserError, "view_side", "60", "14"):
        price(ModelShape(TOWER, LANGUAGE, "mlp", view_side=60), [stage()])
    with raises_naming(UserError, "sft", "languge"):
        price(SHAPE, [stage(trained=("languge",))])
    with raises_naming(UserError, "sft", "3 devices", "8"):
        price(SHAPE, [stage()], devices=3)
    long = price(SHAPE, [stage(views=9)], hardware="small=1,0.000001")
    assert long["stages"][0]["too_long"]
    assert not long["stages"][0]["fits"]
    lines = "\n".join(format_price(long))
    assert "does not fit" in lines
    assert "longer than" in lines
