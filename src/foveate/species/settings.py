"""Options of `foveate species`, declared once; loads no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from foveate.core.recipes import Settings


class CheckSettings(Settings):
    """`foveate species check COLLECTION`."""

    only: tuple[str, ...] = Field((), description="only this check, by its name as printed; may be repeated")
    max_listed: int = Field(10, ge=1, description="findings of a check that are listed; further ones are counted")


class BoxSettings(Settings):
    """`foveate species boxes COLLECTION`."""

    threshold: float = Field(0.2, ge=0, lt=1, description="minimum score of a box, strict")
    max_boxes: int = Field(20, ge=1, description="boxes of an image that are kept, the best ones")
    every_image: bool = Field(False, description="also images that have boxes of another source")


class BuildSettings(Settings):
    """`foveate species build COLLECTION`."""

    taxonomy: str | None = Field(
        None,
        description="table with columns taxon and parent, or SpeciesNet's seven-field labels as .txt; the survey's own "
        "list, or the shipped table, if unset",
    )
    labels: Literal["human", "machine", "all"] = Field("human", description="whose observations are labels")
