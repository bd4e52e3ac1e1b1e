"""Settings of `foveate study` and `foveate tour`; without torch, so that help is shown at once."""

from __future__ import annotations

from pydantic import Field

from foveate.core.recipes import Settings


class StudySettings(Settings):
    """The size of a study, and how many processes work on it."""

    quick: bool = Field(False, description="fewer images and steps, two seeds")
    seeds: int | None = Field(
        None, ge=2, le=50, description="number of training runs per variant; 5 by default, 2 with --quick"
    )
    workers: int = Field(1, ge=1, le=64, description="processes, one thread each")
    variants: tuple[str, ...] = Field(
        (), description="train only these of the study's variants; repeated with others, the run folder keeps both"
    )


class TourSize(Settings):
    """The numbers that decide how long the tour's main part takes and how good it is; by default the full size."""

    image_size: int = Field(
        224, ge=64, le=448, multiple_of=32, description="side in pixels of the images that both models read"
    )
    # Fewer scenes lack concepts, and some questions of the tour would have no image.
    scenes: int = Field(8000, ge=200, description="number of training scenes")
    steps: int = Field(800, ge=10, description="number of steps of the training of CLIP, and of that of CLOC")
    by_speed: bool = Field(False, description="whether it is smaller than full because the machine is slow")
    short: bool = Field(False, description="whether later parts are shortened, too, as in a tour of named steps")

    def describe(self) -> str:
        """Return the numbers in words."""
        numbers = f"{self.scenes:,} scenes, read at {self.image_size} pixels, {self.steps:,} steps"
        return numbers + ", short later parts" * self.short


class TourSettings(Settings):
    """The size of a tour."""

    full: bool = Field(
        False, description="the full size, however long it takes here; by default the largest that fits into 8 minutes"
    )
    seeds: int = Field(
        1, ge=1, le=20, description="number of training runs per model; with 2 or more, intervals are over seeds"
    )
    image_size: int | None = Field(
        None,
        ge=64,
        le=448,
        multiple_of=32,
        description="side of the images, a multiple of 32; other parts of the size are full",
    )
    scenes: int | None = Field(None, ge=200, description="number of training scenes; other parts are full")
    test_scenes: int = Field(400, ge=50, description="number of held-out test scenes")
    steps: int | None = Field(
        None,
        ge=10,
        description="number of steps of each training run; shortens the later parts; scenes and pixels are full",
    )
