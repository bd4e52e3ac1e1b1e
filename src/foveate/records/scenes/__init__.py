"""Generated scenes: cut-outs on photographs and drawn grounds, with exact boxes, masks, relations and captions."""

from __future__ import annotations

from foveate.records.scenes.build import build_scenes, build_tour_collection
from foveate.records.scenes.scene import Scene, SceneObject, draw_scene

__all__ = ["Scene", "SceneObject", "build_scenes", "build_tour_collection", "draw_scene"]
