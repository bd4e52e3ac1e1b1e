"""The recipe `captioner`: prepared captions in, a model folder that is asked with caption requests out."""

from __future__ import annotations

import shutil
from pathlib import Path

from tiny_captioner import save_captioner

from foveate.caption.chat_requests import writes_captions
from foveate.caption.settings import TargetSettings
from foveate.caption.targets.conversations import prepare_captions
from foveate.core.files import read_json
from foveate.core.recipes import load
from foveate.mllm.recipe import MllmRecipe
from foveate.mllm.train import train_mllm
from foveate.records.collection import Collection
from foveate.records.record import CAPTION_GROUPS


def test_the_shipped_recipe_starts_from_mini_and_separates_the_stages() -> None:
    recipe = load(MllmRecipe, "captioner", [])
    assert recipe.initial == "mini"
    assert [stage.groups for stage in recipe.stages] == [(group,) for group in CAPTION_GROUPS]
    assert all(stage.alignment_weight and stage.replay for stage in recipe.stages)


def test_it_trains_on_prepared_captions_and_the_folder_says_so(scene_collection: Path, tmp_path: Path) -> None:
    scenes = shutil.copytree(scene_collection, tmp_path / "scenes")
    prepare_captions(scenes, TargetSettings())
    initial = save_captioner(tmp_path / "initial", groups=("general",))
    assert not writes_captions(read_json(initial / "config.json"))
    recipe = load(MllmRecipe, "captioner", [f"initial={initial}"])
    recipe = recipe.with_training(steps=2, batch_size=2, warmup_steps=0, workers=0)
    with Collection.open(scenes) as collection:
        trained = train_mllm(recipe, collection, tmp_path / "run")
    assert trained.model_folder is not None
    config = read_json(trained.model_folder / "config.json")
    assert writes_captions(config)
    assert config["provenance"]["groups"] == sorted(CAPTION_GROUPS)
    assert [stage.samples for stage in trained.result.stages] == [24, 24]
