"""Options of `foveate species`, declared once; loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from foveate.core.recipes import Settings
from foveate.records.ray_work import ExecutorSettings


class CheckSettings(Settings):
    """`foveate species check COLLECTION`."""

    only: tuple[str, ...] = Field((), description="only this check, by its name as printed; may be repeated")
    max_listed: int = Field(10, ge=1, description="findings of a check that are listed; further ones are counted")
    images: bool = Field(
        True,
        description="look at thumbnails for the health of cameras",
        json_schema_extra={
            "off": "read no image: leave out the checks of black nights, turned cameras and fogged lenses"
        },
    )


class BoxSettings(Settings):
    """`foveate species boxes COLLECTION`."""

    threshold: float = Field(0.2, ge=0, lt=1, description="minimum score of a box, strict")
    max_boxes: int = Field(8, ge=1, description="boxes of an image that are looked at, those that stand out most")
    every_image: bool = Field(False, description="also images that have boxes of another source")


class SummarySettings(Settings):
    """`foveate species summary SOURCE`."""

    min_delta_minutes: float = Field(
        30.0, ge=0, description="minutes between independent records of a taxon at a station; 0 keeps all"
    )
    compared_to: Literal["lastIndependentRecord", "lastRecord"] = Field(
        "lastIndependentRecord", description="record that these minutes are counted from, as in camtrapR"
    )
    occasion_days: int = Field(7, ge=1, description="days of an occasion of the detection histories")


class BuildSettings(Settings):
    """`foveate species build COLLECTION`."""

    taxonomy: str | None = Field(
        None,
        description="table with columns taxon and parent, a checklist (Darwin Core as of GBIF, NCBI's nodes.dmp), or "
        "SpeciesNet's seven-field labels as .txt; the survey's own list, or the shipped table, if unset",
    )
    labels: Literal["human", "machine", "all"] = Field(
        "human", description="whose observations are labels; all: a machine's where no person looked at the image"
    )
    min_probability: float = Field(0.0, ge=0, le=1, description="of a machine's observations that are labels")


class PredictSettings(ExecutorSettings):
    """`foveate species predict MODEL SOURCE`."""

    deployments: Path | None = Field(None, description="table of deployments of a folder of cards")
    results: Path | None = Field(None, description="boxes for the images: a file of MegaDetector or SpeciesNet")
    detect: bool | None = Field(
        None,
        description="propose boxes where images have none, as foveate species boxes does; by default for a model of "
        "crops where no image has a box",
    )
    features: Path | None = Field(
        None, description="npz or Parquet with columns key and vector, of a model that was trained on such features"
    )
    split: str | None = Field(None, description="only images of this split")
    batch: int = Field(16, ge=1, le=1024, description="images of a pass through the encoder")


class TriageSettings(Settings):
    """`foveate species triage SOURCE`."""

    deployments: Path | None = Field(None, description="table of deployments of a folder of cards")
    results: Path | None = Field(
        None, description="MegaDetector's results, which decide instead of the shipped detector"
    )
    threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        description="score from which a box counts; 0.2 with MegaDetector's results, 0.34 with the shipped detector if "
        "unset",
    )
    blur_people: bool = Field(
        False, description="also write copies of the images with people, who are blurred; originals are not touched"
    )


class DecideSettings(Settings):
    """Options of a decision beside those of its stages."""

    gap_seconds: float = Field(60.0, gt=0, description="a longer gap between two images begins a new event")


class PageSettings(Settings):
    """Options of the page of predictions."""

    coordinate_digits: int | None = Field(
        None, ge=1, le=3, description="decimals of the places on the map; no place is on the page by default"
    )
    samples: int = Field(24, ge=0, le=500, description="number of images on the page")


class ReviewSettings(Settings):
    """`foveate species review RESULTS`."""

    max_events: int = Field(300, ge=1, le=5000, description="events on the contact sheet and in the table")
    corrections: Path | None = Field(
        None, description="table or Camtrap DP package with a person's answers, read instead of writing a sheet"
    )
    column: str | None = Field(None, description="column of the corrections that holds the answers")
    page: bool = Field(False, description="serve a page on 127.0.0.1 to review all events in a browser, until Ctrl-C")
    reviewer: str = Field("", max_length=200, description="with --page: who answers; the page asks if unset")
    blur_people: bool = Field(False, description="with --page: blur people on the images; files are not touched")
    port: int = Field(0, ge=0, le=65535, description="with --page: port to listen on; 0 = any free port")

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = self.model_fields_set
        if wrong := sorted(
            given & ({"max_events", "corrections"} if self.page else {"reviewer", "blur_people", "port"})
        ):
            raise ValueError(f"{wrong[0]}: no effect {'with' if self.page else 'without'} --page")
        if self.column is not None and self.corrections is None:
            raise ValueError(
                f"column: no effect without corrections (got {self.column!r}); expected --corrections FILE"
            )
        return self


class ExportSettings(Settings):
    """`foveate species export RESULTS`."""

    format: Literal["camtrap-dp", "megadetector", "wildlife-insights", "csv"] = Field(
        description="camtrap-dp, megadetector (Timelapse), wildlife-insights, or csv: one flat table"
    )
    exclude_humans: bool = Field(
        False,
        description="leave out images that show people, by an answer, a decision or a detection of at least 0.2, with "
        "all that is said of them",
    )
    coordinate_digits: str | None = Field(
        None, description="of camtrap-dp: decimals of coordinates, 1 (10 km), 2 (1 km), 3 (100 m), recorded or drop"
    )
    title: str | None = Field(None, description="of camtrap-dp: title of the package")
    contributor: tuple[str, ...] = Field((), description="of camtrap-dp: name of a person or organization")
    sampling_design: str | None = Field(None, description="of camtrap-dp: how the places of the cameras were chosen")
    utc_offset: tuple[str, ...] = Field(
        (),
        description="of camtrap-dp: offset from UTC of times without one, +02:00 for all deployments or "
        "DEPLOYMENT=+02:00",
    )
    project: str | None = Field(None, description="of wildlife-insights: id of the project")
