"""Generated phone screens with exact widget trees, and questions on them."""

from __future__ import annotations

from foveate_labs.worlds.screens.questions import ask_screen
from foveate_labs.worlds.screens.screen import Screen, Widget, draw_screen
from foveate_labs.worlds.screens.screen_collection import build_screens

__all__ = ["Screen", "Widget", "ask_screen", "build_screens", "draw_screen"]
