"""Settings of `foveate evaluate` and `doctor`; without torch, so that help is shown at once."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from foveate.core.recipes import Settings


class EvaluateSettings(Settings):
    """Settings of an evaluation: the images that a model is measured on, and the tasks.

    Example:
        >>> EvaluateSettings(split="validation", classes="category").templates
        ('an image of {}',)
    """

    split: str = Field("test", description="split to evaluate on")
    classes: str | None = Field(None, description="label field for zero-shot classification; none by default")
    templates: tuple[str, ...] = Field(
        ("an image of {}",),
        min_length=1,
        description='prompt of a class, such as "a photo of a {}"; several are averaged',
    )
    text_kind: str | None = Field(
        None, description="caption kind for image-text retrieval; each image's first caption by default"
    )
    crops: bool = Field(
        False, description="also evaluate region metrics on crops, encoding each box as a separate image (slow)"
    )
    limit: int | None = Field(None, ge=1, description="maximum number of images, drawn by the seed")

    @field_validator("templates")
    @classmethod
    def _check_templates(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            # Without a place for the name, all classes would have one embedding and accuracy would be chance.
            if "{}" not in template:
                raise ValueError(f"template '{template}': write {{}} where the class name goes")
        return templates


class DoctorSettings(Settings):
    """The run that a machine and a collection are checked for."""

    devices: int = Field(1, ge=1, description="number of processes of the run")
    hardware: str | None = Field(
        None, description="device of the run, as in pretrain --dry-run; by default this machine's"
    )
    reader: Literal["foveate", "webdataset"] = Field(
        "foveate",
        description="reader of the shards; webdataset: any reader that takes whole shards, such as open_clip's",
    )
    seconds: float = Field(4.0, ge=0.1, le=600, description="duration of each measurement, in seconds")
