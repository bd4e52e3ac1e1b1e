"""Generated scenes and clips: cut-outs on photographs and drawn grounds, with exact boxes, masks and captions."""

from __future__ import annotations

from foveate_labs.worlds.questions import Question
from foveate_labs.worlds.scenes.clip_questions import ClipQuestion, ask_clip
from foveate_labs.worlds.scenes.clips import SceneClip, SceneFrame, draw_clip, write_frames
from foveate_labs.worlds.scenes.counting import draw_counting_scene
from foveate_labs.worlds.scenes.image_sets import ImageSet, draw_image_set
from foveate_labs.worlds.scenes.photo_folder import PhotoFolder, add_truth, write_photo_folder
from foveate_labs.worlds.scenes.questions import ask_scene
from foveate_labs.worlds.scenes.scene import Scene, SceneObject, draw_scene
from foveate_labs.worlds.scenes.scene_collection import build_scenes, build_tour_collection

__all__ = [
    "ClipQuestion",
    "ImageSet",
    "PhotoFolder",
    "Question",
    "Scene",
    "SceneClip",
    "SceneFrame",
    "SceneObject",
    "add_truth",
    "ask_clip",
    "ask_scene",
    "build_scenes",
    "build_tour_collection",
    "draw_clip",
    "draw_counting_scene",
    "draw_image_set",
    "draw_scene",
    "write_frames",
    "write_photo_folder",
]
