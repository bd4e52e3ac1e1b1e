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


class TourSettings(Settings):
    """The size of a tour."""

    seeds: int = Field(
        1, ge=1, le=20, description="number of training runs per model; with 2 or more, intervals are over seeds"
    )
    # Fewer scenes lack concepts, and some questions of the tour would have no image.
    scenes: int = Field(8000, ge=200, description="number of training scenes")
    test_scenes: int = Field(400, ge=50, description="number of held-out test scenes")
    steps: int | None = Field(None, ge=10, description="number of steps of each training run; the recipes' by default")
