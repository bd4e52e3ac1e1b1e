"""Generated scenes: cut-outs on photographs and drawn grounds, with exact boxes, masks, relations and captions."""

from __future__ import annotations

from foveate.records.questions import Question
from foveate.records.scenes.counting import draw_counting_scene
from foveate.records.scenes.image_sets import ImageSet, draw_image_set
from foveate.records.scenes.questions import ask_scene
from foveate.records.scenes.scene import Scene, SceneObject, draw_scene
from foveate.records.scenes.scene_collection import build_scenes, build_tour_collection

__all__ = [
    "ImageSet",
    "Question",
    "Scene",
    "SceneObject",
    "ask_scene",
    "build_scenes",
    "build_tour_collection",
    "draw_counting_scene",
    "draw_image_set",
    "draw_scene",
]
