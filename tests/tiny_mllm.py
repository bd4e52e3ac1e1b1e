"""A tiny collection with conversations and a tiny recipe: what tests of multimodal LLMs run on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny
from foveate.core.recipes import validate
from foveate.mllm.recipe import MllmRecipe
from foveate.records.collection import Collection
from foveate.records.conversations import Conversation, Turn, add_conversations


def make_recipe(**changes: Any) -> MllmRecipe:
    """A recipe of two stages that runs in seconds."""
    training = {"batch_size": 4, "learning_rate": 0.003, "workers": 0, "checkpoint_every": 2, "log_every": 1}
    content: dict[str, Any] = {
        "model": {
            "tower": {"kind": "lite0", "width": 32, "embed_dim": 8, "image_size": 64, "position": "none"},
            "connector": {"kind": "pooled", "side": 2, "depth": 1},
            "language": {
                "model_type": "llama",
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "intermediate_size": 48,
                "max_position_embeddings": 128,
            },
            "regions": "tokens",
            "phrase_maps": True,
            "box_head": True,
            "max_images": 2,
        },
        "vocabulary": 400,
        "stages": [
            {"name": "alignment", "texts": False, "alignment_weight": 1.0, "training": {**training, "steps": 3}},
            {
                "name": "instruction",
                "max_conversations": 3,
                "alignment_weight": 0.3,
                "box_weight": 0.5,
                "training": {**training, "steps": 4},
            },
        ],
    }
    return validate(MllmRecipe, {**content, **changes}, where="test")


def make_tiled_recipe() -> MllmRecipe:
    """The tiny recipe with tiles and coordinates in text."""
    recipe = make_recipe()
    model = recipe.model.model_dump() | {
        "connector": {"kind": "cabstractor", "num_tokens": 4, "depth": 1, "hidden_width": 16},
        "language": recipe.model.language | {"max_position_embeddings": 384},
        "assembly": {"tiling": {"tile": 64, "min_tiles": 2, "max_tiles": 4}, "tokens_per_view": 4},
        "regions": "text",
        "phrase_maps": False,
        "box_head": False,
    }
    stages = [{**stage.model_dump(), "box_weight": 0.0} for stage in recipe.stages]
    return make_recipe(model=model, stages=stages)


def make_dual_recipe(**second_stage: Any) -> MllmRecipe:
    """The tiny recipe after Ferret-v2: overviews alone at first; then tiles by a second tower, and regions."""
    recipe = make_tiled_recipe()
    vit = {"num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 16, "image_size": 64, "hidden_size": 32}
    preprocess = {"size": 64, "mean": [0.5] * 3, "std": [0.5] * 3, "geometry": "stretch"}
    tiling = {"rule": "llava", "tile": 64, "grids": ["1x2", "2x1"], "fit": "stretch", "overview": "before"}
    assembly = {"tiling": tiling, "indicator": "none", "tokens_per_view": 16, "token_order": "rows"}
    model = recipe.model.model_dump() | {
        "tower": {
            "kind": "clip", "layer": -1, "preprocess": preprocess,
            "config": {**vit, "model_type": "clip_vision_model", "intermediate_size": 32},
        },
        "tiles_tower": {
            "kind": "dinov2", "layer": -1, "preprocess": preprocess,
            "config": {**vit, "model_type": "dinov2", "mlp_ratio": 1},
        },
        "connector": {"kind": "mlp"},
        "assembly": assembly,
        "regions": "hybrid",
        "region_encoder": {"kind": "sampler", "anchors": [8, 4], "neighbors": [4, 4]},
        "region_points": 32,
        "visual_positions": False,
    }  # fmt: skip
    frozen = {"texts": True, "alignment_weight": 0.0, "tower_rate": 0, "language_rate": 0, "embedding_rate": 0}
    first, second = ({**stage.model_dump(), **frozen} for stage in recipe.stages)
    first |= {"assembly": assembly | {"max_split_images": 0}}
    second |= {"copy_projector": True, "assembly": assembly, **second_stage}
    return make_recipe(model=model, stages=[first, second])


def make_questions(collection: Collection) -> list[Conversation]:
    """Name and find every region; compare pairs of images of one split."""
    conversations = []
    for row, key in enumerate(collection.keys):
        record = collection.record(row)
        for number, region in enumerate(record.regions):
            box = region.box.to_pixels(record.width, record.height)
            name = Turn("user", "<image>\nWhat is <region>?", (box,)), Turn("assistant", region.phrase)
            where = (
                Turn("user", f"<image>\nWhere is the {region.phrase}?"),
                Turn("assistant", f"The {region.phrase} is at <region>.", (box,)),
            )
            conversations.append(Conversation(f"name/{key}/{number}", (key,), name))
            conversations.append(Conversation(f"where/{key}/{number}", (key,), where, "refer-ground"))
    for split in ("train", "test"):
        rows = collection.rows(split)
        for first, second in zip(rows[:4], rows[1:5], strict=True):
            keys = (collection.keys[first], collection.keys[second])
            turns = Turn("user", "<image>\n<image>\nAre both the same?"), Turn("assistant", "no")
            conversations.append(Conversation(f"same/{keys[0]}", keys, turns, "multi-image"))
    return conversations


def make_asked_collection(path: Path) -> Path:
    """The tiny collection with questions."""
    tiny.make_collection(path)
    with Collection.open(path) as collection:
        conversations = make_questions(collection)
    add_conversations(path, conversations)
    return path
