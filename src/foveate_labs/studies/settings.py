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
    """Length and parts of a tour."""

    short: bool = Field(False, description="a few images and steps of each part, to see what is on the page")
    part: tuple[str, ...] = Field((), description="only this part, with those that it needs")
