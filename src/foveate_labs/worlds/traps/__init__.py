"""A generated camera-trap survey: animals before cameras, with exact boxes and switches for control worlds."""

from __future__ import annotations

from foveate_labs.worlds.traps.image import TrapImage, draw_trap_image
from foveate_labs.worlds.traps.survey_collection import build_traps, write_cards
from foveate_labs.worlds.traps.world import TrapSettings, World, load_world

__all__ = ["TrapImage", "TrapSettings", "World", "build_traps", "draw_trap_image", "load_world", "write_cards"]
