"""Options of `foveate species`, declared once; loads no torch."""

from __future__ import annotations

from pydantic import Field

from foveate.core.recipes import Settings


class BoxSettings(Settings):
    """`foveate species boxes COLLECTION`."""

    threshold: float = Field(0.2, ge=0, lt=1, description="minimum score of a box, strict")
    max_boxes: int = Field(20, ge=1, description="boxes of an image that are kept, the best ones")
    every_image: bool = Field(False, description="also images that have boxes of another source")
