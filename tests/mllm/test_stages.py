"""Stages with views of their own size, and MM1.5's recipes: as published, priced, trained at toy width."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from foveate.core.errors import UserError
from foveate.core.recipes import load, validate
from foveate.mllm.pricing import price_recipe
from foveate.mllm.recipe import MllmRecipe
from foveate.mllm.stages import build_recipe_model, build_stage_model, resize_weights
from foveate.mllm.task import MllmTask
from foveate.mllm.train import prepare_training, train_mllm
from foveate.multimodal.opening import open_mllm
from foveate.records.collection import Collection
from foveate.vision.connectors import resize_positions
from naming import raises_naming

GOLDENS = Path(__file__).parents[1] / "goldens" / "mm15"
MM15 = ("mm15-1b", "mm15-3b", "mm15-7b", "mm15-30b", "mm15-1b-moe", "mm15-3b-moe", "mm15-ui", "mm15-video")


def make_toy(name: str, **model: Any) -> MllmRecipe:
    """A shipped recipe with its stages and parts, at toy width: views of 28 pixels in pretraining, of 56 later."""
    content = load(MllmRecipe, name).model_dump()
    content["vocabulary"] = 400
    vision = {"width": 32, "layers": 1, "head_width": 16, "patch_size": 14}
    content["model"] |= {
        "tower": content["model"]["tower"] | {"model": "ViT-B-32", "vision": vision, "image_size": 56},
        "connector": {"kind": "cabstractor", "num_tokens": 4, "depth": 1, "hidden_width": 16},
        "language": content["model"]["language"]
        | {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "intermediate_size": 48,
            "max_position_embeddings": 512,
        },
    }
    if content["model"]["experts"]:
        content["model"]["experts"]["num_experts"] = 4
    content["model"] |= model
    for assembly in (content["model"]["assembly"], *(stage["assembly"] for stage in content["stages"])):
        if assembly is not None:
            assembly["tokens_per_view"] = 4
            assembly["tiling"]["tile"] = {378: 28, 672: 56}[assembly["tiling"]["tile"]]
    for stage in content["stages"]:
        stage["groups"], stage["mixture"] = (), None
        stage["training"] |= {
            "steps": 2, "batch_size": 4, "learning_rate": 1e-3, "workers": 0, "warmup_steps": 0, "precision": "fp32",
            "parallel": "ddp", "accumulate": 1,
        }  # fmt: skip
    return validate(MllmRecipe, content, where=name)


def test_stages_are_those_that_were_published() -> None:
    published = json.loads((GOLDENS / "stages.json").read_text(encoding="utf-8"))
    experts = published["moe"]
    for name in MM15:
        recipe = load(MllmRecipe, name)
        pretraining, continual, instruction = stages = recipe.stages[:3]
        for stage, golden in zip(stages, published["mm15"], strict=True):
            assert stage.training.batch_size == golden["batch"]
            assert stage.training.steps == golden.get("steps", golden.get("max_steps"))
            assert stage.connector_rate == stage.language_rate == stage.embedding_rate == 1
            if golden["optimizer"] != "AdaFactor" and golden["stage"] == "pretrain":
                continue
            assert stage.training.learning_rate == golden["peak_lr"]
            assert (stage.training.schedule, stage.training.final_learning_rate_fraction) == ("cosine", 0)
        assert [s.training.optimizer for s in (continual, instruction)] == ["adafactor"] * 2
        tiles = [recipe.stage_model(stage).assembly.tiling for stage in stages]  # type: ignore[union-attr]
        assert [tiling.tile for tiling in tiles] == [378, 672, 672]
        assert [tiling.rule for tiling in tiles[1:]] == ["static", "eq1"]
        assert (tiles[2].min_tiles, tiles[2].max_tiles) == (4, 9)
        assert pretraining.assembly is not None
        assert pretraining.assembly.max_split_images == 0
        shares = [stage.mixture.shares() if stage.mixture else {} for stage in stages]
        assert {group: share for group, share in shares[0].items() if share} == pytest.approx(
            {"general": 0.5, "multi-image": 0.1, "text": 0.4}
        )
        # As published: percent of the whole mixture.
        assert {group: round(100 * share, 1) for group, share in shares[2].items()} == {
            "text-rich": 37.2, "refer-ground": 22.5, "general": 11.3, "math": 5.6, "code": 2.3, "science": 1.1,
            "multi-image": 10, "text": 10,
        }  # fmt: skip
        options = recipe.model.experts
        assert (options is not None) == name.endswith("-moe")
        if options is not None:
            assert options.num_experts == experts["experts"]
            assert (options.balance_weight, options.z_weight) == (
                experts["load_balance_weight"],
                experts["z_weight"],
            )
    screens = load(MllmRecipe, "mm15-ui").stages[3].training
    assert screens.steps == -(-published["mm15_ui"]["sft_samples"] // screens.batch_size)
    video = load(MllmRecipe, "mm15-video")
    samples = sum(published["mm15_video"]["sft_samples"].values())
    assert video.stages[3].training.steps == -(-samples // video.stages[3].training.batch_size)
    assert video.model.max_images == published["mm15_video"]["frames"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mm15-1b-moe", "mm15-video"])
def test_a_price_counts_the_views_of_each_stage(name: str) -> None:
    toy = make_toy(name)
    images = 24 if name == "mm15-video" else 1
    priced = price_recipe(toy, images=images).to_json()
    model = build_recipe_model(toy)
    assert priced["parameters_by_part"]["language"] == sum(w.numel() for w in model.language_model.parameters())
    assert priced["parameters_by_part"]["tower"] == sum(w.numel() for w in model.tower.parameters())
    views = [stage["image_tokens"] / 4 for stage in priced["stages"]]
    # A 480 x 640 image is whole in pretraining, then 2 x 2 and, at 56 pixels a tile, 3 x 3 tiles with an overview.
    assert views[:3] == ([24, 24, 24] if images == 24 else [1, 5, 10])
    assert all(view == 24 for view in views[3:])
    small, large = (priced["stages"][number]["flops_per_sample"]["tower"] / views[number] for number in (0, 1))
    assert large > 3 * small
    if toy.model.experts:
        assert priced["parameters_active"] < priced["parameters"]


@pytest.mark.parametrize("name", ["mm15-1b-moe", "mm15-video"])
def test_a_recipe_of_mm15_is_trained_and_asked_at_toy_width(name: str, asked_collection: Path, tmp_path: Path) -> None:
    toy = make_toy(name)
    with Collection.open(asked_collection) as collection:
        trained = train_mllm(toy, collection, tmp_path / "run")
        assert trained.model_folder is not None
        assert not any(stage.bad_samples for stage in trained.result.stages)
        last = trained.result.stages[-1].last
        assert ("balance" in last) == (toy.model.experts is not None)
        # A finished run reads the weights of its stages again, each in views of its size.
        again = train_mllm(toy, collection, tmp_path / "run")
        assert again.result.stages == trained.result.stages
    model = open_mllm(trained.model_folder)
    image = torch.zeros(48, 64, 3, dtype=torch.uint8).numpy()
    assert model.ask(image, "Where is the red disc?", max_tokens=4).tokens <= 4
    assert model.ask([image] * 3, "Are they the same?", max_tokens=4).tokens <= 4


def test_the_next_stage_starts_from_resized_positions() -> None:
    toy = make_toy("mm15-1b")
    small, large = (build_stage_model(toy, stage) for stage in toy.stages[:2])
    assert (small.tower.grid, large.tower.grid) == ((2, 2), (4, 4))
    weights = small.state_dict()
    resized = resize_weights(weights, large, grid=small.tower.grid)
    large.load_state_dict(resized)
    name = "tower.encoder.visual.positional_embedding"
    assert torch.equal(resized[name][0], weights[name][0])
    expected = resize_positions(weights[name][None, 1:], grid=(2, 2), new_grid=(4, 4))[0]
    assert torch.equal(resized[name][1:], expected)
    assert torch.equal(
        resized["connector.pos_emb"], resize_positions(weights["connector.pos_emb"], grid=(2, 2), new_grid=(4, 4))
    )
    same = [key for key, value in weights.items() if value.shape == resized[key].shape]
    assert len(same) == len(weights) - 2
    assert all(torch.equal(weights[key], resized[key]) for key in same)
    with raises_naming(UserError, "readout", "4 x 4"):
        resize_weights({**weights, "connector.readout.0.bias": torch.zeros(5)}, large, grid=(2, 2))


def test_the_routers_of_all_rows_have_a_loss(asked_collection: Path, tmp_path: Path) -> None:
    """Rows of one length run together: the losses of all these passes count, by their share of the rows."""
    toy = make_toy("mm15-1b-moe")
    with Collection.open(asked_collection) as collection:
        training = prepare_training(toy, collection, tmp_path / "run")
        samples = training.samples(toy.stages[2])
        pair = next(row for row in samples.rows.tolist() if len(samples.sets[row].rows) == 2)
        single = next(row for row in samples.rows.tolist() if len(samples.sets[row].rows) == 1)
        rows = [samples.sample(row, 0, 0) for row in (pair, single)]
    task = MllmTask(training.model, names=training.names, stage=toy.stages[2]).train()
    both = task.losses(samples.collate(rows))[0]
    alone = [task.losses(samples.collate([row]))[0] for row in rows]
    for name in ("balance", "router_z"):
        assert both[name].requires_grad
        mean = sum(terms[name].item() for terms in alone) / 2
        assert both[name].item() == pytest.approx(mean, rel=1e-4)


def test_stages_that_do_not_fit_the_model_are_refused() -> None:
    content = make_toy("mm15-1b").model_dump()
    last = content["stages"][2] | {"assembly": content["stages"][0]["assembly"]}
    with raises_naming(UserError, "last stage", "assembly"):
        validate(MllmRecipe, content | {"stages": [*content["stages"][:2], last]}, where="test")
    with raises_naming(UserError, "model.assembly"):
        validate(MllmRecipe, content | {"model": content["model"] | {"assembly": None}}, where="test")


def test_timing_the_stages_leaves_the_weights_as_they_are(asked_collection: Path, tmp_path: Path) -> None:
    """Stages with views of other sizes are entered for it, which resizes the positions."""
    with Collection.open(asked_collection) as collection:
        training = prepare_training(make_toy("mm15-1b"), collection, tmp_path / "run")
        before = {name: value.clone() for name, value in training.model.state_dict().items()}
        training.announce()
        after = training.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
