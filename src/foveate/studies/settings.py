"""Settings of `foveate study` and `foveate tour`; without torch, so that help is shown at once."""

from __future__ import annotations

from pydantic import Field

from foveate.core.recipes import Settings


class StudySettings(Settings):
    """The size of a study, and how many processes work on it."""

    quick: bool = Field(False, description="fewer images and steps, two seeds")
    seeds: int | None = Field(None, ge=2, le=50, description="trainings of each variant; 5 by default, quick 2")
    workers: int = Field(1, ge=1, le=64, description="processes, one thread each")


class TourSettings(Settings):
    """The size of a tour."""

    seeds: int = Field(1, ge=1, le=20, description="trainings of each model; from 2 on the intervals are over seeds")
    # Fewer scenes lack concepts, and some questions of the tour would have no image.
    scenes: int = Field(8000, ge=200, description="training scenes")
    test_scenes: int = Field(400, ge=50, description="scenes that are held out for testing")
    steps: int | None = Field(None, ge=10, description="steps of each training; the recipes' by default")
