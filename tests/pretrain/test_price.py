"""Prices: formulas held to PyTorch's own FLOP counter, memory that adds up, sentences that help."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import tiny
from foveate.core.errors import UserError
from foveate.core.recipes import load, recipe_names, recipe_path
from foveate.pretrain import pricing
from foveate.pretrain.losses import clip_loss, region_text_loss
from foveate.pretrain.pricing import count_stage, flops_per_image, price_recipe
from foveate.pretrain.recipe import PretrainRecipe
from foveate.pretrain.task import PretrainTask
from foveate.pretrain.train import build_model
from foveate.records.collection import Collection
from foveate.training.costs import _FUSED
from foveate.training.price import format_price, memory_per_device, parse_hardware
from foveate.vision.prompter import BoxHead, Prompter
from naming import raises_naming


@pytest.fixture(scope="module", autouse=True)
def counted_once() -> Iterator[None]:
    """Counting a ViT takes seconds, and most tests price the same one."""
    count, known = pricing.model_cost, {}

    def look_up(model: Any, *, units: list[nn.Module], precision: str) -> pricing.ModelCost:
        key = (model.recipe.model_dump_json(exclude={"training", "data"}), precision)
        if key not in known:
            known[key] = count(model, units=units, precision=precision)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pricing, "model_cost", look_up)
        yield


def price(recipe: PretrainRecipe, **assumed: Any) -> dict[str, Any]:
    """The JSON of a price, with that of its only stage."""
    result = price_recipe(recipe, **assumed).to_json()
    (stage,) = result["stages"]
    return result | stage | {"warnings": stage["warnings"] + result["warnings"]} | result["totals"]


def counted(recipe: PretrainRecipe) -> pricing.ModelCost:
    with torch.device("meta"):
        model = build_model(recipe)
    units = list(PretrainTask(model).shard_units())
    return pricing.model_cost(model, units=units, precision=recipe.training.precision)


@pytest.fixture(scope="module")
def b16() -> pricing.ModelCost:
    return counted(load(PretrainRecipe, "cloc-vit-b16"))


def layer(length: int, width: int) -> int:
    """A transformer layer with an MLP of four times the width, forward."""
    return 24 * length * width**2 + 4 * length**2 * width


def test_towers_of_vit_b16(b16: pricing.ModelCost) -> None:
    image = 12 * layer(197, 768) + 2 * 196 * 768 * 768 + 2 * 768 * 512
    assert b16.image.forward == pytest.approx(image, rel=1e-3)
    assert b16.image.backward == pytest.approx(2 * image, rel=0.01)
    assert b16.text.forward == pytest.approx(12 * layer(77, 512) + 2 * 512 * 512, rel=1e-3)
    assert b16.text.at_length(10).forward == pytest.approx(12 * layer(10, 512), rel=0.01)
    assert b16.text.at_length(77) == b16.text
    assert (b16.image.blocks, b16.text.blocks) == (12, 12)
    assert b16.image.saved > b16.image.activations(checkpointed=True) > 12 * 196 * 768 * 4
    assert b16.parameters["image tower"] == pytest.approx(86.2e6, rel=0.01)


def test_counting_leaves_real_numbers_as_they_are() -> None:
    """A tower counted as fake tensors costs what the real one pricing."""
    recipe = tiny.recipe()
    cost, model = counted(recipe), build_model(recipe)
    pixels = torch.zeros(3, 3, 64, 64, dtype=torch.uint8)
    with FlopCounterMode(display=False, custom_mapping=_FUSED) as counter:
        tokens = model.image_encoder(pixels)
        forward = counter.get_total_flops()
        (tokens.tokens.sum() + tokens.pooled.sum()).backward()
    assert forward == 3 * cost.image.forward
    assert counter.get_total_flops() == 3 * (cost.image.forward + cost.image.backward)


@pytest.mark.parametrize("pool", ["all", "prompt"])
def test_the_prompters_formula(pool: str) -> None:
    torch.manual_seed(0)
    width, embed_dim, side, boxes = 64, 32, 7, 4
    prompter, head = Prompter(width=width, embed_dim=embed_dim, pool=pool), BoxHead(width=width, embed_dim=embed_dim)
    index = torch.arange(2).repeat_interleave(boxes)
    corners = torch.tensor([[0.1, 0.2, 0.6, 0.9]]).repeat(2 * boxes, 1)
    with FlopCounterMode(display=False) as counter:
        prepared = prompter.prepare(torch.randn(2, side * side, width), (side, side))
        boxed = prompter.boxes(prepared, corners, index)
        said = prompter.phrases(prepared, torch.randn(2 * boxes, embed_dim), index)
        head(said)
    formula = pricing.prompter_flops(
        tokens=side * side, width=width, embed_dim=embed_dim, boxes=boxes, phrases=boxes, pool=pool
    )
    assert boxed.embedding_RE.shape == (8, embed_dim)
    assert counter.get_total_flops() / 2 == pytest.approx(formula, rel=0.08)


def test_cloc_over_clip_as_the_method_says(b16: pricing.ModelCost) -> None:
    """2.16x plain, 1.47x with the image attention once, 1.09x with the mean over the prompt tokens (B/16, M = 4)."""
    recipe = load(PretrainRecipe, "cloc-vit-b16")
    prompt = load(PretrainRecipe, "cloc-vit-b16", ["regions.prompter.pool=prompt"])
    clip = b16.image.forward + b16.text.forward
    assert sum(flops_per_image(recipe, b16, once=False).values()) / clip == pytest.approx(2.16, abs=0.03)
    assert sum(flops_per_image(recipe, b16).values()) / clip == pytest.approx(1.47, abs=0.03)
    assert sum(flops_per_image(prompt, b16).values()) / clip == pytest.approx(1.09, abs=0.03)


@pytest.mark.parametrize("chunk", [None, 16])
@pytest.mark.parametrize("filter", ["embedding", "none"])
def test_the_losses_formula(chunk: int | None, filter: str) -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(24, 32, generator=generator, requires_grad=True) for _ in range(2))
    regions, phrases = (torch.randn(64, 32, generator=generator, requires_grad=True) for _ in range(2))
    with FlopCounterMode(display=False) as counter:
        loss = clip_loss(image, text, torch.tensor([2.0], requires_grad=True), row_chunk=chunk)
        loss = (
            loss
            + region_text_loss(
                regions, phrases, torch.tensor([2.0], requires_grad=True), filter=filter, row_chunk=chunk
            ).loss
        )
        loss.sum().backward()
    formula = pricing.loss_flops(
        images=24, regions=64, embed_dim=32, filter=filter, chunked=chunk is not None, with_regions=True
    )
    assert counter.get_total_flops() == pytest.approx(formula, rel=0.1)


def test_every_process_has_its_share_of_the_losses() -> None:
    recipe = load(PretrainRecipe, "cloc-vit-b16")
    one, many = (price(recipe, devices=devices, hardware="h100-80gb") for devices in (1, 64))
    assert many["flops"] == pytest.approx(one["flops"])
    assert many["loss_share"] == pytest.approx(one["loss_share"])
    assert many["memory_per_device"]["loss_blocks"] < one["memory_per_device"]["loss_blocks"]


PRETRAIN = [name for name in recipe_names() if recipe_path(name).read_text("utf-8").startswith("# foveate pretrain ")]
SLOW = ("clip-vit-b16", "clip-vit-l14-336", "clip-vit-h14-336", "cloc-vit-l14-336", "cloc-vit-h14-336")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in PRETRAIN])
def test_every_shipped_recipe_has_a_price(name: str) -> None:
    recipe = load(PretrainRecipe, name)
    result = price_recipe(recipe, devices=64 if "vit" in name else 1, hardware="h100-80gb")
    priced = result.to_json() | result.stages[0].to_json() | result.totals
    assert priced["samples"] == recipe.training.steps * recipe.training.batch_size
    assert priced["parameters"] == sum(priced["parameters_by_part"].values())
    numbers = [priced[key] for key in ("flops", "days", "device_days", "bytes_read_in_all")]
    assert all(math.isfinite(number) and number > 0 for number in numbers)
    assert priced["device_days"] == pytest.approx(priced["days"] * priced["devices"])
    memory = dict(priced["memory_per_device"])
    assert memory.pop("total") == pytest.approx(sum(memory.values()))
    assert all(isinstance(line, str) for line in format_price(result))


def test_the_papers_recipes_have_the_papers_numbers() -> None:
    """Table A: batch 32,768, 439,087 steps, AdamW .9/.98, decay .2, peak 5e-4, 2,000 warm-up steps, 336 px."""
    for name in [f"{kind}-vit-{size}" for kind in ("cloc", "clip") for size in ("b16", "l14-336", "h14-336")]:
        recipe = load(PretrainRecipe, name)
        training = recipe.training
        assert (training.batch_size, training.steps, training.warmup_steps) == (32_768, 439_087, 2_000), name
        assert (training.betas, training.weight_decay, training.learning_rate) == ((0.9, 0.98), 0.2, 5e-4), name
        assert training.schedule == "cosine"
        with torch.device("meta"):
            model = build_model(recipe)
        assert model.image_encoder.preprocess.size == (224 if "b16" in name else 336), name
        assert (recipe.regions.method == "none") == name.startswith("clip")


@pytest.mark.slow
def test_the_papers_run_on_the_papers_machine() -> None:
    """About 6 days on 1,024 TPU v5p for L/14. The work without repeated loss matrices takes 1.3 days at an MFU of .4,
    so that the paper's run reached about .09."""
    priced = price(load(PretrainRecipe, "cloc-vit-l14-336"), devices=1024, hardware="tpu-v5p", samples=14.4e9, mfu=0.4)
    assert priced["samples"] == pytest.approx(14.4e9, rel=1e-4)
    days_without_losses = priced["days"] * (1 - priced["loss_share"])
    assert 1.0 < days_without_losses < 1.6
    assert 0.07 < 0.4 * days_without_losses / 6 < 0.11


def test_memory_falls_with_fsdp_parts_and_checkpoints(b16: pricing.ModelCost) -> None:
    recipe = load(PretrainRecipe, "cloc-vit-b16")

    def total(devices: int = 8, accumulate: int = 1, parallel: str = "ddp", towers: Sequence[str] = ()) -> float:
        changes = {tower: getattr(recipe, tower) | {"checkpointing": True} for tower in towers}
        stage = count_stage(recipe.model_copy(update=changes), b16)
        return memory_per_device(stage.change(accumulate=accumulate, parallel=parallel), devices)["total"]

    assert total(parallel="fsdp") < total()
    assert total(accumulate=4) < total()
    assert total(towers=["image_encoder", "text_encoder"]) < total(towers=["image_encoder"]) < total()
    assert total(devices=64) < total()
    one = memory_per_device(count_stage(recipe, b16), 1)
    assert one["weights"] + one["gradients"] + one["optimizer"] == 16 * b16.trained
    assert one["ddp_buckets"] == 0


def test_checkpointing_is_priced_where_there_is_a_switch() -> None:
    both = [f"{tower}.checkpointing=true" for tower in ("image_encoder", "text_encoder")]
    plain, chosen = (price_recipe(load(PretrainRecipe, "cloc-vit-b16", changes)) for changes in ([], both))
    (whole,), (recomputed,) = plain.stages, chosen.stages
    memory = recomputed.memory_per_device["total"]
    assert memory == whole.memory_with[" and ".join(both)] < whole.memory_per_device["total"]
    parts = whole.forward_per_sample
    again = (parts["image tower"] + parts["caption"] + parts["phrases"]) * whole.samples
    assert recomputed.flops - whole.flops == pytest.approx(again)
    assert f"{' and '.join(both)} {memory / 1e9:,.4g}" in "\n".join(format_price(plain))
    tour = price_recipe(load(PretrainRecipe, "tour"))
    for price_without_switch in (chosen, tour):
        assert set(price_without_switch.stages[0].memory_with) == {"training.parallel=ddp", "training.parallel=fsdp"}
        assert "checkpointing" not in "\n".join(format_price(price_without_switch))


def test_what_does_not_fit_is_named_with_what_would() -> None:
    recipe = load(PretrainRecipe, "cloc-vit-b16")
    (sentence,) = [said for said in price(recipe, devices=8, hardware="h100-80gb")["warnings"] if "needs" in said]
    assert "it fits with training.accumulate=" in sentence
    parts = int(sentence.partition("training.accumulate=")[2].split()[0])
    smaller = load(PretrainRecipe, "cloc-vit-b16", [f"training.accumulate={parts}"])
    assert price(smaller, devices=8, hardware="h100-80gb")["fits"]
    tight = price(recipe, devices=8, hardware="mine=100,0.9")["warnings"]
    assert any("embeddings and matrices of the losses alone do not fit" in said for said in tight)


def test_twice_the_work_takes_twice_the_time() -> None:
    recipe = tiny.recipe()
    one, two = (price(recipe, samples=samples, hardware="mine=1,10") for samples in (8_000, 16_000))
    assert two["days"] == pytest.approx(2 * one["days"])
    assert price(recipe, samples=8_000, hardware="mine=1,10", mfu=0.2)["days"] == pytest.approx(2 * one["days"])


def test_with_a_collection(tiny_collection: Path) -> None:
    opened = Collection.open(tiny_collection)
    priced = price(tiny.recipe(), collection=opened)
    assert (priced["images"], priced["images_with_text"]) == (18, 16)
    assert priced["epochs"] == 3.0
    assert priced["bytes_per_image"] == pytest.approx(opened.index["length"][opened.rows("train")].mean())
    assert any("larger than the 16 images" in said for said in price(
        tiny.recipe(training={"batch_size": 32}), collection=opened)["warnings"])  # fmt: skip
    missing = price(tiny.recipe(data={"captions": {"alt": 1.0, "title": 1.0, "poem": 1.0}}), collection=opened)
    assert any("text of kind poem" in said for said in missing["warnings"])
    with raises_naming(UserError, "poem"):
        price(tiny.recipe(data={"captions": {"poem": 1.0, "alt": 0.0, "title": 0.0}}), collection=opened)


@pytest.mark.parametrize("text", ["h1000", "mine=", "mine=1", "mine=a,b", "mine=-1,5", "mine=1,2,3,4", "=1,2"])
def test_hardware_that_is_none(text: str) -> None:
    with raises_naming(UserError, "hardware"):
        parse_hardware(text)


def test_hardware_by_name_and_by_numbers() -> None:
    assert parse_hardware("h200").gigabytes == 141
    own = parse_hardware("mine=160,24")
    assert (own.tflops, own.gigabytes, own.wide_tflops) == (160, 24, 10)
    assert parse_hardware("mine=160,24,80").wide_tflops == 80
    assert "Did you mean 'h100-80gb'?" in str(pytest.raises(UserError, parse_hardware, "h100-80g").value)


def test_uneven_batches_and_impossible_shares_are_refused() -> None:
    with raises_naming(UserError, "3"):
        price(tiny.recipe(), devices=3)
    with raises_naming(UserError, "mfu", "1.5"):
        price(tiny.recipe(), mfu=1.5)
