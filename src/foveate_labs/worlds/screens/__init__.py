"""Generated phone screens with exact widget trees, and questions on them."""

from __future__ import annotations

from foveate_labs.worlds.screens.questions import ask_screen, build_screens
from foveate_labs.worlds.screens.screen import Screen, Widget, draw_screen

__all__ = ["Screen", "Widget", "ask_screen", "build_screens", "draw_screen"]
