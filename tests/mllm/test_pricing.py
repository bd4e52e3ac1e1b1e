"""Prices of multimodal trainings against whole small networks and arithmetic by hand."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel, LlamaConfig

from foveate.core.devices import autocast_dtype
from foveate.core.errors import UserError
from foveate.language.settings import SparseOptions
from foveate.mllm.pricing import count_language, count_stage, price_recipe, price_training
from foveate.mllm.stages import build_recipe_model
from foveate.mllm.train import train_mllm
from foveate.records.collection import Collection
from foveate.training.costs import PartCost, count_layers, count_part, shorten_config
from foveate.training.price import (
    PricedStage,
    PriceSettings,
    format_price,
    memory_per_device,
    parse_hardware,
    price,
    resolve_training,
)
from foveate.training.settings import TrainingSettings
from foveate.vision.connectors import Connector, build_connector
from naming import raises_naming
from tiny_mllm import make_recipe, make_tiled_recipe

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
TRAINING = TrainingSettings(steps=10, batch_size=8, learning_rate=1e-3)
H100 = PriceSettings(hardware="h100-80gb")


def count_vision(config: CLIPVisionConfig, kind: str, options: dict[str, Any], width: int) -> dict[str, PartCost]:
    """Costs of a tower from its config, one and two layers of it counted, and of a connector."""
    side = config.image_size

    def see(model: Any, batch: int) -> list[torch.Tensor]:
        return [model(pixel_values=torch.empty(batch, 3, side, side)).last_hidden_state]

    def build(layers: int) -> CLIPVisionModel:
        return CLIPVisionModel(shorten_config(config, layers))

    grid, in_width = (side // config.patch_size, side // config.patch_size), config.hidden_size
    with torch.device("meta"):
        connector = build_connector(kind, options, in_width=in_width, out_width=width, grid=grid)

    def connect(model: Connector, batch: int) -> list[torch.Tensor]:
        return [model(torch.empty(batch, grid[0] * grid[1], in_width))]

    return {
        "tower": count_layers(build, see, layers=config.num_hidden_layers, precision="fp32"),
        "connector": count_part(connector, connect, precision="fp32"),
    }


@pytest.fixture(scope="module")
def parts() -> dict[str, PartCost]:
    """Costs of the parts for three views of 16 tokens and a text of 20: counting fake tensors takes a second."""
    return count_vision(TOWER, "mlp", {}, 48) | {"language": count_language(LANGUAGE, 68, None, "fp32")}


def test_parameters_and_flops_are_those_of_whole_networks(parts: dict[str, PartCost]) -> None:
    result = price([count_stage(parts, TRAINING, views=3)], H100)
    tower, language = CLIPVisionModel(TOWER), AutoModelForCausalLM.from_config(LANGUAGE)
    connector = build_connector("mlp", {}, in_width=32, out_width=48, grid=(4, 4))
    sizes = {"tower": tower, "connector": connector, "language": language}
    assert result.parameters_by_part == {
        name: sum(weight.numel() for weight in part.parameters()) for name, part in sizes.items()
    }
    (priced,) = result.stages
    with FlopCounterMode(display=False) as counter:
        connected = connector(torch.randn(1, 16, 32))
        connected.sum().backward()
        connector_flops = counter.get_total_flops()
    # The first layer's input has no gradient in the real network either.
    assert priced.flops_per_sample["connector"] == pytest.approx(3 * connector_flops)
    linear = sum(weight.numel() for name, weight in language.named_parameters() if weight.dim() == 2)
    forward = 2 * linear * 68 + 6 * 4 * 68**2 * 48
    frozen = count_flops(parts, trained=())
    assert frozen["language"] == pytest.approx(forward)
    assert priced.flops_per_sample["language"] == pytest.approx(3 * forward, rel=0.01)


def count_flops(parts: dict[str, PartCost], **options: Any) -> dict[str, float]:
    stage = count_stage(parts, TRAINING, views=3, **options)
    return price([stage], H100).stages[0].flops_per_sample


def test_frozen_parts_cost_less(parts: dict[str, PartCost]) -> None:
    trained: list[dict[str, Any]] = [{}, {"trained": ("connector",)}, {"trained": ()}]
    whole, adapted, forward = (count_flops(parts, **options) for options in trained)
    assert adapted["tower"] == forward["tower"]
    # The gradient passes through the frozen language model to the connector, without gradients of weights.
    assert adapted["language"] == pytest.approx(2 * forward["language"], rel=0.01)
    assert whole["total"] > adapted["total"] > forward["total"]
    stages = [count_stage(parts, TRAINING, views=3, **options) for options in trained]
    of_whole, of_adapted, of_frozen = (memory_per_device(stage, 1) for stage in stages)
    assert of_adapted["optimizer"] == 8 * parts["connector"].parameters
    assert of_adapted["activations"] < of_whole["activations"]
    assert of_frozen["activations"] == of_frozen["optimizer"] == 0


def test_memory_follows_the_settings(parts: dict[str, PartCost]) -> None:
    def memory(devices: int = 1, **changes: Any) -> dict[str, float]:
        settings = TrainingSettings.model_validate(TRAINING.model_dump() | changes)
        return memory_per_device(count_stage(parts, settings, views=3, logits=8.0 * 300 * 8), devices)

    base = memory()
    assert memory(accumulate=2)["activations"] == base["activations"] / 2
    assert base["logits"] == 8 * 8 * 300 * 8
    sharded = memory(devices=8, parallel="fsdp")
    assert sharded["optimizer"] == base["optimizer"] / 8
    assert sharded["total"] < memory(devices=8)["total"]
    assert base["total"] == pytest.approx(sum(base.values()) / 2)
    assert memory(optimizer="adafactor")["optimizer"] == 0
    assert memory(precision="bf16")["narrow_weights"] == 2 * sum(part.parameters for part in parts.values())
    assert count_language(LANGUAGE, 68, None, "bf16").saved < 0.9 * parts["language"].saved


def test_auto_is_priced_as_the_precision_that_is_faster_there() -> None:
    resolved = {name: parse_hardware(name).resolve_precision("auto") for name in ("h100-80gb", "cpu", "mine=10,24,10")}
    here = "fp32" if autocast_dtype("auto", torch.device("cpu")) is None else "bf16"
    assert resolved == {"h100-80gb": "bf16", "cpu": here, "mine=10,24,10": "fp32"}

    settings = TrainingSettings.model_validate(TRAINING.model_dump() | {"precision": "auto"})
    assert resolve_training(settings, H100).precision == "bf16"


def test_experts_are_added_to_every_second_layer() -> None:
    options = SparseOptions(num_experts=4)
    dense, sparse = (count_language(LANGUAGE, 32, experts, "fp32") for experts in (None, options))
    mlp, router = 3 * 48 * 96, 48 * 4
    assert sparse.parameters - dense.parameters == 3 * (3 * mlp + router)
    assert sparse.active - dense.active == 3 * (mlp + router)
    assert sparse.forward - dense.forward == 3 * 2 * 32 * (mlp + router)
    halved = count_language(LANGUAGE, 32, SparseOptions(num_experts=2, width_divisor=2, init="fresh"), "fp32")
    assert halved.parameters - dense.parameters == 3 * 2 * 48


def test_large_models_are_priced_in_seconds_without_memory() -> None:
    tower = CLIPVisionConfig(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=16,
        patch_size=14,
        image_size=672,
    )
    language = LlamaConfig(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, vocab_size=32_000
    )
    settings = TrainingSettings(
        steps=23_000, batch_size=256, learning_rate=2e-5, precision="bf16", parallel="fsdp", checkpoint_every=1000
    )
    parts = count_vision(tower, "cabstractor", {"num_tokens": 144}, 2048)
    parts["language"] = count_language(language, 7 * 144 + 200, None, "bf16")
    stage = count_stage(parts, settings, views=7, logits=8.0 * 32_000 * 80)
    result = price([replace(stage, name="sft")], PriceSettings(devices=64, hardware="h100-80gb"))
    # DFN-5B's ViT-H/14 has 632 M parameters, at 378 px; other positions of 672 px.
    assert result.parameters_by_part["tower"] == pytest.approx(632e6, rel=0.01)
    assert result.stages[0].steps == 23_000
    lines = "\n".join(format_price(result))
    assert "stage sft: 23,000 steps of 256 samples, 5,888,000 samples in all, " in lines


def test_a_recipe_is_priced_as_it_would_be_built() -> None:
    recipe = make_recipe()
    result = price_recipe(recipe, hardware="h100-80gb").to_json()
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
    recipe = make_recipe()
    with raises_naming(UserError, "alignment", "5 devices", str(recipe.stages[0].training.batch_size)):
        price_recipe(recipe, devices=5)
    long = price_recipe(recipe, images=40, text_tokens=100, hardware="small=1,0.000001")
    stage: PricedStage = long.stages[1]
    assert stage.to_json()["too_long"]
    assert not stage.fits
    lines = "\n".join(format_price(long))
    assert "warning: needs " in lines
    assert "longer than" in lines


def list_files(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("make", [make_recipe, make_tiled_recipe])
def test_a_named_collection_is_timed_and_not_written_to(make: Any, asked_collection: Path, tmp_path: Path) -> None:
    # Without the features that other tests have cached.
    folder = shutil.copytree(asked_collection, tmp_path / "shapes", ignore=shutil.ignore_patterns("cache"))
    recipe, before = make(), list_files(folder)
    with Collection.open(folder) as collection:
        timed = price_training(recipe, collection, device="cpu")
        assert list_files(folder) == before
        features, *stages = timed.stages
        assert features.name == "features"
        assert features.facts["views"] >= len(collection.rows("train"))
        assert features.seconds > 0
        for stage, settings in zip(stages, recipe.stages, strict=True):
            assert stage.name == settings.name
            assert stage.seconds == pytest.approx(settings.training.steps * stage.seconds_per_step)
        assert timed.totals["seconds"] == pytest.approx(sum(stage.seconds for stage in timed.stages))
        lines = "\n".join(format_price(timed))
        assert "timed here" in lines
        assert "on this machine" in lines
        assert "MFU" not in lines
        # What is in the cache is not encoded again.
        trained = train_mllm(recipe, collection, tmp_path / "run", device="cpu")
        assert trained.model_folder is not None
        again = price_training(recipe, collection, device="cpu")
    assert [stage.name for stage in again.stages] == [stage.name for stage in recipe.stages]
